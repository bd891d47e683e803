"""How fast the law's runs make progress, tabulated: what `law` asks for thousands of settings, in its notation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LARGEST_LOG = 100.0
"""Beyond this a pace stands for never."""
_FARTHEST_LOG = 300.0
"""Logs of b, lr_S, lr_E and a are cut off here, so that products of two of them neither overflow nor vanish."""


def _bounded_exp(logs: Floats) -> Floats:
    """Exponentials of logs that are cut off far away."""
    return np.asarray(np.exp(np.clip(logs, -_FARTHEST_LOG, _FARTHEST_LOG)))


class PacesOfSizes:
    """d steps / dv at batch sizes, as a function of the learning rate: `low` / lr + `high` (lr / lr*)^a.

    That is (1 / b + 1 / B) dy/dv c(x; a) with c = (a / x + x^a) / (1 + a). All but two functions of the four arrays,
    each (n, n_sizes, n_grid), is sums and products, because 1 / lr* is 1 / lr_S + 1 / lr_E.

    Args:
        named: parameters of the law by their names, (n, 1, 1) each.
        past_mid: v beyond v_mid at the grid's points, (n_grid,).
        growth: dy/dv there, (n_grid,).
        batch_sizes: (n_sizes,).
    """

    @np.errstate(over="ignore")  # of a search that goes astray: such a pace stands for never
    def __init__(self, named: Mapping[str, Floats], past_mid: Floats, growth: Floats, batch_sizes: Floats) -> None:
        sizes = batch_sizes[:, None]
        per_b = _bounded_exp(-named["log_b"] - named["q"] * past_mid)
        per_example = per_b + 1.0 / sizes
        log_a_steps, log_a_examples = (
            np.clip(named[name], -_FARTHEST_LOG, _FARTHEST_LOG) for name in ("log_a_steps", "log_a_examples")
        )
        self.a = per_b / per_example
        self.a *= log_a_steps - log_a_examples
        self.a += log_a_examples
        np.exp(self.a, out=self.a)
        of_steps = _bounded_exp(named["d"] * past_mid - named["log_lr"])  # 1 / lr_S
        inverse = _bounded_exp(named["g"] * past_mid - named["log_lr"] - named["log_k"]) * _bounded_exp(
            named["alpha"] * (named["log_b"] - np.log(sizes))
        )  # 1 / lr_E
        inverse += of_steps
        self.high = per_example
        self.high *= growth
        self.high /= 1.0 + self.a
        self.low = self.high * self.a
        self.low /= inverse
        self.log_inverse = np.log(inverse, out=inverse)  # -log lr*

    @np.errstate(over="ignore")
    def at(self, learning_rates: Floats) -> Floats:
        """d steps / dv at rates that broadcast against (n, n_sizes), (n, k, n_grid)."""
        rates = learning_rates[..., None]
        paces = self.log_inverse + np.log(rates)
        paces *= self.a
        np.exp(paces, out=paces)
        paces *= self.high
        paces += self.low / rates
        return np.asarray(np.minimum(paces, math.exp(_LARGEST_LOG), out=paces))


def interpolate_rising(curves: Floats, values: Floats, grid: Floats, curve: NDArray[np.int_] | None = None) -> Floats:
    """Where on an even grid curves have given values, (n, m); held at its ends.

    Args:
        curves: rising, (n, k, n_grid).
        values: (m,) or (n, m).
        grid: evenly spaced, (n_grid,).
        curve: which of the k curves each value is of, (m,); None for each in turn.
    """
    n, k, points = curves.shape
    own = np.arange(k) if curve is None else curve
    values = np.broadcast_to(values, (n, len(own)))
    flat, first = curves.ravel(), (k * np.arange(n)[:, None] + own) * points
    left, last = np.zeros(values.shape, np.intp), points - 2
    # Bisection of all at once reads 5 to 7 points of each curve, where counting those below a value reads all.
    for power in reversed(range(last.bit_length())):
        ahead = np.minimum(left + (1 << power), last)
        left = np.where(flat[first + ahead] <= values, ahead, left)
    low, high = flat[first + left], flat[first + left + 1]
    part = np.clip((values - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
    return np.asarray(grid[0] + (left + part) * (grid[1] - grid[0]))


def trapezoid_weights(ends: NDArray[np.int_], n_grid: int) -> Floats:
    """That take values on a grid of spacing 1 to their integrals up to grid points (n, e), (n, n_grid, e)."""
    index = np.arange(n_grid)[:, None]
    left_of, right_of = index < ends[:, None, :], (index > 0) & (index <= ends[:, None, :])
    return np.asarray(0.5 * (left_of.astype(float) + right_of))
