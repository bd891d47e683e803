"""Which batch sizes a budget affords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.errors import BudgetError
from batchopt.probing.budget import LEAST_STEPS, SMALLER, BatchSizes, choose_batch_sizes, search_budget


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
    assert choose_batch_sizes(budget, bounds=bounds, population=600) == expected


@given(st.integers(100, 10**9), st.integers(1, 200), st.integers(1, 64), st.integers(2, 10**6))
def test_batch_sizes_lie_within_bounds_and_the_search_can_be_paid(
    budget: int, low: int, span: int, population: int
) -> None:
    try:
        found = choose_batch_sizes(budget, bounds=(low, low * span), population=population)
    except BudgetError:
        return
    assert low <= found.small < found.large <= low * span
    assert found.small >= found.large // SMALLER
    assert found.small <= found.search <= found.large
    assert LEAST_STEPS * found.search <= search_budget(budget) * (1 + 1e-9)
