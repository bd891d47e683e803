"""The law as surrogate: what it predicts, what trials change, and when there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from forecasting.synthetic import true_law
from landscape import (
    BEST,
    LAW,
    LOSS,
    PRICE,
    SETTINGS,
    forecast_of,
    losses_of,
    observation,
    steps_needed,
)
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from batchopt.errors import EvidenceError
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.law import SHAPE
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import milestones
from batchopt.search.build import build_surrogate
from batchopt.search.fit import DOUBTED, UNTESTED_DOUBT, Thin
from batchopt.search.price import GUESSED
from batchopt.search.prospects import away_from_others, prospects_of, prospects_of_running
from batchopt.search.settings import Known, StudySettings
from batchopt.search.surrogate import Surrogate, Target

RANGES = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(1e-4, 10.0, log=True)}


def add_run(study: optuna.Study, size: int, rate: float, *, pruned_at: int | None = None) -> None:
    """A trial on the true landscape, completed or stopped after a number of examples."""
    steps = steps_needed(size, rate)
    points = [n for n in milestones(pruned_at or round(steps * size)) if n >= size]
    reports = dict(zip(points, losses_of(size, rate, points, len(study.trials)), strict=True))
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE if pruned_at is None else TrialState.PRUNED,
            value=steps * PRICE(size) if pruned_at is None else None,
            params={"batch_size": size, "lr": rate},
            distributions=RANGES,
            intermediate_values=reports,
        )
    )


def built(study: optuna.Study, forecast: Forecast | None, settings: StudySettings = SETTINGS) -> Surrogate:
    surrogate = build_surrogate(study, Known(settings, None if forecast is None else forecast.constant))
    assert isinstance(surrogate, Surrogate), surrogate
    return surrogate


def rate_error(surrogate: Surrogate) -> float:
    """log ratio of the believed best learning rate at batch size 64 to the true one."""
    believed, true = (law.best_steps([64.0], LOSS)[1][0, 0] for law in (surrogate.law, LAW))
    return abs(math.log(believed / true))


def test_costs_are_steps_times_price() -> None:
    surrogate = built(optuna.create_study(), forecast_of(LAW))
    cost = surrogate.costs(surrogate.one(64.0, 0.1, {}), LOSS)[0, 0]
    # On a coarser grid than the law's own.
    assert cost == pytest.approx(steps_needed(64, 0.1) * PRICE(64), rel=0.03)
    size, rate, score = surrogate.best_predicted() or (0.0, 0.0, 0.0)
    assert score == pytest.approx(BEST, rel=0.03)
    assert steps_needed(size, rate) * PRICE(size) == pytest.approx(score, rel=0.03)


def test_lowest_loss_scores_by_the_loss_at_the_budget() -> None:
    settings = replace(SETTINGS, goal=LowestLoss(within=50_000.0, of=PRICE))
    surrogate = built(optuna.create_study(), forecast_of(LAW), settings)
    steps = math.floor(50_000.0 / PRICE(64))
    loss = surrogate.paced_scores(surrogate.one(64.0, 0.1, {}))[0][0, 0]
    assert loss == pytest.approx(LAW.losses_at([64.0], [0.1], [steps * 64.0])[0, 0], rel=0.02)
    assert math.isinf(surrogate.paced_scores(surrogate.one(60_000.0, 0.1, {}))[0][0, 0])


def test_a_forecast_is_doubted_before_it_is_used() -> None:
    surrogate = built(optuna.create_study(), forecast_of(LAW, spread=0.01))
    draws = np.array(surrogate.law.draws)
    for name in DOUBTED:
        # 32 draws: a standard error of 12.5 %.
        assert np.std(draws[:, SHAPE.index(name)]) == pytest.approx(UNTESTED_DOUBT, rel=0.5)
    assert surrogate.law.best == LAW.best


def test_trials_overrule_a_wrong_forecast() -> None:
    study = optuna.create_study()
    wrong = forecast_of(true_law(learning_rate=0.01), spread=0.05)
    errors = [rate_error(built(study, wrong))]
    for size, rate in ((64, 0.01), (256, 0.05), (64, 0.1), (32, 0.3)):
        add_run(study, size, rate)
        errors.append(rate_error(built(study, wrong)))
    assert errors[0] > math.log(20)
    assert errors[-1] < math.log(1.6)


def test_stopped_runs_teach_as_well() -> None:
    study = optuna.create_study()
    wrong = forecast_of(true_law(learning_rate=0.05), spread=0.05)
    before = rate_error(built(study, wrong))
    for size, rate in ((64, 0.02), (64, 0.2), (256, 0.5), (32, 0.1)):
        add_run(study, size, rate, pruned_at=10_000)
    assert rate_error(built(study, wrong)) < 0.5 * before


def test_without_a_forecast_the_trials_make_a_law() -> None:
    study = optuna.create_study()
    assert build_surrogate(study, Known(SETTINGS, None)) == Thin("no trial has suggested both parameters yet")
    study.ask(RANGES)
    thin = build_surrogate(study, Known(SETTINGS, None))
    assert thin == Thin("no forecast says how the goal is reached, and no trial has reported three losses yet")
    add_run(study, 64, 0.1)
    built(study, None)
    add_run(study, 256, 0.2)
    add_run(study, 128, 0.05)
    best = built(study, None).best_predicted()
    assert best is not None
    assert steps_needed(best[0], best[1]) * PRICE(best[0]) < 2.0 * BEST


def test_a_running_trial_is_evidence_too() -> None:
    study = optuna.create_study()
    trial = study.ask(RANGES)
    size, rate = trial.params["batch_size"], trial.params["lr"]
    points = [n for n in milestones(40_000) if n >= size]
    for n, loss in zip(points, losses_of(size, rate, points, 0), strict=True):
        trial.report(loss, n)
    surrogate = built(study, None)
    assert surrogate.fitted == (0,)
    assert surrogate.observations[0].running
    assert isinstance(build_surrogate(study, Known(SETTINGS, None), without=0), Thin)


def test_a_completed_trial_is_believed() -> None:
    """Whatever the law says, its own setting costs what it did; beside it half way, and far away the law holds."""
    study = optuna.create_study()
    add_run(study, 64, 0.1)
    cost = study.trials[0].value or 0.0
    study.add_trial(
        create_trial(value=3.0 * cost, params={"batch_size": 256, "lr": 0.2}, distributions=RANGES)
    )  # fmt: skip
    surrogate = built(study, forecast_of(LAW))
    at = surrogate.costs(surrogate.one(256.0, 0.2, {}), LOSS)[0, 0]
    assert at == pytest.approx(3.0 * cost, rel=0.1)
    _, sd = surrogate.paced_scores(surrogate.one(256.0, 0.2, {}))
    _, far = surrogate.paced_scores(surrogate.one(8.0, 5.0, {}))
    assert sd[0] < 0.3 * far[0]


def test_other_parameters_have_a_place_and_change_the_pace() -> None:
    """Trials with dropout take three times as long, which the law does not know and the paces tell."""
    study = optuna.create_study()
    ranges = RANGES | {"dropout": FloatDistribution(0.0, 0.8)}
    for i, (size, rate) in enumerate(((32, 0.1), (64, 0.1), (128, 0.2), (64, 0.2), (128, 0.1), (32, 0.2))):
        slower = 3.0 if i % 2 else 1.0
        points = [n for n in milestones(round(steps_needed(size, rate) * size)) if n >= size]
        reports = {round(slower * n): x for n, x in zip(points, losses_of(size, rate, points, i), strict=True)}
        study.add_trial(
            create_trial(
                value=slower * steps_needed(size, rate) * PRICE(size),
                params={"batch_size": size, "lr": rate, "dropout": 0.75 if i % 2 else 0.05},
                distributions=ranges,
                intermediate_values=reports,
            )
        )
    surrogate = built(study, None)
    assert [name for name, _ in surrogate.places.others] == ["dropout"]
    fast, slow = (surrogate.costs(surrogate.one(96.0, 0.15, {"dropout": x}), LOSS)[0, 0] for x in (0.05, 0.75))
    assert 2.0 < slow / fast < 4.0


def test_the_incumbent_is_the_target() -> None:
    study = optuna.create_study()
    forecast = forecast_of(LAW)
    surrogate = built(study, forecast)
    assert surrogate.target() is None
    assert surrogate.first_target(BEST) == Target(LOSS, BEST, None)
    add_run(study, 512, 0.1)
    add_run(study, 64, 0.1)
    target = built(study, forecast).target()
    assert target is not None
    assert (target.cost, target.trial) == (pytest.approx(steps_needed(64, 0.1) * PRICE(64)), 1)


def test_an_infeasible_trial_is_no_incumbent() -> None:
    surrogate = built(optuna.create_study(), forecast_of(LAW))
    seen = (observation(0, 64, 0.1, values=(10.0,), feasible=False), observation(1, 64, 0.1, values=(20.0,)))
    incumbent = replace(surrogate, observations=seen).incumbent
    assert incumbent is not None
    assert incumbent.number == 1


def test_misfit_says_by_how_much_the_law_misses() -> None:
    study = optuna.create_study()
    for size, rate in ((64, 0.1), (256, 0.2), (32, 0.05)):
        add_run(study, size, rate)
    assert built(study, forecast_of(LAW)).misfit < 0.05
    surrogate = built(study, forecast_of(LAW))
    twice = tuple(replace(o, values=(2.0 * (o.values or (0.0,))[0],)) for o in surrogate.observations)
    from batchopt.search.build import _misfit

    assert _misfit(replace(surrogate, observations=twice)) == pytest.approx(math.log(2), abs=0.1)
    never = replace(surrogate, goal=ReachLoss(1e-9, least=PRICE))
    assert math.isinf(_misfit(never))


def test_memory_bounds_the_space() -> None:
    limited = forecast_of(LAW, step_cost=replace(PRICE, largest_batch_size=100))
    surrogate = built(optuna.create_study(), limited)
    assert max(surrogate.space.batch_sizes.sizes) <= 100
    priced = replace(SETTINGS, goal=ReachLoss(LOSS, least=replace(PRICE, largest_batch_size=50)))
    assert max(built(optuna.create_study(), limited, priced).space.batch_sizes.sizes) <= 50


def test_a_goal_that_needs_no_training() -> None:
    easy = replace(SETTINGS, goal=ReachLoss(5.0, least=PRICE))
    thin = build_surrogate(optuna.create_study(), Known(easy, forecast_of(LAW).constant))
    assert thin == Thin("the goal's loss is not below the initial loss, 2.3")


def test_seconds_that_nobody_measured() -> None:
    seconds = replace(SETTINGS, goal=ReachLoss(LOSS))
    assert built(optuna.create_study(), forecast_of(LAW, step_cost=None), seconds).price.unit == GUESSED
    seconds = replace(SETTINGS, goal=LowestLoss(within=10.0))
    thin = build_surrogate(optuna.create_study(), Known(seconds, forecast_of(LAW, step_cost=None).constant))
    assert isinstance(thin, Thin)
    assert "no step cost was measured" in thin.reason


def test_diverged_trials_bound_the_learning_rate() -> None:
    study = optuna.create_study()
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"batch_size": 64, "lr": 1.0},
            distributions=RANGES,
            intermediate_values={64: 2.2, 128: math.nan},
        )
    )
    surrogate = built(study, forecast_of(LAW))
    assert math.isinf(surrogate.costs(surrogate.one(64.0, 1.5, {}), LOSS)[0, 0])
    assert math.isfinite(surrogate.costs(surrogate.one(128.0, 0.5, {}), LOSS)[0, 0])


def test_a_contradiction_is_refused_once_the_parameters_are_there() -> None:
    study = optuna.create_study(direction="maximize")
    assert isinstance(build_surrogate(study, Known(SETTINGS, forecast_of(LAW).constant)), Surrogate)
    add_run(study, 64, 0.1)
    with pytest.raises(EvidenceError, match="must minimise, got direction maximize"):
        build_surrogate(study, Known(SETTINGS, forecast_of(LAW).constant))


def test_the_same_evidence_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchopt.search import fit as module

    study = optuna.create_study()
    add_run(study, 64, 0.17)
    calls = []

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return update(*args, **kwargs)

    update = module.fit_paced
    monkeypatch.setattr(module, "fit_paced", counting)
    module._fit.cache_clear()
    known = Known(SETTINGS, forecast_of(LAW).constant)
    for _ in range(3):
        assert isinstance(build_surrogate(study, known), Surrogate)
    assert len(calls) == 1


def test_a_fit_that_fails_leaves_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchopt.search import fit as module

    def failing(*args: object, **kwargs: object) -> object:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(module, "fit_paced", failing)
    module._fit.cache_clear()
    study = optuna.create_study()
    add_run(study, 64, 0.11)
    add_run(study, 128, 0.11)
    assert built(study, forecast_of(LAW)).law.best == LAW.best
    assert build_surrogate(study, Known(SETTINGS, None)) == Thin("the law could not be fitted to the trials (singular)")
    module._fit.cache_clear()


def test_elsewhere_is_no_setting_that_was_tried_already() -> None:
    """A running trial is held against what the sampler would propose in its place."""
    study = optuna.create_study()
    add_run(study, 128, 0.12)
    add_run(study, 64, 0.02, pruned_at=20_000)
    surrogate = built(study, forecast_of(LAW))
    running = next(o for o in surrogate.observations if o.values is None)
    tried = surrogate.one(128.0, 0.12, {})
    untried = surrogate.one(2048.0, 0.002, {})
    both = tried.followed_by(untried)
    seen = prospects_of_running(surrogate, running, both)
    prospects = prospects_of(surrogate, both)
    assert seen is not None
    assert prospects is not None
    costs = np.exp(np.median(prospects.log_costs, axis=0))
    away = away_from_others(surrogate, both, prospects)
    assert away[0] < 0.01
    assert away[1] > 0.9
    index = np.exp(prospects.log_index()) * away
    assert seen.elsewhere_cost == pytest.approx(costs[np.argmax(index)])
    assert seen.elsewhere_index == pytest.approx(index.max())
