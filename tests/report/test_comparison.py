from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.report.comparison import Comparison
from batchopt.uncertainty import Estimate, log_normal


@given(st.floats(1e-3, 1e9), st.floats(0.01, 100.0))
def test_the_error_is_measured_over_predicted(predicted: float, ratio: float) -> None:
    assert Comparison("steps", log_normal(predicted, 0.2), ratio * predicted).error_ratio == pytest.approx(ratio)


@pytest.mark.parametrize(("measured", "inside"), [(79.9, False), (80.0, True), (125.0, True), (125.1, False)])
def test_inside_is_within_the_interval(measured: float, inside: bool) -> None:
    assert Comparison("steps", Estimate(100.0, 80.0, 125.0, True), measured).inside is inside


def test_it_round_trips() -> None:
    row = Comparison("seconds", Estimate(3.0, 1.0, math.inf, False), 4.5)
    assert Comparison.from_json(row.to_json()) == row


def test_nothing_predicted_has_no_error() -> None:
    with pytest.raises(ValueError, match=r"predicted must be a positive quantity, got 0\.0"):
        Comparison("steps", Estimate(0.0, 0.0, 1.0, True), 4.0)
    with pytest.raises(ValueError, match="measured must be zero or more"):
        Comparison("steps", Estimate(1.0, 0.5, 2.0, True), -1.0)
