"""Trials as evidence."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
from landscape import GOAL, LOSS, PRICE, SETTINGS, observation, steps_needed
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.search.decay import Decay
from batchopt.search.observations import (
    MEMORY_CONSTRAINT,
    as_branch,
    check_objective,
    memory_bound,
    observe_one,
    reading_of,
    unstable_settings,
)
from batchopt.search.settings import StudySettings

RANGES = {"batch_size": IntDistribution(0, 4096), "lr": FloatDistribution(0.0, 10.0)}
EXAMPLES = [1_000, 2_000, 4_000, 8_000]


def trial(
    size: int = 64,
    rate: float = 0.1,
    *,
    value: float | None = None,
    reports: dict[int, float] | None = None,
    constraints: dict[str, float] | None = None,
    number: int = 0,
) -> FrozenTrial:
    made = create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        params={"batch_size": size, "lr": rate},
        distributions=RANGES,
        intermediate_values=reports or {},
        constraints=constraints,
    )
    made.number = number
    return made


def test_reports_become_a_curve_up_to_the_first_loss_that_is_not_finite() -> None:
    seen = observe_one(trial(reports={200: 1.5, 100: 2.0, 300: math.nan, 400: 1.0}), SETTINGS, "study")
    assert seen is not None
    assert seen.curve.examples == (100, 200)
    assert seen.diverged
    assert seen.values is None
    assert not seen.usable


def test_a_loss_of_zero_ends_a_curve() -> None:
    seen = observe_one(trial(reports={100: 1.0, 200: 0.0}), SETTINGS, "study")
    assert seen is not None
    assert seen.curve.losses == (1.0,)
    assert not seen.diverged


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (trial(reports={100: 1.0, 200: -0.5}), "a reported loss must be positive, got -0.5"),
        (trial(rate=0.0), "the learning-rate parameter must hold a positive number, got 0.0"),
        (trial(size=0), "the batch-size parameter must hold a whole number of examples, 1 or more, got 0"),
    ],
)
def test_an_odd_trial_is_left_out_and_that_is_said_once(
    odd: FrozenTrial, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert observe_one(odd, SETTINGS, f"odd {why}") is None
    (record,) = caplog.records
    assert record.message.startswith(f"Study odd {why}: trial 0 is left out: {why}")


def test_a_value_that_is_not_positive_is_none() -> None:
    for value in (0.0, -2.0):
        seen = observe_one(trial(value=value, reports={100: 0.5}), SETTINGS, "study")
        assert seen is not None
        assert seen.values is None


def test_a_pruned_trial_has_no_value() -> None:
    # Optuna fills a pruned trial's value with its last report, which is a loss and no cost.
    pruned = trial(reports={100: 0.5})
    pruned.value = 0.5
    seen = observe_one(pruned, SETTINGS, "study")
    assert seen is not None
    assert seen.values is None


def test_an_infinite_value_is_no_crossing() -> None:
    seen = observe_one(trial(value=math.inf), SETTINGS, "study")
    assert seen is not None
    assert seen.values is None


def test_the_value_ends_the_curve_at_the_crossing() -> None:
    steps = steps_needed(64, 0.1)
    seen = observation(0, 64, 0.1, examples=EXAMPLES, values=(steps * PRICE(64),))
    branch = as_branch(seen, GOAL, PRICE)
    assert branch is not None
    assert branch.curve.losses[-1] == LOSS
    assert branch.curve.examples[-1] == pytest.approx(steps * 64, rel=1e-3)
    assert branch.outcome == "finished"


def test_a_run_that_only_returned_its_cost_counts_by_its_crossing() -> None:
    branch = as_branch(observation(0, 64, 0.1, values=(1_000 * PRICE(64),)), GOAL, PRICE)
    assert branch is not None
    assert len(branch.curve.examples) == 4
    assert set(branch.curve.losses) == {LOSS}
    assert sum(branch.curve.examples) / 4 == pytest.approx(64_000, rel=1e-3)
    assert as_branch(observation(0, 64, 0.1, values=(1_000.0,)), GOAL, None) is None
    assert as_branch(observation(0, 64, 0.1, examples=EXAMPLES[:2]), GOAL, PRICE) is None


def test_values_of_the_other_goals() -> None:
    two = ReachLoss(LOSS, least=("steps", "examples"))
    branch = as_branch(observation(0, 64, 0.1, values=(1_000.0, 64_000.0)), two, None)
    assert branch is not None
    assert branch.curve.examples[0] == pytest.approx(0.97 * 64_000)
    lowest = LowestLoss(within=128_000.0, of=PRICE)
    branch = as_branch(observation(0, 64, 0.1, examples=EXAMPLES, values=(0.77,)), lowest, PRICE)
    assert branch is not None
    assert (branch.curve.examples[-1], branch.curve.losses[-1]) == (64_000, 0.77)


def test_a_finite_run_acquits_a_learning_rate() -> None:
    hot = observation(0, 64, 0.5, diverged=True)
    fine = observation(1, 32, 0.6, examples=EXAMPLES)
    assert unstable_settings([hot]) == {(64, 0.5)}
    assert unstable_settings([hot, fine]) == set()
    assert unstable_settings([hot, observation(2, 128, 0.6, examples=EXAMPLES)]) == {(64, 0.5)}


def test_memory_is_learned_from_trials_that_ran_out() -> None:
    assert memory_bound(trial(512, constraints={MEMORY_CONSTRAINT: 1.0}), 512) == 511
    assert memory_bound(trial(512, constraints={MEMORY_CONSTRAINT: -1.0}), 512) is None


def settings_of(goal: LossGoal, decay: Decay | None = None) -> StudySettings:
    return replace(SETTINGS, goal=goal, decay=decay)


def test_contradictions_are_refused() -> None:
    two = ReachLoss(LOSS, least=("steps", "examples"))
    with pytest.raises(EvidenceError, match=r"must minimise, got direction maximize: batchopt reads the objective as"):
        check_objective(optuna.create_study(direction="maximize"), settings_of(GOAL))
    with pytest.raises(EvidenceError, match=r"another study by optuna\.create_study\(direction=\"minimize\"\)"):
        check_objective(optuna.create_study(direction="maximize"), settings_of(GOAL))
    with pytest.raises(EvidenceError, match=r"2 objective\(s\), got 1.*\(directions=\[\"minimize\", \"minimize\"\]\)"):
        check_objective(optuna.create_study(), settings_of(two))
    check_objective(optuna.create_study(directions=["minimize", "minimize"]), settings_of(two))


def test_the_objective_in_a_line() -> None:
    assert (
        reading_of(settings_of(GOAL))
        == "batchopt reads the objective as the cost (example times) to reach loss 0.9, minimised"
    )
    assert "loss after 60 s, minimised" in reading_of(settings_of(LowestLoss(60)))
    assert "steps and examples to reach loss 0.9" in reading_of(
        settings_of(ReachLoss(LOSS, least=("steps", "examples")))
    )
    assert "steps / S_min + examples / E_min" in reading_of(settings_of(ReachLoss(LOSS, least="balanced")))


def test_the_objective_of_trials_that_decay() -> None:
    over_budget, own = Decay("wsd", None), Decay("wsd", "length")
    whole = "of the whole horizon of a trial that ends at or below loss 0.9, minimised"
    assert reading_of(settings_of(GOAL, own)) == f"batchopt reads the objective as the cost (example times) {whole}"
    assert f"steps and examples {whole}" in reading_of(settings_of(ReachLoss(LOSS, least=("steps", "examples")), own))
    assert reading_of(settings_of(LowestLoss(60), over_budget)) == reading_of(settings_of(LowestLoss(60)))
    assert "the loss at the end of a trial's horizon" in reading_of(settings_of(LowestLoss(60), own))
