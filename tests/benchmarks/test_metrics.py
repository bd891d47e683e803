"""The benchmark of metrics: fitted above a loss, asked below it."""

from __future__ import annotations

import math

import metrics
import numpy as np
import pytest


def rows_with(accuracy: float = 1.0) -> list[metrics.Row]:
    """Errors in proportion to the loss, times a factor below a loss of 0.5."""
    return [
        {
            "problem": "p", "where": "training", "batch_size": 8, "learning_rate": 0.1, "examples": k,
            "loss": float(loss),
            "accuracy": 1.0 - 0.3 * float(loss) * (accuracy if loss < 0.5 else 1.0), "evaluated": 1_000,
        }
        for k, loss in enumerate(np.geomspace(0.25, 2.0, 20), start=1)
    ]  # fmt: skip


def test_a_relation_that_holds_is_found_and_one_that_breaks_is_seen() -> None:
    case = metrics.judge(rows_with(), 2.0)
    assert case is not None
    assert case["fitted"] + case["asked"] == 20
    assert case["mean_error"] < 0.01
    assert case["inside"] == 1.0
    broken = metrics.judge(rows_with(4.0), 2.0)
    assert broken is not None
    assert broken["mean_error"] > 0.2
    assert broken["inside"] < 0.5
    assert math.isclose(case["true_last"], 1.0 - 0.3 * 0.25)


def test_too_little_above_the_cut_is_no_case() -> None:
    assert metrics.judge(rows_with(), 7.0) is None


@pytest.mark.slow
def test_a_run_keeps_both_evaluations() -> None:
    rows = metrics.rows_of("digits_softmax", 128)
    assert {row["where"] for row in rows} == {"training", "held out"}
