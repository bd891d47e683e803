"""Step costs and their fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batchopt.step_cost import LARGEST_SOUGHT, Knee, StepCost, fit_step_cost
from batchopt.uncertainty import Estimate

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


def test_of_two_timings_the_slower_holds() -> None:
    cost = StepCost(1e-3, 1e-5, (Knee(64.0, 3e-5),), largest_batch_size=512)
    assert cost.retimed([]) == cost
    assert cost.retimed([(8, cost(8)), (128, cost(128))]).scatter == pytest.approx(1.0)
    slower = cost.retimed([(size, 2.0 * cost(size)) for size in SIZES])
    assert [slower(size) for size in (1, 64, 200)] == pytest.approx([2.0 * cost(size) for size in (1, 64, 200)])
    assert slower.largest_batch_size == 512
    student = stats.t.ppf(0.95, len(SIZES))
    assert slower.scatter == pytest.approx(2.0 ** (student / np.sqrt(len(SIZES))))  # one of eleven was half as slow
    faster = cost.retimed([(size, 0.5 * cost(size)) for size in SIZES])
    assert faster(64) == pytest.approx(cost(64))
    assert faster.scatter == pytest.approx(2.0**student)


@pytest.mark.parametrize("timings", [1, 3, 12])
def test_nine_of_ten_next_timings_lie_within_the_scatter(timings: int) -> None:
    rng = np.random.default_rng(timings)
    inside = narrower = 0
    for _ in range(2_000):
        first, *later, next_one = np.exp(0.2 * rng.standard_normal(timings + 2))
        cost = StepCost(first, 0.0).retimed([(8, seconds) for seconds in later])
        off = abs(np.log(next_one / cost(8)))
        inside += off <= np.log(cost.scatter)
        narrower += off <= np.log(cost.scatter) / 1.5  # a planted error
    low, high = 1_800 - 60, 1_800 + 60  # 4.5 standard errors
    assert low < inside < high
    assert narrower < low


def test_what_steps_cost_is_as_uncertain_as_their_number_and_their_price() -> None:
    steps = Estimate(100.0, 80.0, 125.0, True)
    assert StepCost(2.0, 0.5).of_steps(steps, batch_size=4) == steps.scaled(4.0)
    both = StepCost(2.0, 0.5, scatter=1.25).of_steps(steps, batch_size=4)
    assert (both.value, both.high / both.value) == (400.0, pytest.approx(np.exp(np.sqrt(2.0) * np.log(1.25))))
    assert both.low == pytest.approx(both.value**2 / both.high)
    endless = StepCost(2.0, 0.5, scatter=1.25).of_steps(Estimate(100.0, 80.0, np.inf, False), batch_size=4)
    assert (endless.high, endless.resolved) == (np.inf, False)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two different batch sizes at least"):
        fit_step_cost([8, 8], [1.0, 1.0])
    with pytest.raises(ValueError, match="every time must be positive"):
        fit_step_cost([8, 16], [1.0, 0.0])
    with pytest.raises(ValueError, match="must not both be zero"):
        StepCost(0.0, 0.0)
    with pytest.raises(ValueError, match="knees' batch sizes must rise"):
        StepCost(1.0, 1.0, (Knee(64, 1.0), Knee(32, 1.0)))
    for scatter in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="scatter must be finite and at least 1"):
            StepCost(1.0, 1.0, scatter=scatter)
