"""Costs in words that people read."""

from __future__ import annotations

import pytest
from visualization.samples import plan_of

from batchopt.planning.goal import ReachLoss
from batchopt.planning.reasons import reasons_for
from batchopt.step_cost import Knee, StepCost

PLAN = plan_of()


def told(price: StepCost) -> str:
    reasons = reasons_for(ReachLoss(0.6), PLAN.best, PLAN.alternatives, shape="wsd", horizon=90_000, critical=None,
                          segments=PLAN.schedule.segments, relative_cost=1.0, price=price, lowest_observed=0.1,
                          expected_regret=None, doubts=())  # fmt: skip
    return " ".join(reasons)


@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        (StepCost(1.21e-3, 6.27e-7), "A step takes 1.21 ms plus 0.627 µs an example; its fixed part is worth 1,930 "),
        (StepCost(2.0, 0.004), "A step takes 2 s plus 4 ms an example;"),
        (StepCost(64.0, 1.0, unit="euros"), "A step costs 64 euros plus 1 euros an example; its fixed part is worth"),
        (StepCost(1e-3, 1e-5, (Knee(64, 2e-5),)),
         "A step takes 1.01 ms at a batch of 1 and 1.64 ms at 64; beyond, every further example takes 30 µs."),
        (StepCost(1.0, 0.0, unit="steps"), "Only steps count, so the largest useful batch is best."),
        (StepCost(0.0, 1.0, unit="examples"), "Only examples count, which favours small batches; of"),
    ],
)  # fmt: skip
def test_the_cost_of_a_step(price: StepCost, sentence: str) -> None:
    assert sentence in told(price)
