"""Estimates and the ways that intervals are made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batchopt.errors import UnresolvedError
from batchopt.uncertainty import LEVEL, Estimate, from_draws, log_normal, ratio_interval, t_quantile


def test_a_bare_number_only_of_a_resolved_estimate() -> None:
    assert float(Estimate(2.0, 1.0, 3.0, True)) == 2.0
    doubtful = Estimate(2.0, 1.0, math.inf, False)
    with pytest.raises(UnresolvedError, match="more than 1") as caught:
        float(doubtful)
    assert caught.value.estimate is doubtful


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((math.nan, 0.0, 1.0, True), "value must be finite"),
        ((2.0, 3.0, 4.0, True), "low <= value <= high must hold"),
        ((2.0, 1.0, math.inf, True), "a resolved estimate needs a finite interval"),
        ((2.0, math.nan, 3.0, False), "low <= value <= high must hold"),
    ],
)
def test_refused(values: tuple[float, float, float, bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Estimate(*values)


@given(value=st.floats(1e-3, 1e6), log_se=st.floats(0.0, 3.0), factor=st.floats(1e-3, 1e3))
def test_log_normal_is_symmetric_on_the_log_scale_and_scales(value: float, log_se: float, factor: float) -> None:
    estimate = log_normal(value, log_se)
    assert estimate.low * estimate.high == pytest.approx(value**2, rel=1e-9)
    assert math.log(estimate.high / value) == pytest.approx(1.6449 * log_se, rel=1e-3, abs=1e-9)
    assert estimate.scaled(factor).value == pytest.approx(value * factor)


def test_a_hopelessly_wide_interval_is_unresolved() -> None:
    assert math.isinf(log_normal(1e6, 1e4).high)
    assert not log_normal(1e6, 1e4).resolved


def test_draws() -> None:
    draws = np.arange(1.0, 101.0)
    estimate = from_draws(50.0, draws)
    assert (estimate.low, estimate.high) == (5.0, 96.0)
    draws[-20:] = math.inf
    beyond = from_draws(50.0, draws)
    assert math.isinf(beyond.high)
    assert not beyond.resolved
    assert from_draws(0.5, draws).low == 0.5


def slow_fieller(numerator: float, denominator: float, covariance: np.ndarray, t: float) -> float:
    """Twin: the smallest ratio that the test (numerator - r denominator)^2 <= t^2 Var does not refuse, by search."""
    ratios = np.geomspace(1e-6, 1e6, 2_000_001)
    variance = covariance[0, 0] - 2 * ratios * covariance[0, 1] + ratios**2 * covariance[1, 1]
    accepted = (numerator - ratios * denominator) ** 2 <= t**2 * variance
    return float(ratios[np.argmax(accepted)])


def test_fieller_bound_against_a_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        groups = 16
        numerators = 10.0 + 0.1 * rng.standard_normal(groups)
        denominators = 0.02 + 0.05 * rng.standard_normal(groups)
        estimate = ratio_interval(10.0, 0.02, numerators, denominators)
        assert not estimate.resolved
        covariance = np.cov(numerators, denominators, bias=True) * (groups - 1)
        assert estimate.low == pytest.approx(slow_fieller(10.0, 0.02, covariance, 1.7531), rel=1e-3)


def test_nothing_is_left_to_doubt_in_a_whole_population() -> None:
    deleted = np.array([1.0, -1.0, 2.0])
    estimate = ratio_interval(6.0, 2.0, deleted, deleted, variance_factor=0.0)
    assert estimate == Estimate(3.0, 3.0, 3.0, True)


def test_the_bias_of_the_logarithm_is_corrected() -> None:
    # 1 / mean(y) of n draws is too high by var / (2 n mean^2) on the log scale: 0.02 here.
    rng, n, repetitions = np.random.default_rng(2), 25, 4_000
    readings = []
    for _ in range(repetitions):
        y = 1.0 + rng.standard_normal(n)
        deleted = (y.sum() - y) / (n - 1)
        estimate = ratio_interval(1.0, float(y.mean()), np.ones(n), deleted)
        if estimate.resolved:
            readings.append((math.log(estimate.value), -math.log(y.mean())))
    assert len(readings) > 0.99 * repetitions
    corrected, naive = np.array(readings).T
    standard_error = corrected.std() / math.sqrt(len(readings))
    assert abs(corrected.mean()) < 4 * standard_error
    # The planted error: what is not corrected is visibly too high.
    assert naive.mean() > 4 * standard_error


def test_jackknife_of_a_mean_ratio() -> None:
    # The jackknife of a ratio of two means is close to the delta method's standard error.
    rng = np.random.default_rng(1)
    x, y = 5.0 + rng.standard_normal(400), 3.0 + rng.standard_normal(400)
    deleted = [(np.delete(x, j).mean(), np.delete(y, j).mean()) for j in range(400)]
    numerators, denominators = np.array(deleted).T
    estimate = ratio_interval(float(x.mean()), float(y.mean()), numerators, denominators)
    delta = math.sqrt(
        (x.var() / x.mean() ** 2 + y.var() / y.mean() ** 2 - 2 * np.cov(x, y)[0, 1] / x.mean() / y.mean()) / 400
    )
    assert math.log(estimate.high / estimate.value) == pytest.approx(1.6487 * delta, rel=0.02)


def test_an_estimate_is_written_as_people_read_it() -> None:
    assert str(Estimate(1234.0, 32.5, 1280.0, False)) == "1,230 (32.5 to 1,280, unresolved)"
    assert str(Estimate(0.25, 0.2, 0.3, True)) == "0.25 (0.2 to 0.3)"
    assert str(Estimate(9.0, 4.0, math.inf, False)) == "more than 4"


def test_quantiles_are_those_of_scipys_distributions() -> None:
    upper = 0.5 + LEVEL / 2.0
    assert t_quantile(math.inf) == stats.norm.ppf(upper)
    for dof in (1, 2, 3, 7, 15, 31, 4.5, 1e3, 1e6):
        assert t_quantile(dof) == pytest.approx(stats.t.ppf(upper, dof), rel=1e-14)
