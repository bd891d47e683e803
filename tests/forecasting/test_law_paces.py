"""Reading curves and integrals off a grid, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from batchopt.forecasting.law_paces import interpolate_rising, trapezoid_weights


@pytest.mark.parametrize("n_grid", [2, 3, 40, 128])
def test_bisection_agrees_with_interpolation(n_grid: int) -> None:
    rng = np.random.default_rng(0)
    grid, curve = np.linspace(0.0, 7.0, n_grid), np.repeat([0, 2, 1], 6)
    steps = rng.uniform(0.0, 1.0, (4, 3, n_grid)) * (rng.uniform(size=(4, 3, n_grid)) < 0.7)  # some are level
    curves = np.cumsum(steps, axis=2)
    values = rng.uniform(-0.2, 1.2, (4, 18)) * curves[:, curve, -1]
    slow = [
        [np.interp(value, curves[i, k] + 1e-12 * grid, grid) for value, k in zip(values[i], curve, strict=True)]
        for i in range(4)
    ]
    np.testing.assert_allclose(interpolate_rising(curves, values, grid, curve), slow, rtol=1e-9, atol=1e-9)


def test_weights_integrate_to_each_point() -> None:
    rng = np.random.default_rng(0)
    values, ends = rng.standard_normal((3, 9)), np.array([[0, 1], [4, 5], [7, 8]])
    slow = [[np.trapezoid(own[: end + 1]) for end in up_to] for own, up_to in zip(values, ends, strict=True)]
    np.testing.assert_allclose((values[:, None] @ trapezoid_weights(ends, 9))[:, 0], slow, atol=1e-14)
