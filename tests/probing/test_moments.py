"""Group sums: bounded in number, equal in size, and adding up to what came in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import batchopt.probing.moments as moments_module
from batchopt.probing.moments import GradientSums, MomentAccumulator, gram


def unit(k: int, *, weighted: bool = False) -> GradientSums:
    generator = torch.Generator().manual_seed(k)
    g, w = torch.randn(3, generator=generator, dtype=torch.float64), 1.0 + (k % 3 if weighted else 0)
    squared = w * w * g if weighted else None
    return GradientSums(1, w, w * w, w * g, squared, float((w * g).square().sum()))


@settings(deadline=None, max_examples=40)
@given(units=st.integers(2, 300), quota=st.integers(1, 4), weighted=st.booleans())
def test_groups_add_up(units: int, quota: int, weighted: bool) -> None:
    accumulator = MomentAccumulator(quota=quota, group_size=1, gradient_bytes=24)
    for k in range(units):
        accumulator.add(unit(k, weighted=weighted))
    moments = accumulator.moments(None)
    total = sum((unit(k, weighted=weighted) for k in range(1, units)), unit(0, weighted=weighted))
    assert accumulator.units == units == moments.units.sum()
    assert moments.weights.sum() == pytest.approx(total.weights)
    assert moments.weights_squared.sum() == pytest.approx(total.weights_squared)
    assert moments.squares.sum() == pytest.approx(total.squares)
    assert moments.sum_gram.sum() == pytest.approx(float(total.total @ total.total))
    squared = total.total if total.total_squared is None else total.total_squared
    assert moments.cross_gram.sum() == pytest.approx(float(squared @ total.total))


@given(units=st.integers(64, 2000))
@settings(deadline=None, max_examples=20)
def test_number_and_size_of_groups(units: int) -> None:
    accumulator = MomentAccumulator(quota=1, group_size=1, gradient_bytes=24)
    one = unit(0)
    for _ in range(units):
        accumulator.add(one)
    moments = accumulator.moments(None)
    assert 16 <= len(moments.units) <= 32
    # The last group may be half full, or half as large again with what did not fill one of its own.
    assert moments.units.max() <= 3 * moments.units.min()
    assert np.unique(moments.units[:-1]).size == 1


def test_large_models_keep_half_as_many_groups() -> None:
    accumulator = MomentAccumulator(quota=1, group_size=1, gradient_bytes=2**26)
    for k in range(200):
        accumulator.add(unit(k))
        assert len(accumulator.moments(None).units) <= 16
    assert len(accumulator.moments(None).units) >= 8


def test_missing_units_fill_the_group_under_way() -> None:
    accumulator = MomentAccumulator(quota=4, group_size=1, gradient_bytes=24)
    assert accumulator.missing == 4
    accumulator.add(unit(0))
    assert accumulator.missing == 3


def test_weights_may_be_missing_from_some_batches() -> None:
    both = unit(0) + unit(1, weighted=True)
    assert both.total_squared is not None
    torch.testing.assert_close(both.total_squared, unit(0).total + 2.0 * unit(1, weighted=True).total)


def test_gram_in_blocks_is_the_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moments_module._BLOCK, "cpu", 7)
    first, second = torch.randn(3, 40), torch.randn(5, 40)
    expected = first.double() @ second.double().T
    np.testing.assert_allclose(gram(list(first), list(second)), expected.numpy(), rtol=1e-12)


def test_zero_is_noticed() -> None:
    accumulator = MomentAccumulator(quota=1, group_size=1, gradient_bytes=24)
    zero = GradientSums(1, 1.0, 1.0, torch.zeros(3), None, 0.0)
    accumulator.add(zero)
    accumulator.add(zero)
    assert accumulator.is_zero()
    accumulator.add(unit(0))
    assert not accumulator.is_zero()
