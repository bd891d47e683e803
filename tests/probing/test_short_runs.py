"""Which short runs count as alive."""

from __future__ import annotations

import pytest

from batchopt.evidence import Branch, LossCurve, Spending, TrainingLosses
from batchopt.probing.branches import _has_diverged
from batchopt.probing.journal import Part
from batchopt.probing.short_runs import _has_risen


def part_with(losses: tuple[float, ...], errors: tuple[float, ...]) -> Part:
    examples = tuple(float(10 * (k + 1)) for k in range(len(losses)))
    branch = Branch(2, 0.1, LossCurve((), ()), training=TrainingLosses(examples, losses, errors))
    return Part(Spending("short runs", 0.0, 0, 0.0), branch=branch)


def test_the_scatter_of_small_batches_is_no_rise() -> None:
    noisy = part_with((2.1, 2.3, 2.5, 2.4, 2.4), (0.3,) * 5)
    assert not _has_risen(2.4, noisy, initial=2.3)
    exact = part_with((2.1, 2.3, 2.5, 2.4, 2.4), (0.001,) * 5)
    assert _has_risen(2.4, exact, initial=2.3)
    assert not _has_risen(2.33, exact, initial=2.3)


def test_a_run_that_begins_with_a_shock_is_measured_against_the_initial_loss() -> None:
    shocked = part_with((1e5, 1e4, 30.0, 25.0, 23.5), (0.1,) * 5)
    assert _has_risen(23.5, shocked, initial=0.1)


@pytest.mark.parametrize(("initial", "last"), [(2.0, 5.9), (-1.0, 0.9)])
def test_divergence_is_far_above_the_initial_loss_whatever_its_sign(initial: float, last: float) -> None:
    assert not _has_diverged([-9.0, 5.0, *([last] * 8)], initial)
    assert _has_diverged([-9.0, 5.0, *([last + 0.2] * 8)], initial)
