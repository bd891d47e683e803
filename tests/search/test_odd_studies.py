"""Studies that are not what they are taken for: a clear error after the trial, or a warning, and the study goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from landscape import (
    BEST,
    GOAL,
    LAW,
    LOSS,
    NAMES,
    PRICE,
    SETTINGS,
    Objective,
    completed_values,
    forecast_of,
    steps_needed,
)
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, check, explain, sampler
from batchopt.search.judgement import DECISION_KEY, ENDED_KEY, FILLS_SPACE, PROPOSAL_KEY
from batchopt.search.ledger import seen_in
from batchopt.search.observations import MOST_CURVES
from batchopt.search.proposal import propose

optuna.logging.set_verbosity(optuna.logging.WARNING)
FORECAST = forecast_of(LAW)
SPACE = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(0.0, 10.0)}


def sampler_of(**given: Any) -> TradeoffSampler:
    return TradeoffSampler(**{"forecast": FORECAST, "goal": GOAL, "seed": 0, **NAMES, **given})


def study_of(name: str, **given: Any) -> optuna.Study:
    return optuna.create_study(study_name=name, sampler=sampler_of(**given), pruner=TradeoffPruner())


def warned_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("batchopt")]


@pytest.mark.optuna
def test_a_study_that_maximises_is_refused_after_its_first_trial() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler_of())
    with pytest.raises(EvidenceError, match="the study must minimise, got direction maximize: batchopt reads"):
        study.optimize(Objective(use_check=False, report=False), n_trials=3)
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE


@pytest.mark.optuna
def test_nothing_is_left_running_where_a_study_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Under ask with distributions all is sampled before the objective begins: nothing may be raised there."""
    study = optuna.create_study(study_name="upside down", direction="maximize", sampler=sampler_of())
    for _ in range(3):
        trial = study.ask(SPACE)
        with pytest.raises(EvidenceError, match="must minimise"):
            study.tell(trial, 1.0)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    (message,) = warned_of(caplog)
    assert message.startswith("Study upside down: the base sampler chooses, because the study must minimise")


def test_another_goal_than_the_study_was_begun_with_is_refused() -> None:
    study = study_of("another goal")
    study.tell(study.ask(SPACE), 3.0 * BEST)
    study.sampler = sampler_of(goal=ReachLoss(2 * LOSS, least=PRICE))
    with pytest.raises(EvidenceError, match="goal must be the one that the study was started with"):
        study.optimize(lambda trial: 3.0, n_trials=1)
    with pytest.raises(EvidenceError, match="goal must be the one that the study was started with"):
        study.tell(study.ask(SPACE), 1.0)
    assert all(trial.state.is_finished() for trial in study.trials)


def odd_rate(study: optuna.Study) -> None:
    study.enqueue_trial({"batch_size": 64, "lr": 0.0})
    trial = study.ask(SPACE)
    check(trial)
    trial.report(2.0, 6_400)
    assert not trial.should_prune()
    study.tell(trial, 3.0)


def odd_report(study: optuna.Study) -> None:
    trial = study.ask(SPACE)
    trial.report(-0.5, 6_400)
    assert not trial.should_prune()
    study.tell(trial, 3.0)


