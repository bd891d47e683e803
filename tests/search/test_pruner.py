"""The pruner, through Optuna's own doors."""

from __future__ import annotations

import math
import pickle

import optuna
import pytest
from landscape import GOAL, LAW, NAMES, PRICE, forecast_of, losses_of, steps_needed
from optuna.pruners import MedianPruner, NopPruner
from optuna.trial import TrialState

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, milestones
from batchopt.search.judgement import DECISION_KEY, ENDED_KEY, Decision
from batchopt.search.pruner import LEAST_STEPS

FORECAST = forecast_of(LAW)


def started(study: optuna.Study, size: int, rate: float) -> optuna.Trial:
    study.enqueue_trial({"batch_size": size, "lr": rate})
    trial = study.ask()
    trial.suggest_int("batch_size", 1, 2**16, log=True)
    trial.suggest_float("lr", 1e-6, 100.0, log=True)
    return trial


def complete(study: optuna.Study, size: int, rate: float) -> None:
    study.tell(started(study, size, rate), steps_needed(size, rate) * PRICE(size))


def study_of(**given: object) -> optuna.Study:
    return optuna.create_study(pruner=TradeoffPruner(FORECAST, **{"goal": GOAL, **NAMES, **given}))  # type: ignore[arg-type]


def pruned_at(study: optuna.Study, size: int, rate: float, *, points: list[int] | None = None) -> float | None:
    """Share of its own way at which a trial was pruned; None where it got there."""
    trial = started(study, size, rate)
    needed = steps_needed(size, rate) * size
    examples = points or [n for n in milestones(round(needed)) if n >= size]
    for n, loss in zip(examples, losses_of(size, rate, examples, trial.number), strict=True):
        trial.report(loss, n)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return n / needed
    study.tell(trial, needed / size * PRICE(size))
    return None


@pytest.mark.optuna
def test_it_returns_a_builtin_bool() -> None:
    study = study_of()
    assert started(study, 64, 0.15).should_prune() is False
    assert started(study, 8, 1e-5).should_prune() is True


@pytest.mark.optuna
def test_before_the_first_report_it_decides_as_the_check() -> None:
    study = study_of()
    trial = started(study, 8, 1e-5)
    assert trial.should_prune()
    study.tell(trial, state=TrialState.PRUNED)
    decision = Decision.from_json(study.trials[0].user_attrs[DECISION_KEY])
    assert decision.decision == "pruned before compute"


def test_a_loser_ends_early_and_a_winner_never() -> None:
    study = study_of()
    complete(study, 64, 0.05)
    at = pruned_at(study, 64, 0.008)
    assert at is not None
    assert at < 0.4
    decision = Decision.from_json(study.trials[-1].user_attrs[ENDED_KEY])
    assert decision.decision == "pruned while running"
    assert "next to no chance to beat trial 0" in decision.reason
    assert 0 < decision.spent < decision.limit
    assert pruned_at(study, 64, 0.15) is None


def test_near_ties_finish() -> None:
    study = study_of()
    complete(study, 64, 0.15)
    for size, rate in ((64, 0.17), (64, 0.13), (48, 0.15)):
        at = pruned_at(study, size, rate)
        assert at is None or at >= 0.999  # it has spent what the incumbent took, and is not there


def test_nothing_ends_before_its_time() -> None:
    study = study_of()
    complete(study, 64, 0.15)
    trial = started(study, 64, 0.001)
    # Two reports are too few, and three within a quarter of the incumbent's cost too early.
    quarter = 0.25 * steps_needed(64, 0.15) * 64
    for share in (0.1, 0.2, 0.3, 0.5):
        trial.report(2.25 - 0.001 * share, round(share * quarter))
        assert not trial.should_prune()
    trial.report(2.24, round(1.5 * quarter))
    assert trial.should_prune()


def test_nothing_ends_without_a_completed_trial() -> None:
    study = study_of()
    assert pruned_at(study, 64, 0.01) is None


@pytest.mark.optuna
def test_a_loss_that_is_not_finite_ends_a_trial() -> None:
    study = study_of()
    trial = started(study, 64, 0.1)
    trial.report(2.0, 640)
    assert not trial.should_prune()
    trial.report(math.nan, 1280)
    assert trial.should_prune()


def test_a_trial_that_reached_the_goal_is_left_alone() -> None:
    study = study_of()
    complete(study, 64, 0.15)
    trial = started(study, 64, 0.05)
    end = round(steps_needed(64, 0.05) * 64)
    for i, loss in enumerate((1.2, 0.95, 0.88, 0.85, 0.84)):
        trial.report(loss, end + i * 64)
    assert not trial.should_prune()


def test_a_pace_that_the_law_does_not_know() -> None:
    """A trial whose other hyperparameters slow it down threefold is seen from its reports alone."""
    study = study_of()
    complete(study, 64, 0.15)
    trial = started(study, 64, 0.15)
    points = milestones(round(steps_needed(64, 0.15) * 64))
    ended = None
    for n, loss in zip(points, losses_of(64, 0.15, points, 3), strict=True):
        trial.report(loss, 3 * n)
        if trial.should_prune():
            ended = n / points[-1]
            break
    assert ended is not None
    assert ended < 0.4


