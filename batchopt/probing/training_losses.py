"""The losses of a run's own training batches as a curve: free, for the price of their scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from batchopt._checks import check_count
from batchopt.evidence import TrainingLosses

WINDOW_RATIO = 1.25
"""Windows end this factor apart in steps: a loss falls over the logarithm of examples."""
LEAST_SCATTER_STEPS = 9
"""The scatter of batches is taken from at least this many steps around a window."""


def training_losses(
    losses: Sequence[float],
    *,
    batch_size: int,
    before: TrainingLosses | None = None,
    first_step: int = 0,
    windows: int | None = None,
) -> TrainingLosses:
    """Means of batch losses over windows of steps.

    The scatter of a step is half the mean squared difference of neighbours, so a trend hardly counts as scatter.

    Args:
        losses: of one batch after another, (steps,), finite.
        batch_size: examples per step.
        before: windows of the run's earlier steps, which the new ones follow.
        first_step: steps that the run had taken before `losses`.
        windows: so many of equal width over `losses`, as far as there are steps, in place of ever wider ones from the
            run's first step on.

    Example:
        >>> curve = training_losses([4.0, 2.0, 3.0, 1.0, 2.0], batch_size=10)
        >>> curve.examples[-1], curve.losses[-1]
        (40.0, 2.0)
    """
    check_count("batch_size", batch_size)
    values = np.asarray(losses, dtype=np.float64)
    if windows is None:
        edges = [step - first_step for step in _edges(first_step, first_step + len(values))]
    else:
        edges = np.unique(np.linspace(0, len(values), windows + 1).round().astype(int)).tolist()
    rows = [] if before is None else list(zip(before.examples, before.losses, before.errors, strict=True))
    for begin, end in pairwise(edges):
        middle = (first_step + 0.5 * (begin + end - 1)) * batch_size
        error = math.sqrt(_step_variance(values, begin, end) / (end - begin))
        rows.append((middle, float(values[begin:end].mean()), error))
    examples, means, errors = zip(*rows, strict=True) if rows else ((), (), ())
    return TrainingLosses(examples, means, errors)


def _edges(begin: int, end: int) -> list[int]:
    """Steps at which windows begin and end: `begin`, then geometric, then `end`."""
    edges, edge = [begin], 1
    while edge < end:
        if edge > begin:
            edges.append(edge)
        edge = max(edge + 1, math.ceil(edge * WINDOW_RATIO))
    return [*edges, end] if end > begin else []


def _step_variance(values: np.ndarray, begin: int, end: int) -> float:
    missing = max(0, LEAST_SCATTER_STEPS - (end - begin))
    low = max(0, begin - (missing + 1) // 2)
    high = min(len(values), max(end, low + LEAST_SCATTER_STEPS))
    differences = np.diff(values[max(0, min(low, high - LEAST_SCATTER_STEPS)) : high])
    return float(0.5 * np.mean(differences**2)) if len(differences) else float(values[begin] ** 2)
