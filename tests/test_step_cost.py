"""Step costs and their fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.step_cost import LARGEST_SOUGHT, Knee, StepCost, fit_step_cost

SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@given(a=st.floats(1e-5, 1.0), b=st.floats(1e-8, 1e-2))
def test_fit_inverts_the_law(a: float, b: float) -> None:
    cost = fit_step_cost(SIZES, [a + b * size for size in SIZES])
    assert all(cost(size) == pytest.approx(a + b * size, rel=1e-6) for size in SIZES)
    assert cost.knees == ()


def test_a_knee_is_found_where_there_is_one() -> None:
    truth = StepCost(1e-3, 1e-6, (Knee(64, 5e-5),))
    cost = fit_step_cost(SIZES, [truth(size) for size in SIZES])
    assert len(cost.knees) == 1
    assert cost.knees[0].batch_size == 64
    assert cost(400) == pytest.approx(truth(400), rel=0.01)


def test_noise_is_not_a_knee() -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        times = [(1e-3 + 1e-5 * size) * np.exp(0.05 * rng.standard_normal()) for size in SIZES]
        found += len(fit_step_cost(SIZES, times).knees)
    assert found <= 25


def test_a_flat_and_a_proportional_cost() -> None:
    assert fit_step_cost(SIZES, [2e-3] * 10).per_example == pytest.approx(0.0, abs=1e-9)
    assert fit_step_cost(SIZES, [1e-4 * size for size in SIZES]).per_step == pytest.approx(0.0, abs=1e-9)


def test_few_points_make_no_knee() -> None:
    assert fit_step_cost([1, 2, 4], [1.0, 1.0, 3.0]).knees == ()
    assert fit_step_cost([1, 2, 4, 8], [1.0, 1.0, 1.0, 9.0]).knees == ()


@given(times=st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=10))
def test_any_times_give_a_cost_that_does_not_fall(times: list[float]) -> None:
    cost = fit_step_cost(SIZES[: len(times)], times, largest_batch_size=4096)
    prices = [cost(size) for size in range(1, 1024)]
    assert all(left <= right * (1 + 1e-9) for left, right in pairwise(prices))
    assert cost.largest_batch_size == 4096


@given(st.floats(0.0, 100.0), st.floats(0.01, 10.0), st.floats(0.0, 1e5), st.booleans())
def test_the_largest_batch_within_a_cost(per_step: float, per_example: float, most: float, bent: bool) -> None:
    cost = StepCost(per_step, per_example, (Knee(32.0, 2.0 * per_example),) if bent else ())
    largest = cost.largest_within(most)
    assert largest == 0 or cost(largest) <= most
    assert cost(largest + 1) > most


def test_where_examples_cost_nothing_the_search_for_the_largest_ends() -> None:
    assert StepCost(1.0, 0.0).largest_within(2.0) == LARGEST_SOUGHT - 1
    assert StepCost(1.0, 0.0).largest_within(0.5) == 0


def test_another_unit() -> None:
    cost = StepCost(2e-3, 1e-5, (Knee(64.0, 3e-5),), largest_batch_size=512)
    other = cost.scaled(1e3, "milliseconds")
    assert (other.unit, other.largest_batch_size) == ("milliseconds", 512)
    for size in (1, 64, 200):
        assert other(size) == pytest.approx(1e3 * cost(size))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two different batch sizes at least"):
        fit_step_cost([8, 8], [1.0, 1.0])
    with pytest.raises(ValueError, match="every time must be positive"):
        fit_step_cost([8, 16], [1.0, 0.0])
    with pytest.raises(ValueError, match="must not both be zero"):
        StepCost(0.0, 0.0)
    with pytest.raises(ValueError, match="knees' batch sizes must rise"):
        StepCost(1.0, 1.0, (Knee(64, 1.0), Knee(32, 1.0)))