def test_a_budget_is_judged_by_the_incumbents_loss() -> None:
    goal = LowestLoss(within=30_000.0, of=PRICE)
    study = study_of(goal=goal)
    steps = 30_000.0 / PRICE(64)
    study.tell(started(study, 64, 0.15), float(LAW.losses_at([64.0], [0.15], [steps * 64])[0, 0]))
    half = milestones(round(0.6 * steps * 64))

    def ends(rate: float) -> bool:
        trial = started(study, 64, rate)
        for n, loss in zip(half, losses_of(64, rate, half, trial.number), strict=True):
            trial.report(loss, n)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return True
        study.tell(trial, state=TrialState.PRUNED)
        return False

    assert ends(0.01)
    assert not ends(0.17)


@pytest.mark.optuna
def test_a_trial_that_has_used_up_the_budget_counts() -> None:
    """Reported once before, and once at its end: a poor one ends at the first, and would end here at the second."""
    goal = LowestLoss(within=30_000.0, of=PRICE)
    whole = math.floor(30_000.0 / PRICE(64)) * 64
    for points, expected in (([whole // 2], True), ([whole], False)):
        study = study_of(goal=goal)
        study.tell(started(study, 64, 0.15), float(LAW.losses_at([64.0], [0.15], [whole])[0, 0]))
        trial = started(study, 64, 0.01)
        early = [n for n in milestones(whole // 4) if n >= 64]
        for n, loss in zip([*early, *points], losses_of(64, 0.01, [*early, *points], trial.number), strict=True):
            trial.report(loss, n)
        assert trial.should_prune() is expected


def test_beside_our_sampler_short_runs_come_first() -> None:
    """With no forecast the first trial ends early, before anything has completed; the second study goes on to the
    end."""
    sampler = TradeoffSampler(goal=GOAL, seed=0, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    at = pruned_at(study, 64, 0.01)
    assert at is not None
    assert at < 0.2
    decision = Decision.from_json(study.trials[0].user_attrs[ENDED_KEY])
    assert "Another setting has" in decision.reason


def test_nothing_ends_within_its_first_steps() -> None:
    sampler = TradeoffSampler(goal=GOAL, seed=0, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    trial = started(study, 256, 1e-5)
    for step in range(2, LEAST_STEPS):
        trial.report(2.3, step * 256)
        assert not trial.should_prune()


@pytest.mark.optuna
def test_pruners_that_cannot_be_inside_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="must not be a HyperbandPruner, which finds its brackets only as the study's own"
    ):
        TradeoffPruner(inner=optuna.pruners.HyperbandPruner())
    with pytest.raises(ValueError, match="must not be a WilcoxonPruner"):
        TradeoffPruner(inner=optuna.pruners.WilcoxonPruner())
    for inner in (
        optuna.pruners.PercentilePruner(25.0),
        optuna.pruners.ThresholdPruner(upper=3.0),
        optuna.pruners.SuccessiveHalvingPruner(),
        optuna.pruners.PatientPruner(MedianPruner(), patience=2),
    ):
        assert started(study_of(inner=inner), 64, 0.15).should_prune() is False


@pytest.mark.optuna
def test_an_inner_pruner_may_end_a_trial_too() -> None:
    class Ender(NopPruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    assert started(study_of(inner=Ender()), 64, 0.15).should_prune() is True
    assert started(study_of(inner=MedianPruner()), 64, 0.15).should_prune() is False
    with pytest.raises(TypeError, match="inner must be an Optuna pruner or None, got 'median'"):
        TradeoffPruner(inner="median")  # type: ignore[arg-type]


def test_goal_and_names_found_nowhere() -> None:
    study = optuna.create_study(pruner=TradeoffPruner())
    with pytest.raises(EvidenceError, match="must be given, or be found in the study"):
        study.ask().should_prune()


def test_a_trial_without_the_parameters_goes_on() -> None:
    trial = study_of().ask()
    assert not trial.should_prune()
    trial.report(1.0, 10)
    assert not trial.should_prune()


@pytest.mark.optuna
def test_it_pickles() -> None:
    pruner = TradeoffPruner(FORECAST, goal=GOAL, **NAMES, inner=MedianPruner())  # type: ignore[arg-type]
    study = optuna.create_study(pruner=pickle.loads(pickle.dumps(pruner)))
    assert started(study, 8, 1e-5).should_prune()


def test_a_loss_of_zero_is_no_error() -> None:
    study = study_of()
    trial = started(study, 64, 0.1)
    trial.report(0.0, 6_400)
    assert not trial.should_prune()


@pytest.mark.optuna
def test_reports_that_go_back_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of()
    trial = started(study, 64, 0.1)
    for examples in (6_400, 12_800, 3_200, 1_600):
        trial.report(2.0, examples)
        trial.should_prune()
    warnings = [record.message for record in caplog.records if record.name == "batchopt.search"]
    assert len(warnings) == 1
    assert "trial 0 reported the loss at 3200 examples after that at 12800" in warnings[0]
