"""Nonlinear least squares of many small problems at once (Levenberg-Marquardt)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Residuals = Callable[["Floats"], "Floats"]
"""Parameters (n, p) -> residuals (n, m)."""
Jacobian = Callable[["Floats"], "Floats"]
"""Parameters (n, p) -> derivatives (n, m, p)."""

FIRST_DAMPING = 1e-2
ENOUGH = 1e-4
"""The search ends where a step lowers no sum of squares by more than this share."""


def minimise(residuals: Residuals, jacobian: Jacobian, starts: Floats, *, most_steps: int) -> tuple[Floats, Floats]:
    """Parameters with the least sum of squares, from each start by itself.

    Args:
        residuals: of all problems.
        jacobian: their derivatives.
        starts: (n, p).
        most_steps: tried by each.

    Returns:
        Parameters, (n, p), and half their sums of squares, (n,).
    """
    at = np.array(starts, dtype=np.float64)
    values = residuals(at)
    costs = 0.5 * np.sum(values**2, axis=1)
    damping = np.full(len(at), FIRST_DAMPING)
    moved, slopes = np.ones(len(at), bool), np.empty(0)
    for _ in range(most_steps):
        if np.any(moved):
            slopes = jacobian(at)
        squares = slopes.transpose(0, 2, 1) @ slopes
        downhill = -(values[:, None, :] @ slopes)[:, 0]
        diagonal = np.einsum("npp->np", squares)
        damped = squares + (damping[:, None] * (diagonal + 1e-9))[:, :, None] * np.eye(at.shape[1])
        trial = at + np.linalg.solve(damped, downhill[:, :, None])[:, :, 0]
        trial_values = residuals(trial)
        trial_costs = 0.5 * np.sum(trial_values**2, axis=1)
        better = trial_costs < costs  # False where the trial is not finite
        gain = np.where(better, costs - trial_costs, 0.0)
        at, values = np.where(better[:, None], trial, at), np.where(better[:, None], trial_values, values)
        costs = np.where(better, trial_costs, costs)
        damping = np.where(better, damping / 5.0, damping * 5.0)
        if np.all((gain <= ENOUGH * costs) & (better | (damping > 1e4))):
            break
        moved = better
    return at, costs


def soft(residuals: Floats) -> Floats:
    """Residuals r whose half square is sqrt(1 + r^2) - 1: large ones count by their size, not by its square."""
    return np.asarray(residuals * np.sqrt(2.0 / (1.0 + np.sqrt(1.0 + residuals**2))))


def soft_slope(residuals: Floats) -> Floats:
    """Derivative of `soft`."""
    root = np.sqrt(1.0 + residuals**2)
    return np.asarray(np.sqrt(0.5 * (1.0 + root)) / root)
