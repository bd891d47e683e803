"""The estimator against per-example computation, and its statistics on populations with known truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import batchopt.noise_interval as noise_interval_module
import batchopt.noise_scale as noise_scale_module
from batchopt.errors import NonFiniteLossError
from batchopt.noise_scale import GradientMoments, noise_scale_of, signal_and_noise

Floats = NDArray[np.float64]
D = 60


def moments_of(
    gradients: Floats, *, groups: int = 16, population: int | None = None, weights: Floats | None = None, b: int = 1
) -> GradientMoments:
    """Moments of single gradients (n, d), as the torch side would gather them."""
    w = np.ones(len(gradients)) if weights is None else weights
    parts = np.array_split(np.arange(len(gradients)), groups)
    first = np.array([(w[i, None] * gradients[i]).sum(0) for i in parts])
    second = np.array([(w[i, None] ** 2 * gradients[i]).sum(0) for i in parts])
    return GradientMoments(
        units=np.array([float(len(i)) for i in parts]),
        weights=np.array([w[i].sum() for i in parts]),
        weights_squared=np.array([(w[i] ** 2).sum() for i in parts]),
        sum_gram=first @ first.T,
        cross_gram=second @ first.T,
        squares=np.array([(w[i] ** 2 * (gradients[i] ** 2).sum(1)).sum() for i in parts]),
        group_size=b,
        population=population,
    )


def drawn(rng: np.random.Generator, n: int, noise_scale: float) -> Floats:
    """Isotropic gradients with tr(Sigma) = D and |G|^2 = D / noise_scale."""
    mean = np.zeros(D)
    mean[0] = math.sqrt(D / noise_scale) if math.isfinite(noise_scale) else 0.0
    return mean + rng.standard_normal((n, D))


def slow_signal_and_noise(gradients: Floats, population: int | None) -> tuple[float, float]:
    """Twin: mean, sample covariance and the correction for a finite population, with whole matrices."""
    n = len(gradients)
    noise = float(np.trace(np.cov(gradients.T)))
    mean = gradients.mean(0)
    left = 1.0 if population is None else 1.0 - n / population
    return float(mean @ mean) - noise / n * left, noise


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(20, 90), groups=st.integers(2, 16), finite=st.booleans())
def test_twin_per_example(seed: int, n: int, groups: int, finite: bool) -> None:
    gradients = drawn(np.random.default_rng(seed), n, 5.0)
    population = 3 * n if finite else None
    fast = signal_and_noise(moments_of(gradients, groups=groups, population=population))
    assert fast == pytest.approx(slow_signal_and_noise(gradients, population), rel=1e-10, abs=1e-10)


def test_paper_form_for_groups() -> None:
    # Appendix A.1 with N groups of b: |G|^2 = (N Q - q)/(N - 1), tr(Sigma) = b (q - Q) N/(N - 1).
    rng = np.random.default_rng(1)
    b, units = 8, 32
    means = drawn(rng, b * units, 20.0).reshape(units, b, D).mean(1)
    q, big = float((means**2).sum(1).mean()), float((means.mean(0) ** 2).sum())
    signal, noise = signal_and_noise(moments_of(means, b=b))
    assert signal == pytest.approx((units * big - q) / (units - 1), rel=1e-10)
    assert noise == pytest.approx(b * (q - big) * units / (units - 1), rel=1e-10)


def test_weights_that_are_all_alike_change_nothing() -> None:
    gradients = drawn(np.random.default_rng(2), 64, 10.0)
    plain, weighted = moments_of(gradients), moments_of(gradients, weights=np.full(64, 7.0))
    assert signal_and_noise(weighted) == pytest.approx(signal_and_noise(plain), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(2, 16), population=st.sampled_from([None, 200]))
def test_twin_weighted(seed: int, groups: int, population: int | None) -> None:
    # Residuals one by one: w (g - G) / mean w about the weighted mean G.
    rng = np.random.default_rng(seed)
    gradients, weights = drawn(rng, 50, 5.0), rng.exponential(size=50) + 0.01
    mean = (weights[:, None] * gradients).sum(0) / weights.sum()
    rest = weights[:, None] * (gradients - mean) / weights.mean()
    noise = float((rest**2).sum()) / 49
    signal = float(mean @ mean) - noise / 50 * (1.0 if population is None else 0.75)
    fast = signal_and_noise(moments_of(gradients, groups=groups, population=population, weights=weights))
    assert fast == pytest.approx((signal, noise), rel=1e-10, abs=1e-10)


@given(scale=st.floats(1e-6, 1e6))
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    gradients = drawn(np.random.default_rng(11), 200, 20.0)
    plain, scaled = (
        noise_scale_of(moments_of(gradients)).batch_size,
        noise_scale_of(moments_of(scale * gradients)).batch_size,
    )
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-8)


def mean_error(samples: Floats, truth: float) -> float:
    """Deviation of a mean from the truth in standard errors."""
    return float(abs(samples.mean() - truth) / (samples.std(ddof=1) / math.sqrt(len(samples))))


@pytest.mark.parametrize("population", [None, 300])
def test_signal_and_noise_are_unbiased(population: int | None) -> None:
    rng = np.random.default_rng(3)
    fixed = drawn(rng, 300, 50.0)
    readings = []
    for _ in range(1_500):
        gradients = fixed[rng.permutation(300)[:100]] if population else drawn(rng, 100, 50.0)
        readings.append(signal_and_noise(moments_of(gradients, population=population)))
    signals, noises = np.array(readings).T
    mean = fixed.mean(0)
    true_signal = float(mean @ mean) if population else D / 50.0
    true_noise = float(np.trace(np.cov(fixed.T))) if population else float(D)
    assert mean_error(signals, true_signal) < 4
    assert mean_error(noises, true_noise) < 4
    # The planted error: without the factor for the finite population the signal is visibly too low.
    if population:
        naive = np.array([signal - noise / 100 / 3 for signal, noise in readings])
        assert mean_error(naive, true_signal) > 4


def test_weighted_noise_is_what_batches_show() -> None:
    # The variance of sum(w g)/sum(w) over batches of 200 is tr(Sigma) / 200 for large batches.
    rng = np.random.default_rng(4)
    n = 100_000
    weights = rng.integers(1, 6, n).astype(float)
    gradients = drawn(rng, n, 10.0)[:, :10] + 0.3 * weights[:, None]
    batches = (weights[:, None] * gradients).reshape(-1, 200, 10).sum(1) / weights.reshape(-1, 200).sum(1)[:, None]
    shown = 200.0 * float(np.trace(np.cov(batches.T)))
    _, noise = signal_and_noise(moments_of(gradients, weights=weights))
    assert noise == pytest.approx(shown, rel=0.1)


def few_dimensions(rng: np.random.Generator, n: int, noise_scale: float) -> Floats:
    """Noise that falls by 0.7 from one dimension to the next, a signal in all of them; tr(Sigma) = 1."""
    variances = 0.7 ** np.arange(20)
    residuals = np.sqrt(variances / variances.sum()) * rng.standard_normal((n, 20))
    return (20 * noise_scale) ** -0.5 + residuals


def along_the_gradient(rng: np.random.Generator, n: int, noise_scale: float) -> Floats:
    """Half of the noise along G."""
    gradients = rng.standard_normal((n, 30))
    gradients[:, 0] = math.sqrt(29) * gradients[:, 0] + math.sqrt(58 / noise_scale)
    return gradients


def heavy_tailed(rng: np.random.Generator, n: int, noise_scale: float) -> Floats:
    """Student's t with 5 degrees of freedom."""
    gradients = rng.standard_normal((n, 30)) * np.sqrt(3.0 / rng.chisquare(5.0, (n, 1)))
    gradients[:, 0] += math.sqrt(30 / noise_scale)
    return gradients


