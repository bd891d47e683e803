"""What a probe would have known without its long runs, and what that saves."""

from __future__ import annotations

import pytest
from probe_goal import summary, without_long_runs

from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance, TrainingLosses
from batchopt.learning_rate_schedule import LearningRateSchedule


def run_of(rate: float, last: int, *, falls: tuple[int, int] | None = None) -> Branch:
    points = tuple(range(100, last + 1, 100))
    losses = tuple(1.0 / point for point in points)
    schedule = None if falls is None else LearningRateSchedule((0, *falls), (1.0, 1.0, 0.0))
    training = TrainingLosses(tuple(map(float, points)), losses, (0.0,) * len(points))
    return Branch(8, rate, LossCurve(points, losses), training=training, learning_rate_schedule=schedule)


def test_long_runs_are_cut_back_to_the_length_of_the_short_ones() -> None:
    long, short = run_of(0.3, 3_000), run_of(0.1, 1_000)
    cooldowns = [run_of(0.3, 1_250, falls=(1_000, 1_250)), run_of(0.3, 4_200, falls=(3_000, 4_200))]
    report = ProbeReport(long, (short, *cooldowns), (), None, (), 10_000, None, Provenance({}, "cpu", 0, None, 1))
    left = without_long_runs(report)
    assert left.reference is None
    assert left.branches == (run_of(0.3, 1_100), short, cooldowns[0])


def test_a_plan_that_never_arrives_counts_where_the_probe_ended_early() -> None:
    row = {"problem": "a", "ends_early": True, "regret": 0.1, "regret_of_short": None, "total": 4.0}
    late = row | {"ends_early": False, "total_with_goal": 4.0}
    found = summary([row | {"total_with_goal": 1.0}, late])["all"]
    assert (found["cases"], found["end_early"]) == (2, 1)
    assert found["total_with_goal_over_total"] == pytest.approx(0.5)
    assert found["of_those_total_over_total"] == pytest.approx(0.25)
    assert (found["regret"]["never"], found["regret_with_goal"]["never"]) == (0, 1)
