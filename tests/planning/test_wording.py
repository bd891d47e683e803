"""Goals in words."""

from __future__ import annotations

from typing import Any

import pytest

from batchopt import BestMetric, LowestLoss, ReachLoss, ReachMetric
from batchopt.planning.wording import goal_in_words
from batchopt.step_cost import StepCost


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (ReachLoss(0.25), "a loss of 0.25 in the fewest seconds"),
        (ReachLoss(0.25, "balanced"), "a loss of 0.25 in the fewest steps and examples, balanced"),
        (ReachLoss(0.25, ("steps", "examples")), "a loss of 0.25 in the fewest steps and examples"),
        (
            ReachMetric("accuracy", 0.93, StepCost(0.1, 0.01, unit="dollars")),
            "accuracy 0.93 at the least cost, counted in dollars",
        ),
        (LowestLoss(7200.0), "the lowest loss within 2 h"),
        (LowestLoss(1234567.0, "examples"), "the lowest loss within 1,234,567 examples (1,230 epochs)"),
        (LowestLoss(500.0, "steps"), "the lowest loss within 500 steps"),
        (BestMetric("F1", 10.0, "epochs"), "the best F1 within 10 epochs"),
        (BestMetric("F1", 2.5, StepCost(0.1, 0.01, unit="dollars")), "the best F1 within 2.5 dollars"),
    ],
)
def test_goals(goal: Any, words: str) -> None:
    assert goal_in_words(goal, population=1_000) == words
