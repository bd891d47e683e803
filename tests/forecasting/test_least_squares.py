"""Many small least-squares problems at once, against scipy's solver on each alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from batchopt.forecasting.least_squares import minimise, soft, soft_slope

TIMES = np.linspace(0.0, 3.0, 12)


def targets(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.exp(-rng.uniform(0.3, 2.0, (n, 1)) * TIMES) * rng.uniform(0.5, 3.0, (n, 1)) + 0.01 * rng.standard_normal(
        (n, len(TIMES))
    )


def residuals_of(data: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[:, :1] * np.exp(-np.exp(rows[:, 1:]) * TIMES) - data


def jacobian(rows: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.exp(rows[:, 1:]) * TIMES)
    return np.stack([decay, -rows[:, :1] * decay * np.exp(rows[:, 1:]) * TIMES], axis=2)


def test_every_problem_gets_its_own_optimum() -> None:
    data = targets(9)
    starts = np.tile([1.0, 0.0], (9, 1))
    found, costs = minimise(lambda rows: residuals_of(data, rows), jacobian, starts, most_steps=60)
    for row, cost, own in zip(found, costs, data, strict=True):
        twin = least_squares(lambda x, own=own: residuals_of(own[None], x[None])[0], [1.0, 0.0])
        assert cost == pytest.approx(twin.cost, rel=1e-3)
        assert row == pytest.approx(twin.x, abs=2e-3)


def test_it_never_ends_above_its_start_and_stays_finite() -> None:
    data = targets(4)

    def cliff(rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where(np.abs(rows[:, 1:]) > 1.5, np.nan, residuals_of(data, rows))

    starts = np.array([[1.0, 1.4], [50.0, -1.4], [0.0, 0.0], [-3.0, 1.0]])
    before = 0.5 * np.sum(cliff(starts) ** 2, axis=1)
    found, costs = minimise(cliff, jacobian, starts, most_steps=40)
    assert np.all(np.isfinite(found))
    assert np.all(costs <= before)


def test_large_residuals_count_by_their_size() -> None:
    values, step = np.linspace(-30.0, 30.0, 13), 1e-5
    assert 0.5 * soft(values) ** 2 == pytest.approx(np.sqrt(1.0 + values**2) - 1.0, abs=1e-12)
    slopes = (soft(values + step) - soft(values - step)) / (2.0 * step)
    assert soft_slope(values) == pytest.approx(slopes, rel=1e-8)  # central differences: off by the square of the step
