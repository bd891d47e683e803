"""Objectives as people have them: reports at epochs, a validation loss that is returned."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, explain, reports_in_examples
from batchopt.search.ledger import seen_in
from batchopt.search.observations import counts_steps
from batchopt.search.settings import StudySettings

optuna.logging.set_verbosity(optuna.logging.WARNING)
DATA, EPOCHS = 1_000, 8
BATCH_SIZES = {
    "integer": ("batch_size", lambda trial: trial.suggest_int("batch_size", 16, 256, log=True)),
    "categorical": ("batch_size", lambda trial: trial.suggest_categorical("batch_size", [16, 32, 64, 128, 256])),
    "exponent": ("log2_batch_size", lambda trial: 2 ** trial.suggest_int("log2_batch_size", 4, 8)),
}


def objective_of(form: str, *, first: int = 0, best: bool = False) -> Any:
    """A loss that falls with epochs, fastest at one rate for every batch size."""

    def objective(trial: optuna.Trial) -> float:
        size = BATCH_SIZES[form][1](trial)
        rate = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        pace = min(rate / (1e-4 * size), 1e-4 * size / rate)
        losses = []
        for epoch in range(EPOCHS):
            losses.append(2.0 / (1.0 + pace * (epoch + 1) * DATA / (size + 64.0)) + 0.01 * trial.number % 0.007)
            trial.report(losses[-1], epoch + first)
            if trial.should_prune():
                raise optuna.TrialPruned
        return min(losses) if best else losses[-1]

    return objective


def study_of(form: str, goal: ReachLoss | LowestLoss, name: str) -> optuna.Study:
    sampler = TradeoffSampler(goal=goal, batch_size=BATCH_SIZES[form][0], learning_rate="lr", seed=0)
    return optuna.create_study(study_name=name, sampler=sampler, pruner=TradeoffPruner())


def settings_of(form: str, goal: ReachLoss | LowestLoss) -> StudySettings:
    return StudySettings(goal, BATCH_SIZES[form][0], form == "exponent", "lr")


def warned_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("batchopt")]


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", BATCH_SIZES)
def test_epochs_and_losses_under_a_goal_of_costs_are_told_at_once_and_prune_nothing(
    form: str, first: int, best: bool, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(form, ReachLoss(0.2, "examples"), f"{form} {first} {best}")
    study.optimize(objective_of(form, first=first, best=best), n_trials=1)
    (reports,) = warned_of(caplog)
    assert (
        f"the reports of trial 0 are left out: they are at {first}, {first + 1}, {first + 2}, ..., a count" in reports
    )
    assert "hand the objective through batchopt.reports_in_examples" in reports
    study.optimize(objective_of(form, first=first, best=best), n_trials=4)
    _, value = warned_of(caplog)
    assert "the value of trial 0 does not count" in value
    assert 'the goal of the study is LowestLoss(within=..., of="examples")' in value
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    told = seen_in(study, settings_of(form, ReachLoss(0.2, "examples"))).told
    assert len(told) == 5
    assert all(seen.values is None and not seen.curve.examples for seen in told)
    assert any("5 trials are probably misread, like trial 0: its value" in line for line in explain(study))


@pytest.mark.parametrize("form", BATCH_SIZES)
def test_under_a_budget_the_values_count_where_the_reports_do_not(form: str, caplog: pytest.LogCaptureFixture) -> None:
    goal = LowestLoss(EPOCHS * DATA, of="examples")
    study = study_of(form, goal, f"budget {form}")
    study.optimize(objective_of(form), n_trials=4)
    (message,) = warned_of(caplog)
    assert "the reports of trial 0 are left out" in message
    told = seen_in(study, settings_of(form, goal)).told
    assert [seen.values for seen in told] == [(trial.value,) for trial in study.trials]


@pytest.mark.parametrize("form", BATCH_SIZES)
def test_an_objective_as_it_is_reports_at_examples(form: str, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(form, LowestLoss(EPOCHS * DATA, of="examples"), f"in examples {form}")
    study.optimize(reports_in_examples(objective_of(form), lambda epoch, trial: (epoch + 1) * DATA), n_trials=8)
    assert warned_of(caplog) == []
    complete = next(trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    assert list(complete.intermediate_values) == [(epoch + 1) * DATA for epoch in range(EPOCHS)]
    assert study.best_value < 0.2


def test_steps_are_those_of_the_trials_own_batch_size() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("batch_size", [32])
        trial.report(1.0, 10)
        return 1.0

    study = optuna.create_study()
    study.optimize(reports_in_examples(objective, lambda step, trial: step * trial.params["batch_size"]), n_trials=1)
    assert list(study.trials[0].intermediate_values) == [320]


def test_two_reports_or_batches_of_one_say_nothing() -> None:
    study = optuna.create_study()
    trial = study.ask()
    for step in (1, 2, 3):
        assert counts_steps(study.trials[0], 16) is None
        trial.report(1.0, step)
    assert counts_steps(study.trials[0], 16) is not None
    assert counts_steps(study.trials[0], 1) is None