def odd_value(study: optuna.Study) -> None:
    study.tell(study.ask(SPACE), -2.0)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (odd_rate, "is left out: the learning-rate parameter must hold a positive number, got 0.0"),
        (odd_report, "is left out: a reported loss must be positive, got -0.5"),
        (odd_value, "does not count: it must be positive, got -2.0. batchopt reads the objective as the cost"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_one_odd_trial_does_not_stop_a_study(odd: Any, message: str, at: int, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(f"{odd.__name__} at {at}")
    for number in range(8):
        if number == at:
            odd(study)
        else:
            trial = study.ask(SPACE)
            size = trial.params["batch_size"]
            study.tell(trial, steps_needed(size, trial.params["lr"]) * PRICE(size))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert min(value for value in completed_values(study) if value > 3.0) < 1.3 * BEST
    assert sum(message in line for line in warned_of(caplog)) == 1


def test_a_loss_of_zero_is_the_value_of_a_trial_that_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("nothing left", goal=LowestLoss(within=20_000.0, of=PRICE))
    for value in (0.9, 0.0, 0.8):
        study.tell(study.ask(SPACE), value)
    study.ask(SPACE)
    assert "must be positive, got 0.0" in "".join(warned_of(caplog))
    assert "minimised: return it as it is, not its logarithm and no reward." in "".join(warned_of(caplog))


@pytest.mark.parametrize("size", [64.0, np.int64(64)])
@pytest.mark.optuna
def test_what_is_enqueued_may_be_any_whole_number(size: Any) -> None:
    study = study_of("enqueued")
    study.enqueue_trial({"batch_size": size})
    study.optimize(Objective(report=False), n_trials=1)
    best = LAW.best_steps([64.0], LOSS)[1][0, 0]
    assert study.trials[0].params["batch_size"] == 64
    assert 0.3 < study.trials[0].params["lr"] / best < 3.0


def test_names_that_the_objective_does_not_suggest(caplog: pytest.LogCaptureFixture) -> None:
    def objective(trial: optuna.Trial) -> float:
        size = trial.suggest_int("bs", 8, 2048, log=True)
        return steps_needed(size, trial.suggest_float("rate", 1e-3, 10.0, log=True)) * PRICE(size)

    study = study_of("other names")
    study.optimize(objective, n_trials=12)
    twin = optuna.create_study(sampler=TPESampler(seed=0))
    twin.optimize(objective, n_trials=12)
    assert [trial.params for trial in study.trials] == [trial.params for trial in twin.trials]
    (message,) = warned_of(caplog)
    assert "expects the parameters 'batch_size' and 'lr', but its trials have 'bs', 'rate', so the law" in message


@pytest.mark.parametrize("alone", ["batch_size", "lr"])
@pytest.mark.optuna
def test_one_of_the_two_alone_is_the_base_samplers(alone: str) -> None:
    class Marked(RandomSampler):
        def sample_independent(self, *_: Any) -> Any:
            return 17

    study = study_of("alone", base=Marked())
    for _ in range(3):
        trial = study.ask({alone: SPACE[alone]})
        study.tell(trial, 5.0)
    assert [trial.params[alone] for trial in study.trials[1:]] == [17, 17]


@pytest.mark.optuna
def test_values_that_a_wrapper_holds_are_what_is_proposed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, Any]] = []

    def watched(surrogate: Any, chosen: Mapping[str, Any], *rest: Any) -> Any:
        seen.append(chosen)
        return propose(surrogate, chosen, *rest)

    monkeypatch.setattr(sampler, "propose", watched)
    study = study_of("held")
    space = {**SPACE, "decay": FloatDistribution(0.0, 1.0)}
    trial = study.ask(space)
    study.tell(trial, 3.0 * BEST)
    study.sampler = PartialFixedSampler({"decay": 0.25}, study.sampler)
    seen.clear()
    study.ask(space)
    assert seen == [{"decay": 0.25}]


@pytest.mark.parametrize("held", [{"batch_size": 8}, {"lr": 0.01}])
def test_beside_a_held_parameter_the_proposal_is_told_and_its_spread_not_refused(held: dict[str, Any]) -> None:
    study = study_of("beside a held one")
    study.optimize(Objective(every=4), n_trials=2)
    study.sampler = PartialFixedSampler(held, study.sampler)
    study.optimize(Objective(every=4), n_trials=6)
    assert all(PROPOSAL_KEY in trial.user_attrs for trial in study.trials)
    assert study.trials[7].user_attrs[PROPOSAL_KEY] == FILLS_SPACE
    assert study.trials[7].last_step is not None  # it was trained


@pytest.mark.optuna
def test_every_attribute_of_a_trial_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("once")
    written: Counter[tuple[int, str]] = Counter()
    write = study._storage.set_trial_user_attr

    def counted(trial_id: int, key: str, value: Any) -> None:
        written[trial_id, key] += 1
        write(trial_id, key, value)

    monkeypatch.setattr(study._storage, "set_trial_user_attr", counted)
    study.enqueue_trial({"batch_size": 8})
    study.optimize(Objective(every=4), n_trials=10)
    assert {key for _, key in written} == {PROPOSAL_KEY, DECISION_KEY, ENDED_KEY}
    assert set(written.values()) == {1}


