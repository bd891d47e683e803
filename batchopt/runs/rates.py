"""The learning-rate schedule of a run, from the rates that it logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchopt.learning_rate_schedule import LearningRateSchedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SAME = 2e-3
"""Shares of the peak rate that differ by less are the same: three digits are what logs keep."""


def schedule_of_rates(examples: Floats, rates: Floats, *, peak: float | None = None) -> LearningRateSchedule | None:
    """The schedule that logged rates follow; None for a constant rate.

    Points that lie on a line between others are left out. Before the first point a rate that rises is taken to have
    risen as fast from the beginning, and any other to have been what it was there.

    Args:
        examples: seen when each rate was logged, rising, (k,).
        rates: zero or more, one of them above it, (k,).
        peak: the rate that multipliers are shares of; the highest logged if None.

    Example:
        >>> found = schedule_of_rates(np.array([0.0, 50, 100, 800, 900, 1_000]), np.array([0, 0.5, 1, 1, 0.5, 0]))
        >>> found.examples, found.multipliers
        ((0, 100, 800, 1000), (0.0, 1.0, 1.0, 0.0))
    """
    shares = rates / (float(rates.max()) if peak is None else peak)
    for level in (0.0, 1.0):  # rounding must not make a stable rate look as if it fell
        shares = np.where(np.abs(shares - level) <= SAME, level, shares)
    if np.all(shares == 1.0):
        return None
    if examples[0] > 0:
        first = shares[0]
        if len(shares) > 1 and shares[1] > shares[0] + SAME:
            first = max(0.0, shares[0] - examples[0] * (shares[1] - shares[0]) / (examples[1] - examples[0]))
        examples, shares = np.concatenate([[0.0], examples]), np.concatenate([[first], shares])
    kept = _corners(examples, shares)
    return LearningRateSchedule(tuple(int(examples[i]) for i in kept), tuple(float(shares[i]) for i in kept))


def _corners(x: Floats, y: Floats) -> list[int]:
    """Points between which lines stay within `SAME` of all others (Ramer 1972, Douglas and Peucker 1973)."""
    kept, open_ = {0, len(x) - 1}, [(0, len(x) - 1)]
    while open_:
        first, last = open_.pop()
        inner = slice(first + 1, last)
        apart = np.abs(np.interp(x[inner], x[[first, last]], y[[first, last]]) - y[inner])
        if len(apart) and apart.max() > SAME:
            corner = first + 1 + int(np.argmax(apart))
            kept.add(corner)
            open_ += [(first, corner), (corner, last)]
    return sorted(kept)
