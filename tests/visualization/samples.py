"""Records and studies like those of a real flow, for figures and pages."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from datetime import datetime, timedelta

import optuna
from forecasting.known_law import known_law, known_report
from made_once import record

from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch, LossCurve, ProbeReport, Spending, TrainingLosses
from batchopt.forecasting.forecast import Forecast
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Alternative, LossBand, Plan
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.search.settings import SETTINGS_KEY, StudySettings
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate, log_normal

GOAL = ReachLoss(0.6)
UNRESOLVED = NoiseScale(
    "simple",
    -0.1,
    40.0,
    Estimate(900.0, 300.0, math.inf, False),
    2_000,
    1,
    None,
    "exact",
    "budget",
    MeasuredAt(4_000, 0.75, 256, 0.25),
)


def probe_report() -> ProbeReport:
    """A probe with every part: an unresolved reading, a diverged run, training losses, what each part spent."""
    report = known_report(known_law())
    training = TrainingLosses((0.0, 128.0, 384.0), (2.3, 2.8, 7.0), (0.1, 0.1, 0.2))
    diverged = Branch(32, 2.0, LossCurve((0, 256, 512), (2.3, 2.9, 7.5)), outcome="diverged", training=training)
    parts = {
        "step time": (6_000, 90, 1.1),
        "learning-rate range": (4_100, 120, 0.9),
        "short runs, small batch": (40_100, 1_250, 11.0),
        "long runs": (102_000, 652, 12.0),
        "noise scales": (27_000, 0, 6.3),
    }
    return replace(
        report,
        branches=(*report.branches, diverged),
        noise_scales=(*report.noise_scales, UNRESOLVED),
        spending=tuple(Spending(part, *spent) for part, spent in parts.items()),
        provenance=replace(report.provenance, versions={"torch": "2.13.0", "batchopt": "0.1.0"}),
    )


@functools.cache
def forecast() -> Forecast:
    """Of that probe."""
    return record(Forecast, "forecast_of_samples", lambda: Forecast.fit(probe_report()))


def plan_of(sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512), *, best: int = 128, critical: float = 200.0) -> Plan:
    """The plan of an exact hyperbola: S_min = 300, E_min = 300 `critical`; a step takes 1 ms + 10 us an example."""
    price = StepCost(1e-3, 1e-5)

    def point(size: int) -> Alternative:
        steps = log_normal(300.0 * (1.0 + critical / size), 0.2)
        cost = steps.scaled(price(size))
        loss = Estimate(0.55, 0.5, 0.6, True)
        horizon = 90_000
        return Alternative(size, 0.01 * size**0.5, horizon, loss, steps, steps.scaled(size), cost, cost)

    points = tuple(point(size) for size in sizes)
    return Plan(
        goal=GOAL,
        price=price,
        best=point(best),
        alternatives=points,
        learning_rate_schedule="wsd",
        predicted=LossBand((1_000, 72_000, 90_000), (1.5, 0.8, 0.55), (1.4, 0.7, 0.5), (1.6, 0.9, 0.6)),
        critical_batch_size=log_normal(critical, 0.3),
        schedule=rising_schedule(),
        schedule_cost=points[0].cost.scaled(0.9),
        reasons=("A step costs 0.001 plus 1e-05 an example (seconds).", "Half the batch takes longer."),
    )


def rising_schedule() -> Schedule:
    """Three batch sizes with learning rates."""
    return Schedule((Segment(0, 64, 0.7), Segment(12_000, 128), Segment(40_000, 256, 1.6)), 90_000, 0.1)


class Forecaster:
    """Stands in for a forecast: B_crit(L) = 100 / L, unresolved below 0.5 with no upper end, unreachable below 0.3."""

    initial_loss = 2.0
    lowest_observed_loss = 0.6
    doubts = ("Only one batch size was run.",)

    def critical_batch_size(self, loss: float) -> Estimate:
        if loss < 0.3:
            raise UnreachableGoalError("beyond")
        resolved = loss >= 0.5
        return Estimate(100.0 / loss, 50.0 / loss, 200.0 / loss if resolved else math.inf, resolved)

    def local_critical_batch_size(self, loss: float) -> Estimate:
        return self.critical_batch_size(loss)

    def noise_scale(self, loss: float) -> Estimate:
        raise EvidenceError(f"no trend at {loss}")

    def losses_along(
        self, batch_size: int, learning_rate: float, examples: tuple[float, ...], *, learning_rate_schedule: object
    ) -> tuple[float, ...]:
        return tuple(2.0 / (1.0 + n / 1_000.0) for n in examples)


def study_of(n_completed: int = 12, *, settings: bool = True) -> optuna.Study:
    """A study with trials of every fate; its costs are those of an exact hyperbola around a best learning rate."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if settings:
        study.set_user_attr(SETTINGS_KEY, StudySettings(GOAL, "bs", False, "lr").to_json())
    for i in range(n_completed):
        size, rate = 2 ** (3 + i % 7), 0.02 * 1.7 ** (i % 5)
        cost = 0.3 * (1.0 + 200.0 / size) * (1.0 + 0.01 * size) * (1.0 + math.log(rate / 0.08) ** 2)
        add_trial(study, size, rate, "COMPLETE", value=cost, reports={1_000: 1.4, 20_000 + 1_000 * i: 0.6})
    if n_completed:
        for i in range(5):
            add_trial(study, 2 ** (4 + i), 0.9, "PRUNED", reports={1_000: 2.0, 2_000: 2.1})
            add_trial(study, 2 ** (9 + i % 3), 0.005 * (1 + i), "PRUNED", reason="predicted <b>40 s</b>, best is 3 s")
        add_trial(study, 64, 1.5, "FAIL")
        running = study.ask()
        running.suggest_int("bs", 8, 1024, log=True)
        running.suggest_float("lr", 0.01, 0.3, log=True)
    return study


def add_trial(
    study: optuna.Study,
    size: int,
    rate: float,
    state: str,
    *,
    value: float | None = None,
    reports: dict[int, float] | None = None,
    reason: str | None = None,
    names: tuple[str, str] = ("bs", "lr"),
) -> None:
    """Add one finished trial, a minute after the one before it."""
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=value,
        params={names[0]: size, names[1]: rate},
        distributions={
            names[0]: optuna.distributions.IntDistribution(1, 2**14, log=True),
            names[1]: optuna.distributions.FloatDistribution(1e-6, 10.0, log=True),
        },
        intermediate_values=reports or {},
        user_attrs={}
        if reason is None
        else {"batchopt:decision": json.dumps({"decision": "pruned", "reason": reason})},
    )
    begun = datetime(2025, 1, 1) + timedelta(minutes=len(study.trials))
    trial.datetime_start, trial.datetime_complete = begun, begun + timedelta(seconds=30)
    study.add_trial(trial)
