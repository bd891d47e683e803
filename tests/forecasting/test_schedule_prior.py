"""What is believed of the law before a loss is seen: the noise that adds up, and derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

from batchopt.forecasting.schedule_law import SHAPE
from batchopt.forecasting.schedule_prior import FORGETTING, MEMORY, NOISE, SATURATION, Prior, log_added_noise

LOG_TIME = 1.0


def prior() -> Prior:
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(len(SHAPE) + 5)
    mean[MEMORY], mean[FORGETTING] = -6.0, 0.7
    return Prior(mean, rng.uniform(0.5, 2.0, len(mean)), LOG_TIME)


def rows_of(own: Prior) -> np.ndarray:
    rows = own.mean + 0.5 * np.random.default_rng(1).standard_normal((4, len(own.mean)))
    rows[:, SATURATION] = own.mean[SATURATION] + np.array([-2.0, -0.5, 0.5, 2.0])
    rows[:, FORGETTING] = (0.02, 0.3, 0.99, 1.4)  # the first beyond its bound
    return rows


def test_noise_that_adds_up_is_the_integral_of_what_is_left() -> None:
    rows = rows_of(prior())
    for row, found in zip(rows[1:], log_added_noise(rows, LOG_TIME)[1:], strict=True):
        memory = math.exp(row[MEMORY])

        def left(log_time: float, memory: float = memory, power: float = row[FORGETTING]) -> float:
            return float((1.0 + math.exp(log_time) / memory) ** -power * math.exp(log_time))

        total, _ = integrate.quad(left, -40.0, LOG_TIME)
        assert found == pytest.approx(row[NOISE] + math.log(total), abs=1e-6)


def test_derivatives_are_those_of_the_residuals() -> None:
    own = prior()
    rows = rows_of(own)
    fast = own.jacobian(rows)
    for k in range(rows.shape[1]):
        step = 1e-5 * np.eye(rows.shape[1])[k]
        slow = (own.residuals(rows + step) - own.residuals(rows - step)) / 2e-5
        assert fast[:, :, k] == pytest.approx(slow, abs=1e-6), k


def test_a_change_that_keeps_the_noise_is_nothing_to_wonder_at() -> None:
    own = prior()
    row = own.mean[None].copy()
    row[:, MEMORY] -= 2.0
    row[:, NOISE] += log_added_noise(own.mean[None], LOG_TIME) - log_added_noise(row, LOG_TIME)
    assert abs(row[0, NOISE] - own.mean[NOISE]) > 1.0
    residuals = own.residuals(row)[0]
    assert residuals[NOISE] == pytest.approx(0.0, abs=1e-9)
    assert np.count_nonzero(np.abs(residuals) > 1e-9) == 1


def test_a_saturation_far_below_is_believed_less_than_one_far_above() -> None:
    own = prior()
    rows = np.tile(own.mean, (2, 1))
    rows[:, SATURATION] += (-1.0, 1.0)
    below, above = np.abs(own.residuals(rows)[:, SATURATION])
    assert below > 1.0
    assert above == pytest.approx(1.0 / own.sd[SATURATION])
