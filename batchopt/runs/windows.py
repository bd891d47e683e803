"""Many noisy losses of one run as means over windows, with their errors."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from batchopt.evidence import TrainingLosses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATIO = 1.1
"""Early windows end this factor apart in examples: a loss falls over the logarithm of examples."""
SHARE = 0.01
"""Later ones are this share of the run long, so that the end of a decay is not averaged with its beginning."""
LEAST = 9
"""The scatter of single losses is taken from at least so many around a window."""
UNKNOWN = 0.1
"""Relative error of a loss of which too few others are there to tell its scatter."""


def window_means(examples: Floats, losses: Floats) -> TrainingLosses:
    """Means over windows of a run's losses.

    The scatter of one loss is read off second differences of neighbours, so a straight trend does not count as scatter.

    Args:
        examples: seen at each, rising, (k,).
        losses: finite, (k,).

    Example:
        >>> means = window_means(np.arange(0.0, 4_000, 10), 1.0 + 0.1 * np.tile([1.0, -1.0], 200))
        >>> round(means.losses[-1], 2), means.errors[-1] < 0.1
        (1.0, True)
    """
    rows = []
    for begin, end in pairwise(_edges(examples)):
        error = _scatter(losses, begin, end) / math.sqrt(end - begin)
        rows.append((float(examples[begin:end].mean()), float(losses[begin:end].mean()), error))
    at, means, errors = zip(*rows, strict=True) if rows else ((), (), ())
    return TrainingLosses(at, means, errors)


def _edges(examples: Floats) -> list[int]:
    """Indices at which windows begin and end; the first loss is a window by itself."""
    edges = list(range(min(2, len(examples) + 1)))
    while edges[-1] < len(examples):
        here = examples[edges[-1]]
        until = here + min((RATIO - 1.0) * here, SHARE * examples[-1])
        edges.append(max(edges[-1] + 1, int(np.searchsorted(examples, until))))
    return edges


def _scatter(losses: Floats, begin: int, end: int) -> float:
    """Standard deviation of one loss about the trend, from those in and around a window."""
    missing = max(0, LEAST - (end - begin))
    low = max(0, begin - (missing + 1) // 2)
    high = min(len(losses), max(end, low + LEAST))
    bends = np.diff(losses[max(0, min(low, high - LEAST)) : high], n=2)
    return math.sqrt(float(np.mean(bends**2)) / 6.0) if len(bends) else UNKNOWN * abs(float(losses[begin]))
