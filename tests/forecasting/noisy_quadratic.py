"""A noisy quadratic with a power-law spectrum under any schedule, in closed form: the truth that a law must describe.

Notation as in Zhang et al. 2019 (arXiv 1907.04164): curvatures h, noise C, mean squares m <- (1 - e h)^2 m + e^2 C / B.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from batchopt.forecasting.schedule_law import Course

Floats = NDArray[np.float64]
Schedule = Callable[[float], float]
"""Progress from 0 to 1 -> multiplier of the rate, or of the batch size."""

CURVATURES = np.arange(1, 257) ** -1.2
NOISE = 0.5 * CURVATURES
STARTS = CURVATURES**-0.25


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    return 0.5 * (1.0 + float(np.cos(np.pi * progress)))


def wsd(progress: float) -> float:
    return min(1.0, (1.0 - progress) / 0.2)


def ramp(progress: float) -> float:
    """Of the batch size: doubled after each third."""
    return 2.0 ** min(2, int(3.0 * progress))


def exact_losses(batch_sizes: Floats, rates: Floats) -> Floats:
    """Before the first step and after each, (steps + 1,)."""
    squares, found = STARTS**2, []
    for size, rate in zip(batch_sizes, rates, strict=True):
        found.append(0.5 * CURVATURES @ squares)
        squares = (1.0 - rate * CURVATURES) ** 2 * squares + rate**2 * NOISE / size
    return np.array([*found, 0.5 * CURVATURES @ squares])


def made_run(
    batch_size: float, rate: float, steps: int, schedule: Schedule, growth: Schedule = constant, *, pieces: int = 16
) -> tuple[Course, Floats]:
    """A run in pieces, and the exact losses after each."""
    progress = (np.arange(steps) + 0.5) / steps
    rates = rate * np.array([schedule(p) for p in progress])
    sizes = batch_size * np.array([growth(p) for p in progress])
    grid = np.concatenate([np.geomspace(1, steps, pieces), np.linspace(0, steps, pieces)])
    edges = np.unique(np.round(grid)).astype(int)
    between = list(pairwise(edges))
    mean_rates, mean_sizes = (np.array([values[a:b].mean() for a, b in between]) for values in (rates, sizes))
    return Course(np.diff(edges).astype(float), mean_sizes, mean_rates), exact_losses(sizes, rates)[edges[1:]]
