"""When a leg looks and evaluates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.probing.branches import EVALUATION_SHARE, Leg, stops


def leg_of(budget: float, batch_size: int, *, per_step: float = 0.0, ends_evaluated: bool = False) -> Leg:
    price = batch_size + per_step
    return Leg("leg", "part", batch_size, 0.1, budget, price, seed=0, ends_evaluated=ends_evaluated)


@given(
    budget=st.floats(1.0, 1e6),
    batch_size=st.integers(1, 512),
    cost=st.floats(0.0, 5_000.0),
    done=st.integers(0, 1_000),
    ends_evaluated=st.booleans(),
    per_step=st.sampled_from((0.0, 64.0)),
)
def test_a_leg_never_spends_more_than_its_budget(
    budget: float, batch_size: int, cost: float, done: int, ends_evaluated: bool, per_step: float
) -> None:
    leg, price = leg_of(budget, batch_size, per_step=per_step, ends_evaluated=ends_evaluated), batch_size + per_step
    found = stops(leg, done=done, evaluation_cost=cost)
    steps = [step for step, _ in found]
    evaluations = sum(evaluated for _, evaluated in found)
    assert steps == sorted(set(steps))
    assert all(step > done for step in steps)
    if found:
        assert (steps[-1] - done) * price + evaluations * cost <= budget * (1 + 1e-9)
        assert (steps[-1] + 1 - done) * price + evaluations * cost > budget * (0.8 if not ends_evaluated else 0.4)


@pytest.mark.parametrize(("cost", "count"), [(5_000, int(EVALUATION_SHARE * 100_000 / 5_000)), (1_000, 3)])
def test_evaluations_are_few_and_late(cost: float, count: int) -> None:
    found = stops(leg_of(100_000, 32), done=0, evaluation_cost=cost)
    evaluated = [step for step, evaluate in found if evaluate]
    assert len(evaluated) == count
    assert evaluated[-1] == found[-1][0]
    assert evaluated[-2] == pytest.approx(evaluated[-1] / 2, abs=1)


def test_a_long_run_ends_with_an_evaluation_where_half_of_it_pays_for_one() -> None:
    assert stops(leg_of(5_000, 32, ends_evaluated=True), done=0, evaluation_cost=2_400)[-1][1]
    assert not stops(leg_of(5_000, 32, ends_evaluated=True), done=0, evaluation_cost=2_600)[-1][1]
    assert not stops(leg_of(5_000, 32), done=0, evaluation_cost=2_400)[-1][1]
