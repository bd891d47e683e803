"""Readings keep what an estimate says; axes are not ruled by ends far away."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from visualization.samples import Forecaster

from batchopt.uncertainty import Estimate
from batchopt.visualization.readings import Reading, ends, read_out, spaced


def test_a_reading_is_its_estimate() -> None:
    estimate = Estimate(5.0, 2.0, math.inf, False)
    reading = Reading.of(0.3, estimate)
    assert reading.estimate == estimate
    assert reading.one_sided


def test_places_beyond_the_forecast_are_left_out() -> None:
    readings = read_out(Forecaster().critical_batch_size, (1.0, 0.5, 0.2))
    assert [reading.x for reading in readings] == [1.0, 0.5]
    assert [reading.value for reading in readings] == [100.0, 200.0]


@pytest.mark.parametrize("points", [1, 2, 7])
def test_spaced_numbers_have_equal_ratios(points: int) -> None:
    numbers = spaced(8.0, 2.0, points=points)
    assert len(numbers) == points
    assert numbers[0] == 8.0
    ratios = [b / a for a, b in pairwise(numbers)]
    assert ratios == pytest.approx([0.25 ** (1 / (points - 1))] * (points - 1) if points > 1 else [])


def test_a_far_end_does_not_rule_the_axis() -> None:
    readings = [Reading(1.0, 10.0, 1e-9, 1e9, False), Reading(2.0, 20.0, 15.0, 30.0, True)]
    assert min(ends(readings, reach=5.0)) == 2.0
    assert max(ends(readings, reach=5.0)) == 100.0


def test_a_lower_bound_is_shown_by_its_bound() -> None:
    assert set(ends([Reading(1.0, 900.0, 300.0, math.inf, False)])) == {300.0}


def test_nothing_positive_shows_nothing() -> None:
    assert ends([Reading(1.0, -4.0, -math.inf, math.inf, False)]) == ()
