"""Costs in words that people read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from visualization.samples import plan_of

from batchopt._wording import number, seconds
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.planning.reasons import reasons_for
from batchopt.step_cost import Knee, StepCost
from batchopt.uncertainty import Estimate

PLAN = plan_of()
GOAL = ReachLoss(0.6)


def told(price: StepCost, goal: LossGoal = GOAL) -> str:
    reasons = reasons_for(goal, PLAN.best, PLAN.alternatives, shape="wsd", horizon=90_000, critical=None,
                          segments=PLAN.schedule.segments, relative_cost=1.0, price=price, lowest_observed=0.1,
                          expected_regret=None, rate=None, doubts=())  # fmt: skip
    return " ".join(reasons)


@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        (StepCost(1.21e-3, 6.27e-7), "A step takes 1.21 ms plus 0.627 µs an example; its fixed part is worth 1,930 "),
        (StepCost(2.0, 0.004), "A step takes 2 s plus 4 ms an example; its fixed part is worth 500 examples, so "
         "the best batch size lies near sqrt(critical batch size x 500)."),
        (StepCost(64.0, 1.0, unit="euros"), "A step costs 64 euros plus 1 euros an example; its fixed part is worth"),
        (StepCost(1e-3, 1e-5, (Knee(64, 2e-5),)),
         "A step takes 1.01 ms at a batch of 1 and 1.64 ms at 64; beyond, every further example takes 30 µs."),
        (StepCost(1.0, 0.0, unit="steps"), "Only steps count, so the largest useful batch is best."),
        (StepCost(0.0, 1.0, unit="examples"), "Only examples count, which favours small batches; of"),
    ],
)  # fmt: skip
def test_the_cost_of_a_step(price: StepCost, sentence: str) -> None:
    assert sentence in told(price)


def test_a_price_that_is_no_time_tells_the_time_and_what_a_faster_run_gives() -> None:
    """A run of 128 takes 768.75 steps of 2.28 ms; all end at one loss, so the largest batch is the fastest."""
    within = told(StepCost(0.0, 1.0, unit="examples"), LowestLoss(90_000, of="examples"))
    assert "The run takes 1.75 s, by the measured time of a step." in within
    assert "Batch size 16" not in within
    assert "The run takes 1.75 s, by the measured time of a step." in told(StepCost(64.0, 1.0, unit="examples"))
    assert "by the measured time" not in told(StepCost(1e-3, 1e-5))


def test_a_faster_run_that_is_nearly_as_good_is_named() -> None:
    small = PLAN.alternatives[0]
    reasons = reasons_for(LowestLoss(90_000, of="examples"), small, PLAN.alternatives, shape="wsd", horizon=90_000,
                          critical=None, segments=PLAN.schedule.segments, relative_cost=1.0,
                          price=StepCost(0.0, 1.0, unit="examples"), lowest_observed=0.1, expected_regret=None,
                          rate=None, doubts=())  # fmt: skip
    taken = {point.batch_size: point.seconds.value for point in PLAN.alternatives if point.seconds is not None}
    fastest = min(taken, key=taken.__getitem__)
    (line,) = [reason for reason in reasons if reason.startswith("The run takes ")]
    less = number(taken[16] / taken[fastest])
    assert f"{seconds(taken[16])}, by the measured time of a step. Batch size {fastest} takes" in line
    assert f" takes {seconds(taken[fastest])}, {less} times less, and ends at a loss of " in line
    assert sum(f" in {seconds(taken[32])}." in reason for reason in reasons) == 1, "twice the batch has its time"
    assert line.endswith("For less time bound the plan by batch_sizes=(least, most).")


@pytest.mark.parametrize(
    ("goal", "sentence"),
    [
        (ReachLoss(0.05), "The steps to a loss of 0.05 are extrapolated: the lowest that was seen is 0.1, 2.0"),
        (LowestLoss(90_000, of="examples"), "A loss of 0.6 is extrapolated: the lowest that was seen is 1.2, 2.0"),
    ],
)
def test_what_lies_below_all_that_was_seen_is_extrapolated(goal: LossGoal, sentence: str) -> None:
    best = replace(PLAN.best, loss=Estimate(0.6, 0.5, 0.7, True))
    reasons = reasons_for(goal, best, PLAN.alternatives, shape="wsd", horizon=90_000, critical=None,
                          segments=PLAN.schedule.segments, relative_cost=1.0, price=StepCost(64.0, 1.0),
                          lowest_observed=0.1 if isinstance(goal, ReachLoss) else 1.2, expected_regret=None, rate=None,
                          doubts=())  # fmt: skip
    assert reasons[0].startswith(sentence)


@pytest.mark.parametrize("at", [0, -1])
def test_the_largest_batch_that_was_considered_is_told_as_such(at: int) -> None:
    reasons = reasons_for(GOAL, PLAN.alternatives[at], PLAN.alternatives, shape="wsd", horizon=90_000, critical=None,
                          segments=PLAN.schedule.segments, relative_cost=1.0, price=StepCost(1e-3, 1e-5),
                          lowest_observed=0.1, expected_regret=None, rate=None, doubts=())  # fmt: skip
    told = f"No batch above {PLAN.alternatives[-1].batch_size} was considered."
    assert any(reason.startswith(told) for reason in reasons) == (at == -1)
