"""The interval of a noise scale: its variances against slow twins and repetitions, its ends, and its edges."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import batchopt.noise_interval as noise_interval_module
from batchopt.noise_interval import Spread, noise_scale_interval, noise_spread

Floats = NDArray[np.float64]

SPREAD = Spread(
    groups=20,
    mean_variance=1 / 400,
    mean_square=0.02 + 1 / 400,
    along_mean=0.0006,
    quadratic=0.02,
    noise_variance=0.1,
    covariance=0.0002,
)


def spread_of(gradients: Floats, groups: int, left: float = 1.0) -> tuple[float, float, Spread]:
    """Signal, noise and spread of single gradients (n, d), by definition."""
    n, mean = len(gradients), gradients.mean(0)
    rest = gradients - mean
    parts = np.array_split(np.arange(n), groups)
    summed = np.array([rest[part].sum(0) for part in parts])
    squares = np.array([(rest[part] ** 2).sum() for part in parts])
    noise = float(squares.sum()) / (n - 1)
    spread = noise_spread(
        units=np.array([float(len(part)) for part in parts]),
        residual_gram=summed @ summed.T,
        projections=summed @ mean,
        squared_residuals=squares,
        mean_square=float(mean @ mean),
        left=left,
    )
    return float(mean @ mean) - noise * left / n, noise, spread


def deviation(samples: list[float], truth: float) -> float:
    """Of a mean from the truth, in standard errors."""
    return abs(float(np.mean(samples)) - truth) / (float(np.std(samples, ddof=1)) / math.sqrt(len(samples)))


def test_twin_of_the_trace_of_the_square() -> None:
    # The mean of (a' b)^2 over pairs with the means of three and of four different vectors taken off, by four loops.
    x = np.random.default_rng(0).standard_normal((7, 3)) + 2.0
    g = x @ x.T
    pairs, threes, fours = [], [], []
    for i in range(7):
        for j in set(range(7)) - {i}:
            pairs.append(g[i, j] ** 2)
            for k in set(range(7)) - {i, j}:
                threes.append(g[i, j] * g[i, k])
                fours += [g[i, j] * g[k, m] for m in set(range(7)) - {i, j, k}]
    slow = np.mean(pairs) - 2 * np.mean(threes) + np.mean(fours)
    assert noise_interval_module._trace_of_square(g) == pytest.approx(slow, rel=1e-10)


def test_variances_are_what_repetitions_show() -> None:
    # Var(S) = 4 G' Sigma G / n + 2 tr(Sigma^2) / n^2, and what the spread says of both parts is unbiased.
    rng = np.random.default_rng(1)
    n, deviations = 64, np.array([1.5, 1.0, 0.5, 0.25])
    mean = np.array([0.1, 0.2, 0.3, 0.1])
    linear, quadratic = float(mean**2 @ deviations**2), float((deviations**4).sum())
    signals, linears, quadratics, uncorrected = [], [], [], []
    for _ in range(3_000):
        signal, _noise, spread = spread_of(mean + deviations * rng.standard_normal((n, 4)), groups=16)
        signals.append(signal)
        quadratics.append(spread.quadratic)
        linears.append(spread.along_mean - spread.quadratic / n)
        uncorrected.append(spread.along_mean)
    shown = float(np.var(signals))
    assert shown == pytest.approx(4 * linear / n + 2 * quadratic / n**2, rel=4 * math.sqrt(2 / 3_000) * 1.5)
    assert deviation(quadratics, quadratic) < 4
    # Pairs within one of the 16 groups count twice.
    assert np.mean(linears) == pytest.approx(linear + quadratic / n / 16, rel=0.03)
    # The planted error: what a jackknife sees counts the quadratic part twice.
    assert np.mean(uncorrected) > 1.3 * linear


def test_a_gradient_is_not_projected_on_itself() -> None:
    # Residuals of very unlike lengths and no third moment: squared residual and projection are not correlated.
    rng = np.random.default_rng(2)
    covariances, naive = [], []
    for _ in range(2_000):
        gradients = rng.standard_normal((48, 5)) * np.exp(0.7 * rng.standard_normal((48, 1)))
        _signal, _noise, spread = spread_of(gradients, groups=12)
        covariances.append(spread.covariance)
        naive.append(spread.covariance + spread.noise_variance / 48)
    assert deviation(covariances, 0.0) < 4
    assert deviation(naive, 0.0) > 5


@given(signal=st.floats(0.004, 1.0), scale=st.floats(1e-6, 1e6))
def test_the_unit_of_the_gradients_does_not_matter(signal: float, scale: float) -> None:
    scaled = replace(
        SPREAD,
        mean_square=SPREAD.mean_square * scale,
        along_mean=SPREAD.along_mean * scale**2,
        quadratic=SPREAD.quadratic * scale**2,
        noise_variance=SPREAD.noise_variance * scale**2,
        covariance=SPREAD.covariance * scale**2,
    )
    plain, other = noise_scale_interval(signal, 1.0, SPREAD), noise_scale_interval(signal * scale, scale, scaled)
    assert other.resolved == plain.resolved
    assert (other.value, other.low, other.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-6)


@given(signal=st.floats(-0.1, 0.1), groups=st.integers(2, 64), n=st.integers(10, 10**5))
def test_ends_are_in_order(signal: float, groups: int, n: int) -> None:
    reading = noise_scale_interval(signal, 1.0, replace(SPREAD, groups=groups, mean_variance=1 / n))
    assert 0 <= reading.low <= reading.value <= reading.high
    assert reading.resolved == math.isfinite(reading.high)
    if signal > 0:
        assert reading.value == pytest.approx(max(reading.low, 1.0 / signal if signal > 1e-30 else 0.0))


def test_at_its_ends_the_ratio_is_just_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_interval_module, "t_quantile", lambda dof: 1.7)
    signal, e = 0.02, SPREAD.mean_variance
    reading = noise_scale_interval(signal, 1.0, SPREAD)
    uncorrected = SPREAD.along_mean / SPREAD.mean_square
    corrected = (SPREAD.along_mean - SPREAD.quadratic * e) / signal
    r = (2 * corrected + uncorrected) / 3
    for end in (reading.low, reading.high):
        along = 4.0 * (1.0 / end) * r * e + 2.0 * SPREAD.quadratic * e**2  # Var(S) if |G|^2 = 1 / end
        variance = end**2 * along - 4.0 * end * SPREAD.covariance * e + SPREAD.noise_variance * e * end * signal
        assert (1.0 - end * signal) ** 2 == pytest.approx(1.7**2 * variance, rel=1e-9)


def test_what_is_not_resolved() -> None:
    weak = noise_scale_interval(1e-4, 1.0, SPREAD)
    negative = noise_scale_interval(-0.5, 1.0, SPREAD)
    assert not weak.resolved
    assert not negative.resolved
    assert weak.high == negative.high == math.inf
    # A negative signal bounds no better than none.
    assert negative.low == noise_scale_interval(0.0, 1.0, SPREAD).low > weak.low > 0
    assert noise_scale_interval(0.1, 0.0, SPREAD).low == 0.0


def test_a_whole_population_has_no_width() -> None:
    reading = noise_scale_interval(0.02, 1.0, replace(SPREAD, mean_variance=0.0))
    assert (reading.value, reading.low, reading.high) == pytest.approx((50.0, 50.0, 50.0))
    assert reading.resolved


def test_three_groups_take_the_noise_to_be_in_one_dimension() -> None:
    gradients = np.random.default_rng(3).standard_normal((30, 40))
    _signal, noise, spread = spread_of(gradients, groups=3)
    assert spread.quadratic == pytest.approx(noise**2)
    _signal, noise, spread = spread_of(gradients, groups=6)
    assert spread.quadratic < 0.1 * noise**2
