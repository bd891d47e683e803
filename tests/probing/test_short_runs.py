"""Which short runs count as alive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pytest

from batchopt.evidence import Branch, LossCurve, Spending, TrainingLosses
from batchopt.probing.branches import Leg, _has_diverged
from batchopt.probing.journal import Part
from batchopt.probing.session import Session
from batchopt.probing.short_runs import _best_of, _has_risen, _ranked


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


class Runs:
    """Stands in for a session: the loss falls with the rate up to where runs diverge, or is best at a given rate."""

    def __init__(self, *, stable_up_to: float, best: float | None = None) -> None:
        self.stable_up_to, self.best = stable_up_to, best
        self.tried: list[float] = []
        self.decisions: list[str] = []

    def run(self, legs: Sequence[Leg]) -> list[Part]:
        self.tried += [leg.learning_rate for leg in legs]
        return [self._part(leg) for leg in legs]

    def _part(self, leg: Leg) -> Part:
        rate = leg.learning_rate
        if rate > self.stable_up_to:
            branch = Branch(leg.batch_size, rate, LossCurve((), ()), outcome="diverged")
            return Part(Spending("", 0.1 * leg.budget, 0, 0.0), branch=branch)
        loss = 1.0 / rate if self.best is None else 1.0 + abs(math.log(rate / self.best))
        branch = Branch(leg.batch_size, rate, LossCurve((100,), (loss,)))
        return Part(Spending("", leg.budget, 0, 0.0), branch=branch)

    def check_time(self) -> None:
        """There is always time."""

    def ranked(self, rates: Sequence[float]) -> list[float]:
        leg = Leg("", "", 8, 1.0, 100.0, 8.0, seed=0)
        found = _best_of(cast("Session", self), "run", leg, rates, factor=3.0, extra=1)
        return [leg.learning_rate for leg in found]


def test_the_search_goes_upwards_until_a_run_diverges_and_no_further() -> None:
    runs = Runs(stable_up_to=5.0)
    assert runs.ranked([3.0, 1.0, 1 / 3]) == [3.0, 1.0, 1 / 3]
    assert runs.tried == [3.0, 1.0, 1 / 3, 9.0]


def test_a_rate_above_one_that_diverged_is_not_tried() -> None:
    runs = Runs(stable_up_to=2.0)
    assert runs.ranked([3.0, 1.0, 1 / 3]) == [1.0, 1 / 3]
    assert runs.tried == [3.0, 1.0, 1 / 3]


@pytest.mark.parametrize(("best", "beyond"), [(1.0, []), (0.3, [1 / 9]), (8.0, [9.0])])
def test_rates_are_extended_where_the_best_is_at_an_edge(best: float, beyond: list[float]) -> None:
    runs = Runs(stable_up_to=100.0, best=best)
    ranked = runs.ranked([3.0, 1.0, 1 / 3])
    assert runs.tried[3:] == pytest.approx(beyond)
    assert ranked[0] == min(runs.tried, key=lambda rate: abs(math.log(rate / best)))


def leg_at(rate: float) -> Leg:
    return Leg(
        f"rate-{rate:g}", "learning-rate search", 2, rate, budget=100.0, step_price=2.0, seed=0, initial_loss=2.3
    )


def test_where_no_loss_has_clearly_fallen_the_highest_rate_near_the_lowest_loss_comes_first() -> None:
    """On a plateau chance decides which loss is the lowest, by far less than the error of each."""
    losses = {0.01: 2.296, 0.1: 2.301, 1.0: 2.34, 10.0: 2.9}
    legs = [leg_at(rate) for rate in losses]
    flat = [part_with((2.3, 2.3, 2.3, 2.3, loss), (0.01,) * 5) for loss in losses.values()]
    assert [leg.learning_rate for leg in _ranked(legs, flat)] == [0.1, 0.01, 1.0]  # 10 has risen
    fallen = [*flat[:2], part_with((2.3, 2.2, 2.1, 2.1, 2.0), (0.01,) * 5), flat[3]]
    assert [leg.learning_rate for leg in _ranked(legs, fallen)] == [1.0, 0.01, 0.1]
