"""What schedules bring in training, told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from schedule_training import CONTESTANTS, REFERENCE, RESOLVED, cost_to, is_resolved, summary

from batchopt import Schedule, Segment


def rows(seed: int, costs: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "problem": "p",
            "seed": seed,
            "contestant": name,
            "reached": name != "oracle",
            "cost": costs.get(name, 100.0),
            "steps": 3.0,
            "examples": 5.0,
            "promised": 0.9 if name == "schedule" else None,
            "moves": seed,
        }
        for name in CONTESTANTS
    ]


def test_ratios_are_paired_by_seed_and_say_whether_they_are_resolved() -> None:
    kept = rows(0, {"schedule": 90.0, REFERENCE: 100.0}) + rows(1, {"schedule": 45.0, REFERENCE: 50.0})
    kept.append({"problem": "p", "seed": 2, "contestant": REFERENCE, "failed": "no plan"})
    told = summary(kept)["p"]
    assert (told["seeds"], told["seeds without a plan"]) == (2, 1)
    schedule = told["contestants"]["schedule"]
    assert schedule["cost over the constant batch's"] == pytest.approx(0.9)
    assert schedule["standard error"] == pytest.approx(0.0, abs=1e-12)
    assert schedule["resolved"]
    assert schedule["promised"] == pytest.approx(0.9)
    adaptive = told["contestants"]["adaptive"]
    assert adaptive["standard error"] == pytest.approx(math.log(2.0) / 2.0)
    assert adaptive["standard error"] > RESOLVED
    assert not adaptive["resolved"]
    assert told["contestants"]["oracle"]["reached"] == 0
    assert told["contestants"]["oracle"]["steps"] is None
    assert not is_resolved(kept, "p")


def test_cost_is_of_steps_and_examples() -> None:
    schedule = Schedule((Segment(0, 10), Segment(100, 50)), examples=300)
    assert cost_to(schedule, 200) == 64.0 * 12 + 200
    assert cost_to(schedule, 10_000) == 64.0 * 14 + 300