@pytest.mark.optuna
def test_two_objectives_are_told_as_a_front_and_what_waits_has_not_begun() -> None:
    goal = ReachLoss(LOSS, least=("steps", "examples"))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler_of(goal=goal))
    for size in (16, 64, 512, 16):
        study.enqueue_trial({"batch_size": size, "lr": 0.1})
    for _ in range(3):
        trial = study.ask(SPACE)
        steps = steps_needed(trial.params["batch_size"], 0.1)
        study.tell(trial, (steps, steps * trial.params["batch_size"]))
    lines = explain(study)
    assert "3 trials: 3 completed" in lines[1]
    text = "\n".join(lines)
    assert "Trials that no other beats in both steps and examples: 3." in text
    assert "The fewest steps: trial 2" in text
    assert "The fewest examples: trial 0" in text


def test_of_many_running_trials_the_longest_are_fitted_and_the_one_that_asks() -> None:

    study = optuna.create_study()
    for number in range(40):
        trial = study.ask(SPACE)
        trial.report(2.0, 100 + number)
    seen = seen_in(study, SETTINGS, asking=3)
    assert [run.number for run in seen.fitted] == [3, *range(40 - MOST_CURVES + 1, 40)]
    assert len(seen.told) == 40


@pytest.mark.parametrize("at_epochs", [True, False])
def test_reports_at_epochs_are_told_from_reports_at_examples(at_epochs: bool, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(f"epochs {at_epochs}")
    for _ in range(3):
        trial = study.ask(SPACE)
        size = trial.params["batch_size"]
        steps = steps_needed(size, trial.params["lr"])
        for share in (0.25, 0.5, 1.0):
            trial.report(LOSS / share, round(4 * share if at_epochs else share * steps * size))
        study.tell(trial, steps * PRICE(size))
    study.ask(SPACE)
    messages = [line for line in warned_of(caplog) if "Report at the examples seen" in line]
    assert len(messages) == at_epochs
    assert all("trial 1, as one before: its last report is at 4 examples, within its first" in m for m in messages)


@pytest.mark.optuna
def test_a_check_finds_what_the_pruner_was_given() -> None:
    pruner = TradeoffPruner(FORECAST, goal=GOAL, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=TPESampler(seed=0), pruner=pruner)
    study.enqueue_trial({"batch_size": 8, "lr": 1e-5})
    trial = study.ask(SPACE)
    with pytest.raises(optuna.TrialPruned):
        check(trial)


def test_a_trial_that_has_cost_what_the_best_did_ends_at_its_next_report() -> None:
    study = study_of("at once")
    study.tell(study.ask(SPACE), BEST)
    trial = study.ask(SPACE)
    size = trial.params["batch_size"]
    trial.report(1.5 * LOSS, round(0.9 * BEST / PRICE(size) * size))
    assert not trial.should_prune()
    trial.report(1.4 * LOSS, round(1.1 * BEST / PRICE(size) * size))
    assert trial.should_prune()
    study.tell(trial, state=TrialState.PRUNED)
    assert "and not at the goal: trial 0 took" in study.trials[1].user_attrs[ENDED_KEY]


@pytest.mark.parametrize(
    ("goal", "directions"),
    [
        (ReachLoss(LOSS, least=("steps", "examples")), ["minimize"]),
        (GOAL, ["minimize", "minimize"]),
        (GOAL, ["maximize"]),
    ],
)
def test_a_goal_of_other_objectives_is_refused_and_leaves_nothing_running(goal: ReachLoss, directions: Any) -> None:
    study = optuna.create_study(directions=directions, sampler=sampler_of(goal=goal))
    for _ in range(3):
        trial = study.ask(SPACE)
        with pytest.raises(EvidenceError, match=r"must minimise|needs a study of"):
            study.tell(trial, [3.0] * len(directions))
    with pytest.raises(EvidenceError, match=r"must minimise|needs a study of"):
        explain(study)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_batch_beyond_all_numbers_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("beyond all numbers")
    for _ in range(3):
        study.enqueue_trial({"batch_size": 2**64})
        trial = study.ask(SPACE)
        study.tell(trial, 1e6)
    study.ask(SPACE)
    assert sum("is left out: the batch-size parameter must hold" in line for line in warned_of(caplog)) == 1


def test_a_fault_of_ours_does_not_stop_a_study(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of("a fault")
    study.tell(study.ask(SPACE), 2.0 * BEST)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(sampler, "propose", broken)
    for _ in range(2):
        study.tell(study.ask(SPACE), 2.0 * BEST)
    (message,) = [line for line in warned_of(caplog) if "a fault in batchopt" in line]
    assert "ZeroDivisionError" in message


@pytest.mark.optuna
def test_a_reason_is_kept_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("asked again")
    study.enqueue_trial({"batch_size": 8, "lr": 1e-5})
    trial = study.ask(SPACE)
    written: Counter[str] = Counter()
    write = study._storage.set_trial_user_attr

    def counted(trial_id: int, key: str, value: Any) -> None:
        written[key] += 1
        write(trial_id, key, value)

    monkeypatch.setattr(study._storage, "set_trial_user_attr", counted)
    for _ in range(3):
        with pytest.raises(optuna.TrialPruned):
            check(trial)
    trial.report(float("nan"), 640)
    assert all(trial.should_prune() for _ in range(3))
    assert written == {DECISION_KEY: 1, ENDED_KEY: 1}


@pytest.mark.parametrize("damaged", [5, "{}", None, [1]])
@pytest.mark.optuna
def test_damaged_reasons_are_passed_over(damaged: Any) -> None:
    study = study_of("damaged")
    study.enqueue_trial({"batch_size": 8, "lr": 1e-5})
    trial = study.ask(SPACE)
    with pytest.raises(optuna.TrialPruned):
        check(trial)
    trial.set_user_attr(ENDED_KEY, damaged)
    study.tell(trial, state=TrialState.PRUNED)
    assert "1 pruned before compute" in explain(study)[1]


def test_healthy_trials_are_not_taken_for_misread(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("healthy")
    for number in range(3):
        trial = study.ask(SPACE)
        size = trial.params["batch_size"]
        steps = steps_needed(size, trial.params["lr"])
        trial.report(2.0, size)
        trial.report(float("nan") if number else 1.0, round(steps * size))
        study.tell(trial, steps * PRICE(size))
    lbfgs = study.ask({"batch_size": SPACE["batch_size"], "lbfgs": IntDistribution(0, 1)})
    study.tell(lbfgs, BEST)
    study.ask(SPACE)
    assert warned_of(caplog) == []


def test_both_held_by_a_wrapper_a_third_is_proposed_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("both held")
    space = {**SPACE, "decay": FloatDistribution(0.0, 1.0)}
    study.tell(study.ask(space), 3.0 * BEST)
    seen: list[Mapping[str, Any]] = []

    def watched(surrogate: Any, chosen: Mapping[str, Any], *rest: Any) -> Any:
        seen.append(chosen)
        return propose(surrogate, chosen, *rest)

    monkeypatch.setattr(sampler, "propose", watched)
    study.sampler = PartialFixedSampler({"batch_size": 64, "lr": 0.1}, study.sampler)
    study.ask(space)
    assert seen == [{"batch_size": 64, "lr": 0.1}]


def test_ranges_that_are_none_are_left_to_the_base_sampler() -> None:
    study = study_of("odd ranges")
    for _ in range(3):
        trial = study.ask()
        size = trial.suggest_int("batch_size", 0, 64)
        trial.suggest_float("lr", -1.0, 1.0)
        check(trial)
        trial.report(2.0, max(1, size))
        assert not trial.should_prune()
        study.tell(trial, 5.0)
    assert "The law makes no predictions yet: the learning-rate parameter must be a positive float" in explain(study)[2]


def test_a_loss_that_is_returned_for_a_cost_is_told(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("losses returned", goal=ReachLoss(LOSS))
    for loss in (0.8, 0.85, 0.7):
        trial = study.ask(SPACE)
        trial.report(loss, 100 * trial.params["batch_size"])
        study.tell(trial, loss)
    study.ask(SPACE)
    (message,) = warned_of(caplog)
    assert "the value of trial 0 does not count: 0.8 is a loss that it reported. " in message
    assert "the goal of the study is LowestLoss(within=" in message
    assert "batchopt reads the objective as the cost (seconds)" in message
