"""What the runs of a probe say before a law is fitted."""

from __future__ import annotations

import pytest

from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.schedule_points import evidence_of


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