Draw = Callable[[np.random.Generator, int, float], Floats]


def coverage(draw: Draw, noise_scale: float, n: int, repetitions: int, *, seed: int) -> float:
    rng, covered = np.random.default_rng(seed), 0
    for _ in range(repetitions):
        reading = noise_scale_of(moments_of(draw(rng, n, noise_scale))).batch_size
        covered += reading.low <= noise_scale <= reading.high
    return covered / repetitions


@pytest.mark.parametrize(
    ("draw", "noise_scale", "n"),
    [
        (drawn, 30.0, 240),
        (drawn, 400.0, 200),
        (few_dimensions, 60.0, 240),
        (along_the_gradient, 60.0, 600),
        (heavy_tailed, 60.0, 240),
    ],
)
def test_intervals_cover(draw: Draw, noise_scale: float, n: int) -> None:
    # 500 repetitions at 90 % lie within 86 and 94 % with a probability of 99.7 %.
    assert 0.86 <= coverage(draw, noise_scale, n, 500, seed=5) <= 0.96


def test_intervals_of_one_standard_error_are_seen_to_be_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_interval_module, "t_quantile", lambda dof: 1.0)
    assert coverage(drawn, 30.0, 240, 300, seed=5) < 0.8


@pytest.mark.parametrize(("n", "factor"), [(300, True), (450, True), (450, False)])
def test_intervals_cover_a_finite_population(n: int, factor: bool) -> None:
    # The planted error: without the factor for drawing without replacement they hold the truth nearly always.
    rng, covered = np.random.default_rng(7), 0
    for _ in range(400):
        population = drawn(rng, 600, 80.0)
        mean = population.mean(0)
        truth = float(np.trace(np.cov(population.T)) / (mean @ mean))
        moments = moments_of(population[:n], population=600)
        signal, noise = signal_and_noise(moments)
        spread = noise_scale_module._spread(moments if factor else replace(moments, population=None))
        reading = noise_interval_module.noise_scale_interval(signal, noise, spread)
        covered += reading.low <= truth <= reading.high
    assert 0.85 <= covered / 400 <= 0.95 if factor else covered / 400 > 0.96


def test_a_whole_population_is_exact() -> None:
    population = drawn(np.random.default_rng(8), 500, 40.0)
    mean = population.mean(0)
    reading = noise_scale_of(moments_of(population, population=500)).batch_size
    assert reading.value == pytest.approx(np.trace(np.cov(population.T)) / (mean @ mean), rel=1e-9)
    assert reading.high / reading.low == pytest.approx(1.0)
    assert reading.resolved


@pytest.mark.parametrize("draw", [drawn, few_dimensions, along_the_gradient])
def test_no_signal_is_unresolved(draw: Draw) -> None:
    rng, unresolved = np.random.default_rng(9), 0
    for _ in range(600):
        reading = noise_scale_of(moments_of(draw(rng, 100, math.inf)))
        unresolved += not reading.batch_size.resolved
        if not reading.batch_size.resolved:
            assert math.isinf(reading.batch_size.high)
            assert math.isfinite(reading.batch_size.value)
    # 93 to 98 %, give or take two standard errors.
    assert 0.92 <= unresolved / 600 <= 0.99


def test_bad_moments() -> None:
    gradients = drawn(np.random.default_rng(10), 20, 10.0)
    with pytest.raises(ValueError, match="at least two groups"):
        noise_scale_of(moments_of(gradients, groups=1))
    with pytest.raises(ValueError, match="two groups at least must have positive weight"):
        noise_scale_of(moments_of(gradients, groups=2, weights=np.repeat([1.0, 0.0], 10)))
    gradients[3, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="NaN or infinite"):
        noise_scale_of(moments_of(gradients))
