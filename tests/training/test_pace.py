"""Which steps are read, by what a reading costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.training.pace import LONGEST, TRIALS, Pace, interval


def test_the_first_reading_does_not_count() -> None:
    pace = Pace()
    pace.took(extra=50.0, plain=1.0)
    assert math.isinf(pace.cost)
    for _ in range(TRIALS - 1):
        assert not pace.is_known
        pace.took(extra=0.5, plain=2.0)
    assert pace.is_known
    assert pace.cost == 0.25


def test_a_way_that_is_far_too_dear_is_known_at_once() -> None:
    pace = Pace()
    for _ in range(2):
        pace.took(extra=9.0, plain=1.0)
    assert pace.is_known


def test_a_pause_of_the_machine_changes_little() -> None:
    pace = Pace([0.2, 0.21, 0.19, 0.2, 0.22, 0.18], seen=7)
    before = pace.cost
    pace.took(extra=300.0, plain=1.0)
    assert pace.cost == pytest.approx(before, abs=0.02)


def test_scatter_is_paid_for() -> None:
    assert Pace([0.2] * 9, seen=10).cost == pytest.approx(0.2)
    assert 0.2 < Pace([0.1, 0.2, 0.3] * 3, seen=10).cost < 0.3


@given(st.floats(0.0, 1e6), st.floats(1e-4, 1.0), st.integers(1, 2))
def test_readings_take_no_more_than_their_share(cost: float, share: float, least: int) -> None:
    steps = interval(cost, share, least=least)
    assert least <= steps <= LONGEST
    assert steps == LONGEST or cost <= share * steps * (1 + 1e-12)
