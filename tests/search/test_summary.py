"""What a study did, told."""

from __future__ import annotations

import copy
import math

import optuna
import pytest
from landscape import GOAL, LAW, NAMES, Objective, forecast_of
from optuna.trial import TrialState

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, check, explain, summarise
from batchopt.search.judgement import CHANCE, DECISION_KEY, ENDED_KEY, PROPOSAL_KEY, Decision
from batchopt.search.observations import MEMORY_CONSTRAINT
from batchopt.search.summary import _misfit_line, decision_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def run() -> optuna.Study:
    """Three completed trials, two pruned before compute and one later, a failed one and one out of memory."""
    sampler = TradeoffSampler(forecast_of(LAW), goal=GOAL, seed=0, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    for size, rate in ((64, 0.12), (64, 0.15), (64, 0.18), (8, 1e-4), (2048, 1e-4)):
        study.enqueue_trial({"batch_size": size, "lr": rate})
    study.optimize(Objective(every=2), n_trials=5)
    study.enqueue_trial({"batch_size": 64, "lr": 0.01})
    study.optimize(Objective(use_check=False, every=2), n_trials=1)
    study.tell(study.ask(), state=TrialState.FAIL)
    trial = study.ask()
    trial.set_constraint(MEMORY_CONSTRAINT, 1.0)
    study.tell(trial, state=TrialState.PRUNED)
    study.ask()
    return study


@pytest.fixture
def study(run: optuna.Study) -> optuna.Study:
    """A copy, that a test may go on with."""
    return copy.deepcopy(run)


def test_counts(study: optuna.Study) -> None:
    counts = summarise(study)
    assert (counts.proposed, counts.completed, counts.failed, counts.running) == (9, 3, 1, 1)
    assert (counts.pruned_before_compute, counts.pruned_while_running, counts.pruned_otherwise) == (2, 1, 1)
    decisions = [decision_of(trial) for trial in study.trials[3:6]]
    expected = [
        min(d.predicted, 10.0 * d.limit) - d.spent
        for d in decisions
        if d is not None and d.rejected and d.predicted is not None and d.limit is not None
    ]
    assert counts.saved == pytest.approx(sum(expected))
    assert counts.saved > 0


@pytest.mark.parametrize("unit", ["guessed units", "loss"])
def test_what_is_no_cost_in_the_goals_unit_is_not_saved(study: optuna.Study, unit: str) -> None:
    before = summarise(study).saved
    trial = study.ask()
    decision = Decision("pruned while running", "", predicted=5e6, limit=1e6, spent=1.0, unit=unit)
    trial.set_user_attr(DECISION_KEY, decision.to_json())
    study.tell(trial, state=TrialState.PRUNED)
    assert summarise(study).saved == before


def test_a_trial_out_of_memory_was_not_spared_by_a_prediction(study: optuna.Study) -> None:
    before = summarise(study)
    trial = study.ask()
    trial.set_constraint(MEMORY_CONSTRAINT, 1.0)
    study.tell(trial, state=TrialState.PRUNED)
    after = summarise(study)
    assert after.pruned_before_compute == before.pruned_before_compute
    assert after.pruned_otherwise == before.pruned_otherwise + 1


def test_explained(study: optuna.Study) -> None:
    lines = explain(study)
    text = "\n".join(lines)
    assert lines[0] == "batchopt reads the objective as the cost (example times) to reach loss 0.9, minimised."
    assert lines[1] == (
        "9 trials: 3 completed, 2 pruned before compute, 1 pruned while running, 1 ended by the objective or another "
        "pruner, 1 failed, 1 not finished."
    )
    assert "Best: trial" in text
    assert "Predicted best: batch size" in text
    assert " example times. A step costs 64 example times plus 1 example times an example." in text
    assert "The law's predictions of completed trials are off by a factor of 1.0" in text
    assert "Pruning saved" in text
    assert "The forecast of a probe was the starting point." in text
    assert "Trial 3, pruned before compute: Predicted to take at best" in text


def reasons(study: optuna.Study, last: int | None) -> list[str]:
    return [line for line in explain(study, last) if line.startswith(("Trial ", "Why trials"))]


def test_reasons_stand_by_their_trials_in_order_and_say_how_many_are_not_shown() -> None:
    study = optuna.create_study(sampler=TradeoffSampler(goal=GOAL, seed=0, **NAMES))  # type: ignore[arg-type]
    for number in range(7):
        trial = study.ask()
        trial.set_user_attr(PROPOSAL_KEY, f"why {number}")
        if number % 2:
            trial.set_user_attr(ENDED_KEY, Decision("pruned while running", f"end {number}").to_json())
        study.tell(trial, state=TrialState.PRUNED)
    every = [
        line
        for n in range(7)
        for line in [f"Trial {n}, proposed: why {n}", *([f"Trial {n}, pruned while running: end {n}"] * (n % 2))]
    ]
    assert reasons(study, None) == reasons(study, 7) == every
    for last in (1, 5):
        head, *lines = reasons(study, last)
        assert head.startswith(f"Why trials were proposed and ended, the last {last} of 7; more by explain(study, last")
        assert "batchopt explain study.db --last N or --all" in head
        assert lines == [line for line in every if int(line.partition(",")[0].split()[1]) >= 7 - last]
    assert explain(study) == explain(study, 5)
    with pytest.raises(ValueError, match="last must be at least 1, got 0"):
        explain(study, 0)


def test_a_study_with_nothing_to_tell() -> None:
    with pytest.raises(EvidenceError, match="must be given, or be found in the study"):
        explain(optuna.create_study())
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_int("batch_size", 8, 64)
    trial.suggest_float("lr", 0.1, 1.0)
    check(trial, goal=GOAL, **NAMES)  # type: ignore[arg-type]
    lines = explain(study)
    assert "The law makes no predictions yet: no forecast says how" in lines[2]
    assert lines[3] == "No probe: trials alone taught the law."


def test_a_decision_that_is_damaged_is_none() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr(DECISION_KEY, "{}")
    study.tell(trial, 1.0)
    assert decision_of(study.trials[0]) is None
    assert Decision.from_json(Decision("accepted", "x", predicted=math.inf).to_json()).predicted == math.inf


def test_a_large_miss_says_what_to_look_at() -> None:
    assert _misfit_line(math.log(4.0)).endswith("factor of 4.00.")
    assert "reports at examples seen, not at epochs" in _misfit_line(math.log(8.0))


def test_where_none_has_completed_the_lowest_loss_stands_beside_the_goal() -> None:
    study = optuna.create_study(sampler=TradeoffSampler(goal=GOAL, seed=0, **NAMES))  # type: ignore[arg-type]
    for losses in ((3.0, 2.5), (2.75, math.inf)):
        trial = study.ask()
        trial.suggest_int("batch_size", 8, 64)
        trial.suggest_float("lr", 0.1, 1.0)
        for step, loss in enumerate(losses, 1):
            trial.report(loss, 640 * step)
        study.tell(trial, state=TrialState.PRUNED)
    assert "The lowest loss that was reported is 2.5, by trial 0; the goal is 0.9." in explain(study)


@pytest.mark.parametrize(
    ("goal", "meaning"),
    [
        (GOAL, "Success is a cost of at most 15% above the least that any setting has, and at least 10% below"),
        (LowestLoss(1e5, "examples"), "Success is to end no worse than the best setting would with a budget 13%"),
    ],
)
def test_success_is_said_where_chances_are(goal: ReachLoss | LowestLoss, meaning: str) -> None:
    study = optuna.create_study(sampler=TradeoffSampler(goal=goal, seed=0, **NAMES))  # type: ignore[arg-type]
    study.tell(study.ask(), state=TrialState.PRUNED)
    assert not any(line.startswith("Success is") for line in explain(study))
    trial = study.ask()
    trial.set_user_attr(PROPOSAL_KEY, f"37% {CHANCE}, for 2 seconds.")
    study.tell(trial, state=TrialState.PRUNED)
    assert any(line.startswith(meaning) for line in explain(study))
