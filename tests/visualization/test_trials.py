from __future__ import annotations

import optuna
import pytest
from visualization.samples import add_trial, study_of

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.parameters import Log2
from batchopt.search.settings import SETTINGS_KEY, StudySettings
from batchopt.search.summary import summarise
from batchopt.step_cost import StepCost
from batchopt.visualization.trials import study_data


def test_fates_agree_with_the_studys_own_summary() -> None:
    study = study_of()
    data, summary = study_data(study), summarise(study)
    assert len(data.trials) == summary.proposed == 24
    assert data.count("completed") == summary.completed == 12
    # A picture shows whether a trial had begun, the summary who ended it; these hold no decision of ours.
    assert data.count("pruned before compute") == data.count("pruned while running") == 5
    assert summary.pruned_otherwise == 10
    assert data.count("running") == data.count("failed") == 1


def test_a_trial_that_ran_out_of_memory_had_begun() -> None:
    study = study_of(0)
    trial = study.ask()
    trial.suggest_int("bs", 8, 64)
    trial.suggest_float("lr", 0.1, 1.0)
    trial.set_constraint("batchopt:memory", 1.0)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert study_data(study).count("pruned while running") == summarise(study).pruned_otherwise == 1


def test_settings_values_and_reasons_are_read() -> None:
    trials = {trial.number: trial for trial in study_data(study_of()).trials}
    assert (trials[0].batch_size, trials[0].learning_rate, trials[0].examples) == (8.0, 0.02, 20_000)
    assert trials[13].reason == "predicted <b>40 s</b>, best is 3 s"
    assert (trials[13].value, trials[13].examples) == (None, 0)


def test_the_best_and_the_examples_are_the_studys() -> None:
    study = study_of()
    data = study_data(study)
    assert data.best == (study.best_trial.number,)
    assert data.examples == sum(trial.last_step or 0 for trial in study.trials)


def test_trials_come_in_the_order_in_which_they_ended() -> None:
    study = study_of(3)
    late = study.trials[0]
    assert [trial.number for trial in study_data(study).trials][:3] == [0, 1, 2]
    assert late.datetime_complete is not None
    assert study_data(study).trials[-1].fate == "running"


def test_a_damaged_decision_gives_no_reason() -> None:
    study = study_of(0)
    add_trial(study, 8, 0.1, "PRUNED", reason="fine")
    bad = study.trials[0]
    for text in ("{", "[1]", "7"):
        bad.user_attrs["batchopt:decision"] = text
        study.add_trial(bad)
    assert [trial.reason for trial in study_data(study).trials] == ["fine", "", "", ""]


def test_usual_names_are_found_without_settings() -> None:
    study = optuna.create_study()
    add_trial(study, 5, 0.1, "COMPLETE", value=1.0, names=("log2_batch_size", "learning_rate"))
    (trial,) = study_data(study).trials
    assert (trial.batch_size, trial.learning_rate) == (32.0, 0.1)


def test_other_names_are_asked_for() -> None:
    study = optuna.create_study()
    add_trial(study, 5, 0.1, "COMPLETE", value=1.0, names=("size", "rate"))
    with pytest.raises(EvidenceError, match=r"which parameter is the batch size.*size, rate.*batch_size="):
        study_data(study)
    (trial,) = study_data(study, batch_size="size", learning_rate="rate").trials
    assert trial.batch_size == 5.0
    (trial,) = study_data(study, batch_size=Log2("size"), learning_rate="rate").trials
    assert trial.batch_size == 32.0


def test_a_trial_without_settings_has_no_place() -> None:
    study = study_of(1)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    last = max(study_data(study).trials, key=lambda trial: trial.number)
    assert not last.placed


def test_several_objectives_have_a_front_and_no_value() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    for values in ([1.0, 5.0], [2.0, 1.0], [3.0, 6.0]):
        trial = optuna.trial.create_trial(
            values=values, params={"lr": 0.1}, distributions={"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}
        )
        study.add_trial(trial)
    data = study_data(study, batch_size="bs")
    assert sorted(data.best) == [0, 1]
    assert [trial.value for trial in data.trials] == [None] * 3


@pytest.mark.parametrize(
    ("goal", "quantity"),
    [
        (ReachLoss(0.5), "cost (seconds)"),
        (ReachLoss(0.5, StepCost(1.0, 2.0, unit="EUR")), "cost (EUR)"),
        (ReachLoss(0.5, ("steps", "examples")), "cost (steps and examples)"),
        (LowestLoss(10.0), "loss"),
    ],
)
def test_the_value_is_named_after_the_goal(goal: ReachLoss | LowestLoss, quantity: str) -> None:
    study = study_of(0, settings=False)
    assert study_data(study).quantity == "objective"
    study.set_user_attr(SETTINGS_KEY, StudySettings(goal, "bs", False, "lr").to_json())
    assert study_data(study).quantity == quantity
