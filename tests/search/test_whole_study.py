"""Whole studies on a landscape with a known optimum, against Optuna's own default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from forecasting.known_law import forecast_with
from forecasting.synthetic import fitted, simulated_report, true_law
from landscape import (
    BEST,
    GOAL,
    LAW,
    LOSS,
    NAMES,
    PRICE,
    Objective,
    completed_values,
    forecast_of,
    losses_of,
    steps_needed,
)
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import create_trial

from batchopt.evidence import Branch
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.paced_fit import PacedLaw, fit_paced
from batchopt.planning.goal import ReachLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, fit, milestones, summarise
from batchopt.search.observations import MOST_CURVES
from batchopt.step_cost import StepCost

optuna.logging.set_verbosity(optuna.logging.WARNING)


def seeds_and_reports(*seeds: int) -> pytest.MarkDecorator:
    """One seed and every fourth report, in seconds; several seeds and all reports, in minutes."""
    thorough = pytest.param(seeds, 1, marks=pytest.mark.slow)
    return pytest.mark.parametrize(("seeds", "every"), [(seeds[:1], 4), thorough], ids=["one seed", "several seeds"])


def ran(forecast: Forecast | None, seed: int, n: int, every: int) -> tuple[float, float, optuna.Study]:
    """Best cost and all that was spent, in units of the best setting's cost."""
    sampler = TradeoffSampler(forecast, goal=GOAL, seed=seed, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    objective = Objective(every=every)
    study.optimize(objective, n_trials=n)
    return min(completed_values(study), default=np.inf) / BEST, objective.spent / BEST, study


def rival(seed: int, n: int) -> tuple[float, float]:
    study = optuna.create_study(sampler=TPESampler(seed=seed), pruner=MedianPruner())
    objective = Objective(use_check=False)
    study.optimize(objective, n_trials=n)
    return min(completed_values(study), default=np.inf) / BEST, objective.spent / BEST


@seeds_and_reports(0, 1, 2)
def test_a_forecast_finds_the_optimum_within_a_few_trials(seeds: Sequence[int], every: int) -> None:
    forecast = fitted()
    regrets, spent, studies = zip(*(ran(forecast, seed, 5, every) for seed in seeds), strict=True)
    assert np.median(regrets) < 1.25
    assert np.median(spent) < 7.5
    # What the sampler proposes survives the check.
    assert sum(summarise(study).pruned_before_compute for study in studies) <= 1


@seeds_and_reports(0, 1)
def test_a_wrong_forecast_does_not_hurt_for_long(seeds: Sequence[int], every: int) -> None:
    """Its learning rate is thirty times too low and its critical batch size ten times too high."""
    wrong = Forecast.fit(simulated_report(true_law(b_mid=600.0, learning_rate=0.01)))
    regrets, _, studies = zip(*(ran(wrong, seed, 14, every) for seed in seeds), strict=True)
    assert np.median(regrets) < 1.15
    # It is not that nothing was learned: the first proposal was far off.
    first = studies[0].trials[0].params
    assert steps_needed(first["batch_size"], first["lr"]) * PRICE(first["batch_size"]) > 3.0 * BEST


@seeds_and_reports(0, 1)
def test_without_a_probe_it_spends_less_than_the_default(seeds: Sequence[int], every: int) -> None:
    regrets, spent, _ = zip(*(ran(None, seed, 16, every) for seed in seeds), strict=True)
    rival_regrets, rival_spent = zip(*(rival(seed, 16) for seed in seeds), strict=True)
    assert np.median(regrets) < 1.2
    assert np.median(regrets) <= 1.05 * np.median(rival_regrets)
    assert np.median(spent) < 0.5 * np.median(rival_spent)


def test_seconds_are_learned_where_no_step_was_timed() -> None:
    """The objective returns its own seconds; until the price is known the base sampler proposes."""
    clock = StepCost(0.064, 0.001)
    forecast = forecast_with(LAW)
    study = optuna.create_study(
        sampler=TradeoffSampler(forecast, goal=ReachLoss(LOSS), seed=1, **NAMES),  # type: ignore[arg-type]
    )

    def objective(trial: optuna.Trial) -> float:
        size = trial.suggest_int("batch_size", 8, 2048, log=True)
        rate = trial.suggest_float("lr", 0.02, 1.0, log=True)
        steps = steps_needed(size, rate)
        for share in (0.2, 0.4, 0.6, 0.8, 1.0, 1.02):
            n = round(share * steps * size)
            trial.report(float(LAW.losses_at([float(size)], [rate], [float(n)])[0, 0]), n)
        return steps * clock(size)

    study.optimize(objective, n_trials=9)
    best = [trial.value for trial in study.trials[4:] if trial.value is not None]
    assert min(best) < 1.1 * BEST / 1000.0


def test_many_trials_stay_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit is bounded by its number of curves, not by the study's length."""
    sampler = TradeoffSampler(forecast_of(LAW), goal=GOAL, seed=0, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    rng = np.random.default_rng(0)
    ranges = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(1e-4, 10.0, log=True)}
    for number in range(200):
        size, rate = int(2 ** rng.integers(3, 11)), float(10 ** rng.uniform(-2, 0))
        steps = steps_needed(size, rate)
        points = [n for n in milestones(round(steps * size)) if n >= size]
        reports = dict(zip(points, losses_of(size, rate, points, number), strict=True))
        params, value = {"batch_size": size, "lr": rate}, steps * PRICE(size)
        study.add_trial(create_trial(params=params, distributions=ranges, value=value, intermediate_values=reports))
    fitted: list[int] = []

    def counted(runs: Sequence[Branch], *args: Any, **options: Any) -> PacedLaw:
        fitted.append(len(runs))
        return fit_paced(runs, *args, **options)

    monkeypatch.setattr(fit, "fit_paced", counted)
    study.optimize(Objective(report=False), n_trials=2)
    # One fit for each state of the study that was asked about: as each trial begins.
    assert 1 <= len(fitted) <= 4
    assert max(fitted) <= MOST_CURVES
