"""The check before compute, through Optuna's own doors."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import optuna
import pytest
from landscape import GOAL, LAW, LOSS, NAMES, PRICE, forecast_of, steps_needed
from optuna.trial import TrialState

from batchopt.errors import EvidenceError
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import Log2, check
from batchopt.search.build import build_surrogate
from batchopt.search.judgement import DECISION_KEY, Decision, bar_of, judge
from batchopt.search.observations import MEMORY_CONSTRAINT
from batchopt.search.settings import Known, StudySettings
from batchopt.search.surrogate import Surrogate

FORECAST = forecast_of(LAW)


def asked(study: optuna.Study, size: int, rate: float) -> optuna.Trial:
    """A trial with these parameters."""
    study.enqueue_trial({"batch_size": size, "lr": rate})
    trial = study.ask()
    trial.suggest_int("batch_size", 1, 2**16, log=True)
    trial.suggest_float("lr", 1e-6, 100.0, log=True)
    return trial


def decided(
    study: optuna.Study, size: int, rate: float, forecast: Forecast | None = FORECAST, **given: object
) -> Decision:
    """Ask for one trial with these parameters, check it, and tell what came of it."""
    trial, state = asked(study, size, rate), TrialState.FAIL
    try:
        check(trial, forecast, **{"goal": GOAL, **NAMES, **given})  # type: ignore[arg-type]
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    study.tell(trial, state=state)
    decision = Decision.from_json(study.trials[-1].user_attrs[DECISION_KEY])
    assert decision.rejected == (state == TrialState.PRUNED)
    return decision


def complete(study: optuna.Study, size: int, rate: float) -> float:
    """A trial that ran to the goal."""
    value = steps_needed(size, rate) * PRICE(size)
    study.tell(asked(study, size, rate), value)
    return value


def test_a_fixed_or_frozen_trial_is_left_alone() -> None:
    fixed = optuna.trial.FixedTrial({"batch_size": 1, "lr": 99.0})
    check(fixed)
    check(fixed, FORECAST, goal=GOAL, **NAMES)
    study = optuna.create_study()
    complete(study, 64, 0.1)
    check(study.best_trial)


def test_a_good_setting_passes_and_a_hopeless_one_does_not() -> None:
    study = optuna.create_study()
    good = decided(study, 64, 0.15)
    bad = decided(study, 8, 1e-5)
    assert good.decision == "accepted"
    assert bad.decision == "pruned before compute"
    assert "of the best predicted setting" in bad.reason
    assert good.excess < 0 < bad.excess
    assert [trial.constraints["batchopt"] > 0 for trial in study.trials] == [False, True]
    assert study.trials[1].params == {"batch_size": 8, "lr": 1e-5}
    assert json.loads(study.trials[1].user_attrs[DECISION_KEY])["reason"] == bad.reason


def test_the_worse_the_larger_the_constraint() -> None:
    study = optuna.create_study()
    excesses = [decided(study, 64, rate).excess for rate in (0.01, 0.003, 0.001, 0.0003)]
    assert excesses == sorted(excesses)
    assert excesses[-1] > 0


def test_an_incumbent_is_a_tighter_bar_than_a_prediction() -> None:
    study = optuna.create_study()
    setting = (64, 0.01)
    first = decided(study, *setting)
    assert not first.rejected
    best = complete(study, 64, 0.15)
    complete(study, 128, 0.25)
    complete(study, 32, 0.1)
    decision = decided(study, 64, 0.001)
    assert decision.rejected
    assert decision.incumbent == 1
    assert decision.limit == pytest.approx(1.15 * best)
    assert decision.limit < 0.5 * (first.limit or 0.0)
    assert f"against {best:.3g} of trial 1" in decision.reason


def test_nothing_is_pruned_on_an_unresolved_forecast() -> None:
    vague = forecast_of(LAW, spread=3.0)
    decision = decided(optuna.create_study(), 8, 1e-5, vague)
    assert decision.decision == "accepted"
    assert "unresolved" in decision.reason


def test_nothing_is_pruned_without_evidence() -> None:
    study = optuna.create_study()
    decision = decided(study, 8, 1e-6, None)
    assert decision == Decision(
        "accepted",
        "Not judged: no forecast says how the goal is reached, and no trial has reported three losses yet.",
    )
    assert study.trials[0].constraints == {"batchopt": 0.0}


def test_nothing_is_pruned_where_the_goal_is_beyond_the_law() -> None:
    decision = decided(optuna.create_study(), 8, 1e-6, goal=ReachLoss(1e-9, least=PRICE))
    assert decision.decision == "accepted"
    assert "no forecast says how the goal is reached" in decision.reason


def test_nothing_is_pruned_on_a_law_that_completed_trials_deny() -> None:
    settings = StudySettings(GOAL, "batch_size", False, "lr")
    surrogate = build_surrogate(optuna.create_study(), Known(settings, FORECAST.constant))
    assert isinstance(surrogate, Surrogate)
    assert judge(surrogate, bar_of(surrogate), 8, 1e-5, {}).rejected
    denied = replace(surrogate, misfit=math.inf)
    decision = judge(denied, bar_of(denied), 8, 1e-5, {})
    assert decision.reason == "Accepted: the law does not explain the trials that completed."


def test_the_bar_gives_way_by_as_much_as_the_law_missed() -> None:
    settings = StudySettings(GOAL, "batch_size", False, "lr")
    surrogate = build_surrogate(optuna.create_study(), Known(settings, FORECAST.constant))
    assert isinstance(surrogate, Surrogate)
    sharp, blunt = (judge(s, bar_of(s), 8, 1e-5, {}) for s in (surrogate, replace(surrogate, misfit=math.log(3.0))))
    assert sharp.optimistic == pytest.approx(3.0 * (blunt.optimistic or 0.0))


def test_a_batch_beyond_memory_is_pruned_with_and_without_a_law() -> None:
    limited = forecast_of(LAW, step_cost=replace(PRICE, largest_batch_size=512))
    decision = decided(optuna.create_study(), 1024, 0.2, limited)
    assert decision.rejected
    assert "Batch size 1024 does not fit in memory" in decision.reason
    study = optuna.create_study()
    trial = asked(study, 256, 0.1)
    trial.set_constraint(MEMORY_CONSTRAINT, 1.0)
    study.tell(trial, state=TrialState.PRUNED)
    assert decided(study, 256, 0.1, None).rejected
    assert not decided(study, 255, 0.1, None).rejected


def test_what_is_left_out_is_read_from_the_study() -> None:
    study = optuna.create_study()
    decided(study, 64, 0.15)
    trial = asked(study, 8, 1e-5)
    with pytest.raises(optuna.TrialPruned, match="Predicted to take at best"):
        check(trial)


def test_goal_and_names_found_nowhere() -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(EvidenceError, match="goal and batch_size and learning_rate must be given"):
        check(trial, FORECAST)


def test_a_trial_without_the_parameters_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    trial = optuna.create_study().ask()
    trial.suggest_int("batch_size", 8, 64)
    check(trial, FORECAST, goal=GOAL, **NAMES)
    assert "Call check after both were suggested" in caplog.text
    assert (
        "the study's parameters are 'batch_size' and 'lr', and the trial has suggested 'batch_size'"
        in (trial.user_attrs[DECISION_KEY])
    )


def test_checking_twice_is_once(recwarn: pytest.WarningsRecorder) -> None:
    trial = optuna.create_study().ask()
    trial.suggest_int("batch_size", 64, 64)
    trial.suggest_float("lr", 0.15, 0.15)
    check(trial, FORECAST, goal=GOAL, **NAMES)
    check(trial)
    assert not [warning for warning in recwarn if "constraint" in str(warning.message)]


def test_exponents_and_budgets() -> None:
    study = optuna.create_study()
    goal = LowestLoss(within=30_000.0, of=PRICE)
    names = {"batch_size": Log2("k"), "learning_rate": "lr"}
    for exponent, rate, rejected in ((6, 0.15, False), (3, 1e-5, True), (15, 0.2, True)):
        study.enqueue_trial({"k": exponent, "lr": rate})
        trial = study.ask()
        trial.suggest_int("k", 0, 16)
        trial.suggest_float("lr", 1e-6, 100.0, log=True)
        if rejected:
            with pytest.raises(optuna.TrialPruned, match="to loss"):
                check(trial, FORECAST, goal=goal, **names)  # type: ignore[arg-type]
        else:
            check(trial, FORECAST, goal=goal, **names)  # type: ignore[arg-type]


def test_two_objectives_prune_what_is_dominated_in_both() -> None:
    goal = ReachLoss(LOSS, least=("steps", "examples"))
    study = optuna.create_study(directions=["minimize", "minimize"])
    for size, rate in ((64, 0.15), (256, 0.25), (32, 0.1)):
        steps = steps_needed(size, rate)
        study.tell(asked(study, size, rate), [steps, steps * size])

    def rejected(size: int, rate: float) -> bool:
        return decided(study, size, rate, goal=goal).rejected

    assert not rejected(2048, 0.3)  # fewest steps
    assert not rejected(16, 0.06)  # fewest examples
    assert rejected(64, 0.005)
