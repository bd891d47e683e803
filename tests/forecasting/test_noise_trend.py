"""The noise-scale regression: between readings, beyond them, and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchopt.forecasting.noise_trend import NoiseTrend, fit_noise_trend
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.uncertainty import Estimate, log_normal


def reading(loss: float, value: float, *, log_se: float = 0.1, resolved: bool = True) -> NoiseScale:
    estimate = log_normal(value, log_se) if resolved else Estimate(value, value, math.inf, False)
    return NoiseScale("simple", 1.0, value, estimate, 1_000, 1, None, "exact", "width", MeasuredAt(100, loss, 64, 0.1))


def power_law(loss: float) -> float:
    return 100.0 * loss**-1.2


def test_follows_a_power_law_and_extrapolates_it() -> None:
    trend = fit_noise_trend([reading(loss, power_law(loss), log_se=0.02) for loss in (2.0, 1.0, 0.5, 0.25)])
    assert trend is not None
    assert trend(0.7).value == pytest.approx(power_law(0.7), rel=0.05)
    beyond = trend(0.05)
    assert beyond.low < power_law(0.05) < beyond.high


def test_interval_widens_with_extrapolation() -> None:
    trend = fit_noise_trend([reading(loss, power_law(loss)) for loss in (2.0, 1.0, 0.5)])
    assert trend is not None
    widths = [math.log(trend(loss).high / trend(loss).low) for loss in (0.5, 0.2, 0.05, 0.01)]
    assert widths == sorted(widths)
    assert widths[-1] > 2.0 * widths[0]


def test_a_vague_reading_weighs_less_than_a_sharp_one() -> None:
    sharp = fit_noise_trend([reading(1.0, 100.0, log_se=0.02), reading(1.01, 400.0, log_se=0.7)])
    assert sharp is not None
    # Variances 0.02^2 and 0.7^2, each with the scatter of readings 0.2^2: the vague one weighs 7 %, log 4 x 7 % = 10 %.
    assert sharp(1.0).value == pytest.approx(110.0, rel=0.03)


def test_interval_covers_noisy_power_laws() -> None:
    rng, covered = np.random.default_rng(5), 0
    for _ in range(200):
        slope = 1.5 * rng.standard_normal()
        readings = [
            reading(x, 100.0 * x**slope * math.exp(0.2 * rng.standard_normal()), log_se=0.2) for x in (2.0, 1.0, 0.5)
        ]
        trend = fit_noise_trend(readings)
        assert trend is not None
        estimate = trend(0.25)
        covered += estimate.low <= 100.0 * 0.25**slope <= estimate.high
    # The slope is drawn from the prior, so the interval covers at least its 90 % but for the bend it also allows.
    assert covered >= 170


def test_unresolved_readings_are_left_out() -> None:
    assert fit_noise_trend([reading(1.0, 100.0), reading(0.5, 10.0, resolved=False)]) is None


def test_outside_of_the_table() -> None:
    trend = fit_noise_trend([reading(1.0, 100.0), reading(0.5, 150.0)])
    assert trend is not None
    with pytest.raises(ValueError, match=r"loss must lie within 0\.005 to 100"):
        trend(1e-4)
    assert NoiseTrend.from_json(trend.to_json()) == trend
