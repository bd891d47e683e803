"""Numbers in words keep their value and say their doubt."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.uncertainty import Estimate
from batchopt.visualization.wording import count, interval, number, seconds

_SUFFIX = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parsed(text: str) -> float:
    factor = _SUFFIX.get(text[-1], 1.0)
    return float(re.sub(r"[,kMBT]", "", text)) * factor


@given(st.floats(1e-12, 9e14) | st.floats(-9e14, -1e-12))
def test_a_number_reads_back_to_three_digits(value: float) -> None:
    assert parsed(number(value)) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(1e-12, 9e14))
def test_a_number_is_short(value: float) -> None:
    assert len(number(value)) <= 9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (math.inf, "inf"),
        (9_999.0, "10k"),
        (999_999.0, "1M"),
        (1_000.0, "1,000"),
        (128.0, "128"),
        (-2_500.0, "-2,500"),
        (0.0009996, "0.001"),
    ],
)
def test_a_number_at_the_edges(value: float, text: str) -> None:
    assert number(value) == text


def test_counts_are_exact() -> None:
    assert count(1_048_576) == "1,048,576"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(100.0, 80.0, 125.0, True), "100 (80 to 125)"),
        (Estimate(100.0, 10.0, 2_000.0, False), "100 (10 to 2,000, unresolved)"),
        (Estimate(100.0, 80.0, math.inf, False), "more than 80 (unresolved)"),
        (Estimate(-3.0, -math.inf, math.inf, False), "unresolved"),
        (Estimate(100.0, -5.0, math.inf, False), "unresolved"),
        (Estimate(100.0, -math.inf, 125.0, False), "less than 125 (unresolved)"),
        (Estimate(0.6, 0.6, 0.6, True), "0.6"),
        (Estimate(16.9, 16.88, 16.93, True), "16.9"),
        (Estimate(16.9, 16.88, 16.93, False), "16.9 (16.9 to 16.9, unresolved)"),
    ],
)
def test_an_interval_says_what_is_known(estimate: Estimate, text: str) -> None:
    assert interval(estimate) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0 ms"), (2e-6, "2 µs"), (179.0, "179 s"), (200_000.0, "2.31 days")])
def test_seconds_take_the_unit_that_suits(value: float, text: str) -> None:
    assert seconds(value) == text
