"""Closed forms against numerical optimisation and integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.planning.optimum import least_cost_batch_size, optimal_batch_sizes, regret_of_error, schedule_gamma
from batchopt.step_cost import StepCost


@given(crit=st.floats(1.0, 1e5), a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3))
def test_least_cost_is_least(crit: float, a: float, b: float) -> None:
    price = StepCost(a, b)
    best = least_cost_batch_size(crit, price)

    def cost(size: float) -> float:
        return price(size) * (1.0 + crit / size)

    assert cost(best) <= min(cost(best * 1.01), cost(best / 1.01)) * (1 + 1e-12)


def test_limits() -> None:
    assert math.isinf(least_cost_batch_size(100.0, StepCost(1.0, 0.0)))
    assert least_cost_batch_size(100.0, StepCost(0.0, 1.0)) == 0.0


@pytest.mark.parametrize(("power", "gamma"), [(0.5, 24 / 25), (1.0, 8 / 9), (2.0, 3 / 4)])
def test_golden_gamma_of_power_laws(power: float, gamma: float) -> None:
    # gamma = (1 + c) / (1 + c/2)^2 for B_n ~ s^c; the paper quotes 24/25 for c = 1/2.
    s = np.linspace(0.0, 1.0, 200_001)
    assert schedule_gamma(s.tolist(), (s**power + 1e-300).tolist()) == pytest.approx(gamma, rel=1e-3)


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=20))
def test_gamma_is_at_most_one(noise: list[float]) -> None:
    assert schedule_gamma(list(range(len(noise))), noise) <= 1.0 + 1e-9


def test_the_varying_front() -> None:
    # Integrating S and E at B(s) = sqrt(r B_n(s)) lands on (S/S_min - 1)(E/E_min - 1) = gamma, whatever r.
    s = np.linspace(0.0, 100.0, 100_001)
    noise = 10.0 * np.sqrt(s) + 1.0
    steps_min, examples_min = 100.0, float(np.trapezoid(noise, s))
    for rate in (1.0, 50.0, 2_000.0):
        sizes = optimal_batch_sizes(noise.tolist(), rate)
        steps, examples = np.trapezoid(1 + noise / sizes, s), np.trapezoid(sizes + noise, s)
        front = (steps / steps_min - 1) * (examples / examples_min - 1)
        assert front == pytest.approx(schedule_gamma(s.tolist(), noise.tolist()), rel=1e-6)


@given(rate=st.floats(0.1, 1e6), noise=st.floats(0.1, 1e6), factor=st.floats(0.5, 2.0))
def test_no_other_batch_size_is_worth_more(rate: float, noise: float, factor: float) -> None:
    # A piece of progress costs r steps' worth and examples: r (1 + B_n/B) + (B + B_n).
    (best,) = optimal_batch_sizes([noise], rate)
    cost, other = (rate * (1 + noise / size) + size + noise for size in (best, best * factor))
    assert cost <= other * (1 + 1e-12)


@pytest.mark.parametrize(("factor", "regret"), [(4.0, 0.125), (5.1, 0.175), (10.0, 0.37)])
def test_golden_regret_at_least_time(factor: float, regret: float) -> None:
    # The optimum with equal parts: a = b B_crit, so B = B_crit, and a wrong B_crit moves it by sqrt(factor).
    def cost(size: float) -> float:
        return (1.0 + size) * (1.0 + 1.0 / size)

    assert regret_of_error(factor) == pytest.approx(regret, abs=0.005)
    assert cost(math.sqrt(factor)) / cost(1.0) - 1.0 == pytest.approx(regret_of_error(factor), rel=1e-9)
    assert cost(factor) / cost(1.0) - 1.0 == pytest.approx(regret_of_error(factor, balanced=True), rel=1e-9)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="progress must rise"):
        schedule_gamma([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="every noise scale must be positive"):
        optimal_batch_sizes([1.0, 0.0], 1.0)
