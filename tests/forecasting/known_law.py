"""Runs of a known law of the loss under any schedule, so that every read-out has a truth."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
from made_once import record

from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.posterior import LossPosterior
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost
from batchopt.uncertainty import log_normal

INITIAL_LOSS = 2.3
SHAPE = (3.5, -1.5, 1.1, 1.1, 5.5, 1.8, 2.6, 0.35, -3.0, 30.0)
"""Like that of a perceptron under SGD, in the order of the law's `SHAPE`. Noise is added to the loss but does not slow
progress: eps_s is far above all rates."""
SLOPES = (-1.7, -1.7, -1.6, -1.5, -1.3, -0.9, -0.6, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5)


def known_law(*, noise: float = SHAPE[0], saturation: float = SHAPE[-1]) -> LossPosterior:
    """The law without uncertainty: with more noise, or with rates that noise slows, by the logs of A and eps_s."""
    row = (noise, *SHAPE[1:-1], saturation, *SLOPES)
    return LossPosterior(
        initial_loss=INITIAL_LOSS,
        lowest_loss=0.05,
        scale=0.4,
        knots=tuple(np.linspace(0.0, 0.5 * len(SLOPES), len(SLOPES) + 1).tolist()),
        middle_batch_size=64.0,
        is_adaptive=False,
        delay=0.0,
        rows=(row, row),
        places=(),
        weights=((), ()),
        frequencies=((0.0, 0.0, 0.0, 0.0),),
        phases=(0.0,),
        amplitudes=((0.0,), (0.0,)),
        steepness=0.5,
        unstable=(),
        stable=(),
        batch_sizes=(16, 256),
        learning_rates=(0.01, 0.2),
        highest_rate=3.0,
        longest=60_000.0,
    )


def drawn_law(draws: int = 9, *, spread: float = 0.15, seed: int = 0) -> LossPosterior:
    """The law with draws about it, of its noise and of its slopes, and nothing that it misses."""
    law, rng = known_law(), np.random.default_rng(seed)
    row = np.array(law.rows[0])
    moved = row + spread * rng.standard_normal((draws, 1)) * np.isin(np.arange(len(row)), [0, *range(len(SHAPE), 99)])
    rows = tuple(tuple(each) for each in [row.tolist(), *moved.tolist()])
    return replace(law, rows=rows, weights=((),) * len(rows), amplitudes=((0.0,),) * len(rows))


def simulate(
    law: LossPosterior,
    batch_size: int,
    learning_rate: float,
    examples: int,
    rng: np.random.Generator,
    *,
    cooldown: float = 0.0,
) -> Branch:
    """A stable run with 2 % noise on its losses; or what comes after its last, a cooldown over a share of the whole."""
    points = sorted({round(n / batch_size) * batch_size for n in np.geomspace(5 * batch_size, examples, 12)})
    schedule = None
    if cooldown:
        begin = points[-1]
        end = round(begin / (1.0 - cooldown) / batch_size) * batch_size
        schedule = LearningRateSchedule((0, begin, end), (1.0, 1.0, 0.0))
        points = [end]
    losses = losses_at(law, batch_size, learning_rate, points, schedule)
    losses = losses * np.exp(0.02 * rng.standard_normal(len(points)))
    first = ((), ()) if cooldown else ((0,), (INITIAL_LOSS,))
    curve = LossCurve((*first[0], *points), (*first[1], *map(float, losses)))
    return Branch(batch_size, learning_rate, curve, learning_rate_schedule=schedule)


def losses_at(
    law: LossPosterior,
    batch_size: int,
    learning_rate: float,
    examples: list[int],
    schedule: LearningRateSchedule | None = None,
) -> np.ndarray:
    """Losses of the law along one run."""
    constant = schedule or LearningRateSchedule((0,), (1.0,))
    k = len(examples)
    return np.exp(law.losses_at_end([batch_size] * k, [learning_rate] * k, [constant] * k, examples)[0])


def known_report(law: LossPosterior, *, seed: int = 0) -> ProbeReport:
    """A probe of the usual shape: two batch sizes, three rates each, cooldowns, and two long runs."""
    rng = np.random.default_rng(seed)
    reference = simulate(law, 256, 0.8, 48_000, rng)
    branches = [simulate(law, 16, rate, 12_000, rng) for rate in (0.05, 0.15)]
    branches += [simulate(law, 256, rate, 12_000, rng) for rate in (0.27, 2.4)]
    branches += [simulate(law, 16, 0.45, 48_000, rng)]
    for size, rate in ((16, 0.15), (256, 0.27)):
        branches.append(simulate(law, size, rate, 12_000, rng, cooldown=0.2))
    for size, rate in ((16, 0.45), (256, 0.8)):
        branches += [simulate(law, size, rate, 48_000, rng, cooldown=share) for share in (0.1, 0.3)]
    readings = []
    # Where the law's noise scale is so large: see `test_noise_readings.py`.
    for examples, loss, value in ((256, 1.9, 20.0), (2_816, 1.0, 40.0), (29_184, 0.3, 90.0)):
        estimate = log_normal(value * math.exp(0.1 * rng.standard_normal()), 0.1)
        at = MeasuredAt(examples, loss, 256, 0.8)
        readings.append(NoiseScale("simple", 1.0, value, estimate, 4_000, 1, None, "exact", "width", at))
    return ProbeReport(
        reference=reference,
        branches=tuple(branches),
        noise_scales=tuple(readings),
        step_cost=StepCost(1e-3, 1e-5, largest_batch_size=4096),
        spending=(),
        budget_examples=200_000,
        stopped=None,
        provenance=Provenance({}, "cpu", seed, 50_000, 1_000, adaptive=False),
        initial_loss=INITIAL_LOSS,
    )


@functools.cache
def known_forecast() -> Forecast:
    """The forecast of the usual probe, which takes seconds to fit."""
    return record(Forecast, "known_forecast", lambda: Forecast.fit(known_report(known_law())))


@functools.cache
def known_plan(loss: float) -> Plan:
    """Its plan to a loss by a rate that decays at the end, where a step costs as much as 64 examples."""
    goal = ReachLoss(loss, least=StepCost(64.0, 1.0))
    return record(Plan, f"known_plan_{loss}", lambda: known_forecast().plan(goal, learning_rate_schedule="wsd"))


def forecast_with(law: LawPosterior, *, step_cost: StepCost | None = None, batch_size_limit: int = 4096) -> Forecast:
    """A forecast around a law of constant rates, for a search."""
    return Forecast(known_law(), law, None, step_cost, batch_size_limit, None, None, ())
