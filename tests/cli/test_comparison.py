"""What `batchopt train` says of predictions that do not hold."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from visualization.samples import plan_of

from batchopt import LowestLoss
from batchopt.cli.console import Console
from batchopt.cli.training import GoalMissedError, check_reached, compare, show_comparison
from batchopt.evidence import LossCurve
from batchopt.report.comparison import Comparison
from batchopt.uncertainty import Estimate

RESULT: Any = SimpleNamespace(reached=None, examples=6_400, curve=LossCurve((0, 6_400), (2.0, 0.5)))


def told(capsys: pytest.CaptureFixture[str], *, steps: float, seconds: float) -> str:
    rows = [
        Comparison("steps", Estimate(100.0, 80.0, 120.0, resolved=True), steps),
        Comparison("seconds", Estimate(0.1, 0.08, 0.12, resolved=True), seconds),
    ]
    show_comparison(RESULT, rows, Console(as_json=False))
    return " ".join(capsys.readouterr().out.split())


def test_a_slower_machine_is_no_failed_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, steps=110, seconds=0.33)
    assert "A step took 3 ms, and 1 ms when the probe measured it: the machine was 3 times slower" in text
    assert "Outside of its" not in text


def test_a_faster_one_is_told_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert "A step took 0.5 ms" not in told(capsys, steps=100, seconds=0.09)
    assert "500 µs, and 1 ms when the probe measured it: the machine was 2 times faster" in told(
        capsys, steps=100, seconds=0.05
    )


def test_more_steps_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, steps=200, seconds=0.2)
    assert "machine" not in text
    assert "Outside of its 90 % interval: steps, seconds." in text
    both = told(capsys, steps=200, seconds=0.6)
    assert "3 times slower" in both
    assert "Outside of its 90 % interval: steps." in both


def test_metrics_are_compared_where_a_ratio_has_a_meaning() -> None:
    accuracy, score = Estimate(0.8, 0.7, 0.9, resolved=True), Estimate(-2.0, -3.0, -1.0, resolved=True)
    plan = replace(plan_of(), goal=LowestLoss(6_400.0, of="examples"), metrics={"accuracy": accuracy, "score": score})
    values = {"accuracy": (0.1, 0.85), "score": (-9.0, -2.5)}
    result: Any = SimpleNamespace(curve=LossCurve((0, 6_400), (2.0, 0.5), values))
    rows = compare(plan, plan.schedule, result)
    assert [(row.name, row.measured) for row in rows] == [("loss", 0.5), ("accuracy at the end", 0.85)]
    assert rows[1].predicted == accuracy


@pytest.mark.parametrize(
    ("shape", "adapted", "remedy"),
    [
        ("wsd", False, "be there: let the run decide when its rate decays"),
        ("cosine", False, "be there: plan by wsd (--learning-rate-schedule wsd) and let the run decide"),
        ("wsd", True, "be there: probe for longer, or plan for a higher loss"),
    ],
)
def test_a_loss_that_was_missed_is_told_with_what_can_be_done(shape: str, adapted: bool, remedy: str) -> None:
    plan = replace(plan_of(), learning_rate_schedule=shape)
    result: Any = SimpleNamespace(schedule=plan.schedule, outcome="finished", reached=None, examples=6_400,
                                  curve=LossCurve((0, 6_400), (2.0, 0.9)))  # fmt: skip
    with pytest.raises(GoalMissedError, match=re.escape(remedy)):
        check_reached(plan, result, adapted=adapted)
