"""Parameters as the search sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from batchopt.errors import EvidenceError
from batchopt.search.parameters import (
    Axis,
    Log2,
    batch_size_axis,
    holds_exponent,
    learning_rate_axis,
    milestones,
    to_batch_size,
    to_learning_rate,
)


@given(st.integers(1, 10**12))
def test_milestones_rise_to_the_end(max_examples: int) -> None:
    points = milestones(max_examples)
    assert points[-1] == max_examples
    assert points == sorted(set(points))
    assert points[0] >= 1


def test_milestones_are_shared_by_runs_that_double() -> None:
    assert set(milestones(512)) & set(milestones(1024)) >= {4, 8, 16, 32, 64, 128, 256, 512}
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        milestones(0)


def test_who_holds_an_exponent() -> None:
    assert holds_exponent("log2_batch")
    assert holds_exponent(Log2("size"))
    assert not holds_exponent("batch_size")
    with pytest.raises(ValueError, match="must not be empty"):
        Log2("")
    with pytest.raises(TypeError, match="must be the name of a parameter"):
        Log2(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -8, 2.5, True, "64", None])
def test_values_that_are_no_batch_size(value: object) -> None:
    with pytest.raises(EvidenceError, match="must hold a whole number of examples"):
        to_batch_size(value, exponent=False)


@pytest.mark.parametrize("value", [-1, 61, 2.5, True, "2", math.nan, math.inf])
def test_values_that_are_no_exponent(value: object) -> None:
    with pytest.raises(EvidenceError, match="must hold a whole exponent"):
        to_batch_size(value, exponent=True)
    assert to_batch_size(5, exponent=True) == 32


def test_a_batch_size_between_whole_numbers_names_the_remedy() -> None:
    with pytest.raises(EvidenceError, match=r"got 37\.2; suggest it with suggest_int, not suggest_float"):
        to_batch_size(37.2, exponent=False)
    with pytest.raises(EvidenceError, match=r"got -8\.0$"):
        to_batch_size(-8.0, exponent=False)


@pytest.mark.parametrize("value", [64.0, np.int64(64), np.float32(64), np.int8(64)])
def test_what_was_enqueued_may_be_any_whole_number(value: object) -> None:
    size = to_batch_size(value, exponent=False)
    assert size == 64
    assert type(size) is int
    assert type(to_learning_rate(value)) is float
    assert to_batch_size(np.int8(10), exponent=True) == 1024


@settings(max_examples=60)
@given(low=st.integers(1, 500), steps=st.integers(0, 300), step=st.integers(1, 64))
def test_every_candidate_batch_size_is_allowed(low: int, steps: int, step: int) -> None:
    distribution = IntDistribution(low, low + steps * step, step=step)
    axis = batch_size_axis(distribution, exponent=False)
    assert all(distribution._contains(value) and (value - distribution.low) % step == 0 for value in axis.values)
    assert list(axis.sizes) == sorted(set(axis.sizes))
    assert axis.values[0] == distribution.low
    assert axis.values[-1] == distribution.high


def test_candidates_of_exponents_and_choices() -> None:
    assert batch_size_axis(IntDistribution(3, 6), exponent=True).sizes == (8.0, 16.0, 32.0, 64.0)
    axis = batch_size_axis(CategoricalDistribution([128, 16, 64]), exponent=False)
    assert axis.values == (16, 64, 128)
    assert batch_size_axis(CategoricalDistribution([7, 5]), exponent=True).sizes == (32.0, 128.0)
    with pytest.raises(EvidenceError, match="must come from suggest_int or from suggest_categorical"):
        batch_size_axis(FloatDistribution(8.0, 64.0), exponent=False)
    with pytest.raises(EvidenceError, match="whole number of examples, 1 or more, got 'big'"):
        batch_size_axis(CategoricalDistribution([16, "big"]), exponent=False)


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(1e-5, 1.0, log=True),
        FloatDistribution(0.0, 1.0),
        FloatDistribution(0.1, 0.1),
        FloatDistribution(0.0, 1.0, step=0.05),
        FloatDistribution(1e-12, 10.0, log=True),
    ],
)
def test_every_candidate_learning_rate_is_allowed(distribution: FloatDistribution) -> None:
    axis = learning_rate_axis(distribution)
    rng = np.random.default_rng(0)
    for i in range(len(axis.values)):
        value, size = axis.jittered(i, rng)
        assert value == size > 0
        assert distribution._contains(value)
    assert 1 <= len(axis.values) <= 36


def test_jitter_covers_the_gaps() -> None:
    axis = learning_rate_axis(FloatDistribution(0.01, 1.0, log=True))
    rng = np.random.default_rng(1)
    drawn = sorted(axis.jittered(int(rng.integers(len(axis.values))), rng)[1] for _ in range(4_000))
    gaps = np.diff(np.log(drawn))
    assert gaps.max() < 0.25 * axis.spacing


def test_learning_rates_that_are_not_positive() -> None:
    with pytest.raises(EvidenceError, match="must be a positive float"):
        learning_rate_axis(FloatDistribution(-1.0, 1.0))
    with pytest.raises(EvidenceError, match="must be a positive float"):
        learning_rate_axis(IntDistribution(1, 10))
    with pytest.raises(EvidenceError, match="must hold a positive number, got 0"):
        learning_rate_axis(CategoricalDistribution([0.1, 0.0]))
    assert learning_rate_axis(CategoricalDistribution([0.1, 0.01])).sizes == (0.01, 0.1)


def test_axis_cut_and_nearest() -> None:
    axis = Axis((8, 16, 32), (8.0, 16.0, 32.0))
    assert axis.up_to(20).values == (8, 16)
    assert axis.up_to(4).values == (8,)
    assert axis.up_to(None) is axis
    assert axis.nearest(math.sqrt(8 * 16) * 1.01) == 1
    assert Axis.only(5, 32.0).sizes == (32.0,)
