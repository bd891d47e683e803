"""Populations with a known noise scale: what is drawn from them is what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from populations import (
    GaussianSource,
    Population,
    SampledSource,
    along_the_gradient,
    few_dimensions,
    heavy_tailed,
    isotropic,
)


@pytest.mark.parametrize("make", [isotropic, few_dimensions, along_the_gradient])
def test_noise_scale_by_definition(make: Callable[[float], Population]) -> None:
    population = make(30.0)
    assert population.variances.sum() == pytest.approx(1.0)
    assert 1.0 / (population.mean @ population.mean) == pytest.approx(30.0)
    assert np.all(make(math.inf).mean == 0)


def test_shapes_of_the_noise() -> None:
    assert (isotropic(30.0).d_eff, isotropic(30.0).rho) == pytest.approx((200.0, 1 / 200))
    assert few_dimensions(30.0).d_eff == pytest.approx(5.66, abs=0.01)
    assert along_the_gradient(30.0).rho == pytest.approx(0.5)


def deviation(first: list[float], second: list[float]) -> float:
    """Between two means, in standard errors."""
    error = math.sqrt((np.var(first) + np.var(second)) / len(first))
    return abs(float(np.mean(first)) - float(np.mean(second))) / error


@pytest.mark.parametrize("make", [few_dimensions, along_the_gradient])
def test_twin_of_the_short_way_to_sums(make: Callable[[float], Population]) -> None:
    population = make(5.0)
    sums = {
        source: [source(population, np.random.default_rng([k, source is SampledSource])).take(6) for k in range(3_000)]
        for source in (GaussianSource, SampledSource)
    }
    short, long = sums.values()
    for read in (
        lambda s: s.squares,
        lambda s: s.squares**2,
        lambda s: float(s.total @ s.total),
        lambda s: float(s.total @ s.total) ** 2,
        lambda s: float(s.total @ s.total) * s.squares,
    ):
        assert deviation([read(s) for s in short], [read(s) for s in long]) < 4


@pytest.mark.parametrize("population", [heavy_tailed(20.0, "student"), heavy_tailed(20.0, "lognormal")])
def test_tails_keep_the_covariance(population: Population) -> None:
    gradients = population.sample(200_000, np.random.default_rng(0))
    assert np.trace(np.cov(gradients.T)) == pytest.approx(1.0, rel=0.05)


def test_groups_of_examples_are_less_noisy() -> None:
    population = replace(isotropic(30.0), group_size=16)
    squares = [population.source(np.random.default_rng(k)).take(100).squares / 100 for k in range(200)]
    assert np.mean(squares) == pytest.approx(1 / 30 + 1 / 16, rel=0.02)


def test_weights() -> None:
    population = replace(isotropic(30.0, 10), weighted=True)
    source = population.source(np.random.default_rng(0))
    sums = source.take(100_000)
    weight = sums.weights / sums.units
    mean = sums.total.numpy() / sums.weights
    assert sums.total_squared is not None
    residuals = sums.squares - 2 * float(sums.total_squared.numpy() @ mean) + sums.weights_squared * float(mean @ mean)
    assert residuals / sums.units / weight**2 * 30.0 == pytest.approx(source.truth, rel=0.03)


def test_a_finite_population_is_its_own_truth() -> None:
    population = replace(isotropic(30.0, 20), size=50)
    source = population.source(np.random.default_rng(3))
    whole = source.take(50)
    mean = whole.total.numpy() / 50
    square = float(mean @ mean)
    assert (whole.squares - 50 * square) / 49 / square == pytest.approx(source.truth)
    assert source.take(10).units == 0
