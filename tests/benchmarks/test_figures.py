"""Figures of the benchmarks: errors weigh problems alike, and what never arrives is counted."""

from __future__ import annotations

import pytest
from figures import errors_of, factor, geometric_mean, interval_of, is_inside, regrets_of, share

from batchopt.uncertainty import Estimate


def test_errors_weigh_problems_alike() -> None:
    found = errors_of([("a", 2.0, 1.0), ("a", 1.0, 2.0), ("b", 8.0, 1.0)])
    assert found["geometric_mean"] == pytest.approx(4.0)
    assert found["by_problem"] == {"a": pytest.approx(2.0), "b": pytest.approx(8.0)}
    assert found["worst"] == 8.0
    assert factor(1.0, 5.0) == factor(5.0, 1.0) == 5.0
    assert errors_of([])["geometric_mean"] is geometric_mean([]) is share([]) is None


def test_a_plan_that_never_arrives_is_infinitely_regretted() -> None:
    found = regrets_of([0.1, 0.2, None])
    assert found == {"median": 0.2, "90th_percentile": None, "worst": None, "never": 1, "cases": 3}
    assert regrets_of([None, None, 0.1])["median"] is None
    assert regrets_of([0.1, 0.3])["90th_percentile"] == 0.3
    assert regrets_of([])["cases"] == 0


def test_open_intervals_survive_json() -> None:
    told = interval_of(Estimate(2.0, 1.0, float("inf"), resolved=False))
    assert told == [2.0, 1.0, None]
    assert is_inside(told, 1e9)
    assert not is_inside(told, 0.5)
