"""What the runs of a probe say before a law is fitted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.schedule_points import course_of, courses_to_ends, edges_of, evidence_of
from batchopt.learning_rate_schedule import LearningRateSchedule


def run(learning_rate: float, *losses: float) -> Branch:
    """From an initial loss of 2, evaluated now and then."""
    return Branch(4, learning_rate, LossCurve((0, *[100 * 2**k for k in range(len(losses))]), (2.0, *losses)))


def test_a_noisy_run_far_behind_one_at_a_lower_rate_is_fine() -> None:
    evidence = evidence_of([run(0.1, 1.0, 0.5, 0.3), run(0.4, 1.2, 1.1, 1.0)], initial_loss=2.0)
    assert evidence.unstable == ()
    assert evidence.highest_rate == 0.4


@pytest.mark.parametrize("loss", [1.97, 2.5])
def test_a_run_that_never_fell_where_another_did_bounds_the_rates(loss: float) -> None:
    evidence = evidence_of([run(0.1, 1.0, 0.5, 0.3), run(0.4, 1.99, 1.98, loss)], initial_loss=2.0)
    assert evidence.unstable == ((4, 0.1, 0.4),)
    assert evidence.highest_rate == 0.1


def test_a_run_that_has_not_fallen_yet_is_fine_where_no_other_has() -> None:
    evidence = evidence_of([run(0.1, 2.0, 1.99, 1.9), run(0.4, 1.99, 1.98, 1.97)], initial_loss=2.0)
    assert evidence.unstable == ()


def test_a_run_is_judged_by_what_others_had_reached_by_then() -> None:
    long, hot = run(0.1, 1.9, 1.7, 0.8, 0.2), run(0.3, 1.95, 1.8)
    evidence = evidence_of([long, hot], initial_loss=2.0)
    assert evidence.unstable == (), "0.105 of the 0.163 that the longer run had fallen by 200 examples"
    assert evidence.highest_rate == 0.3
    dying = run(0.3, 1.95, 1.8, 1.9)
    assert evidence_of([long, dying], initial_loss=2.0).unstable == ((4, 0.1, 0.3),), "0.05 of 0.92 by 400"


def test_runs_that_all_end_above_the_first_loss_are_no_evidence() -> None:
    with pytest.raises(EvidenceError, match="every run ends above the loss at initialisation"):
        evidence_of([run(0.1, 1.5, 1.4, 2.01), run(0.3, 1.6, 1.5, 2.02)], initial_loss=2.0)


def test_runs_as_long_as_any_that_failed_are_stable() -> None:
    long, short, failed = run(0.1, 1.9, 1.7, 0.8, 0.2), run(0.2, 1.9), run(0.4, 1.99, 1.98)
    assert evidence_of([long, short, failed], initial_loss=2.0).stable == ((4, 0.1),)
    assert evidence_of([long, short], initial_loss=2.0).stable == ((4, 0.1), (4, 0.2))


@pytest.mark.parametrize("delay", [0.0, 9.0])
def test_courses_that_share_their_pieces_are_those_of_each_run_by_itself(delay: float) -> None:
    shapes = [LearningRateSchedule.of(shape, examples=8_000, warmup_examples=400) for shape in ("wsd", "cosine")]
    settings = list(itertools.product((8, 32), (0.03, 0.1, 0.7), shapes, (4_000.0, 8_000.0)))
    sizes, rates, schedules, ends = zip(*settings, strict=True)
    for fast, (size, rate, schedule, end) in zip(
        courses_to_ends(sizes, rates, schedules, ends, delay=delay), settings, strict=True
    ):
        slow = course_of(size, rate, schedule, edges_of(size, schedule, np.array([end / size])), delay=delay)
        for name in ("steps", "batch_sizes", "learning_rates"):
            np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=1e-14)
