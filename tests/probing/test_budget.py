"""Which batch sizes a budget affords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.errors import BudgetError
from batchopt.probing.budget import (
    EXTRA_RATES,
    FREE,
    LEAST_STEPS,
    RATES,
    RATES_AFTER_WRONG,
    SHARES,
    SMALLER,
    USUAL,
    WARMUP,
    BatchSizes,
    choose_batch_sizes,
    examples_within,
    price_in_examples,
    search_budget,
    warmup_within,
)
from batchopt.step_cost import Knee, StepCost


def price(per_step: float = 0.0) -> StepCost:
    return StepCost(per_step=per_step, per_example=1.0, unit="examples")


@pytest.mark.parametrize(
    ("budget", "bounds", "expected"),
    [
        (24_000, (1, 600), BatchSizes(small=4, search=32, large=32)),
        (24_000, (8, 600), BatchSizes(small=8, search=32, large=32)),
        (9_000, (28, 56), BatchSizes(small=28, search=28, large=56)),  # the budget affords no search at 56
        (10**9, (1, 64), BatchSizes(small=8, search=64, large=64)),
    ],
)
def test_small_and_large_are_a_factor_of_eight_apart_where_bounds_allow_it(
    budget: int, bounds: tuple[int, int], expected: BatchSizes
) -> None:
    assert choose_batch_sizes(budget, price(), bounds=bounds, population=600) == expected


@given(
    st.integers(100, 10**9), st.integers(1, 200), st.integers(1, 64), st.integers(2, 10**6), st.sampled_from((0, 64))
)
def test_batch_sizes_lie_within_bounds_and_the_search_can_be_paid(
    budget: int, low: int, span: int, population: int, per_step: int
) -> None:
    try:
        found = choose_batch_sizes(budget, price(per_step), bounds=(low, low * span), population=population)
    except BudgetError:
        return
    assert low <= found.small < found.large <= low * span
    assert found.small >= found.large // SMALLER
    assert found.small <= found.search <= found.large
    assert LEAST_STEPS * price(per_step)(found.search) <= search_budget(budget) * (1 + 1e-9)


def test_where_steps_cost_much_batches_are_larger() -> None:
    dear = choose_batch_sizes(60_000, price(64.0), bounds=(1, 4096), population=4096)
    assert dear.search == 32, "10 steps at 1.5 times what a step at batch size 1 costs"
    assert price(64.0)(dear.search) <= FREE * 64.0
    assert choose_batch_sizes(200_000, price(64.0), bounds=(1, 4096), population=4096).search == 64
    assert choose_batch_sizes(200_000, price(), bounds=(1, 4096), population=4096).search == 128


@pytest.mark.parametrize(
    "cost", [StepCost(5e-3, 0.0), StepCost(5e-3, 1e-12), StepCost(5e-3, 0.0, (Knee(256.0, 1e-5),))]
)
def test_where_examples_cost_nothing_batches_are_large_but_not_beyond_all_bounds(cost: StepCost) -> None:
    """As on a GPU that waits for its host."""
    in_examples = price_in_examples(cost)
    budget = examples_within(60.0, cost, in_examples)
    found = choose_batch_sizes(budget, in_examples, bounds=(1, 10**6), population=10**6)
    assert 256 <= found.search <= 8_192
    assert search_budget(budget) / in_examples(found.search) > 20, "steps"
    one = choose_batch_sizes(budget, in_examples, bounds=(1, 100), population=10**6)
    assert one.large == 100


def test_no_step_fits() -> None:
    with pytest.raises(BudgetError, match="holds no step"):
        choose_batch_sizes(0, price(), bounds=(1, 100), population=1_000)


def test_runs_warm_up_over_a_part_of_both_batch_sizes_short_runs() -> None:
    sizes = BatchSizes(small=4, search=32, large=32)
    assert warmup_within(1_000.0, price(), sizes) == round(WARMUP * 1_000)
    assert warmup_within(1_000.0, price(64.0), sizes) == round(0.5 * 4 * 1_000 / 68)


def test_a_wrong_rate_is_within_the_budget() -> None:
    of_search = SHARES["learning-rate search"] / (RATES + EXTRA_RATES)
    assert sum(SHARES.values()) + RATES_AFTER_WRONG * of_search <= 1.0 + 1e-9


def test_a_time_is_counted_in_examples_of_the_usual_batch_size() -> None:
    cost = StepCost(per_step=2e-3, per_example=1e-5, knees=(Knee(512.0, 1e-4),))
    in_examples = price_in_examples(cost)
    assert in_examples(USUAL) == pytest.approx(USUAL)
    for size in (1, 64, 300, 1024):
        assert examples_within(10.0, cost, in_examples) * cost(size) == pytest.approx(8.0 * in_examples(size), rel=1e-3)
    dear = StepCost(per_step=64.0, per_example=1.0)
    assert examples_within(10.0, dear.scaled(1e-4, "seconds"), dear) == pytest.approx(80_000, abs=1)
