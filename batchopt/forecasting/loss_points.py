"""What a run says about its loss: evaluations, and the losses of its own training batches brought onto their scale.

The losses of training batches are free, so a probe evaluates rarely. They differ from the loss (training mode, training
examples) by a factor that changes slowly as the loss falls. Wherever a run has both, their log ratio is one reading of
that factor; a Gaussian process over the log of the training loss, shared by all runs, smooths and carries the readings.

Notation
    x    log of a mean training loss
    d    log(loss / training loss) at x: mean 0, standard deviation `OFFSET_SD` before any reading
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.evidence import Branch, TrainingLosses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OFFSET_SD = 0.2
OFFSET_LENGTH = 1.0
"""Distance in x over which the offset changes."""
READING_SD = 0.03
"""Scatter of one reading of the offset beyond the errors of training losses."""
INITIAL_SD = 0.05
"""Standard deviation of the offset at initialisation, where nothing has been learned of the training examples."""
POINTS_PER_RUN = 10
TRANSIENT = 0.05
"""A log loss this far above the initial one is of the shock that a high learning rate begins with."""
LARGEST_ERROR = 0.5
"""A mean training loss with a larger relative error says nothing about its logarithm."""
OUTLYING = 3.0
"""And a window with such an error is left out if it scatters by so many times more than the run's others."""


@dataclass(frozen=True, slots=True)
class LossPoints:
    """Points of one run's loss curve.

    Attributes:
        steps: of the run, rising, (k,).
        log_losses: (k,).
        errors: standard deviation of each log loss, independent between points, (k,).
    """

    steps: Floats
    log_losses: Floats
    errors: Floats

    def after_transient(self, log_initial: float) -> LossPoints:
        """The points after the last that is well above the initial loss.

        A rate near the stability limit first throws the loss up, and may be the best one all the same: until the loss
        is back, it tells nothing about progress.
        """
        above = np.flatnonzero(self.log_losses > log_initial + TRANSIENT)
        start = above[-1] + 1 if len(above) else 0
        return LossPoints(self.steps[start:], self.log_losses[start:], self.errors[start:])

    def steepness(self) -> float:
        """How much log loss falls over log examples, by a straight line through all points."""
        weights = 1.0 / self.errors**2
        x = np.log(self.steps) - np.average(np.log(self.steps), weights=weights)
        return float(-(weights * x) @ self.log_losses / ((weights * x) @ x))


class TrainingOffset:
    """How far the loss is above the training loss, over log training loss, from all runs that have both.

    Args:
        runs: of one probe.
        initial_loss: training loss at initialisation.
    """

    def __init__(self, runs: Sequence[Branch], initial_loss: float) -> None:
        readings = [reading for run in runs for reading in _offset_readings(run)]
        readings.append((math.log(initial_loss), 0.0, INITIAL_SD))
        columns = np.array(readings, dtype=np.float64).reshape(-1, 3).T
        self._at, values, errors = columns
        covariance = _kernel(self._at, self._at) + np.diag(errors**2 + READING_SD**2)
        self._weights = np.linalg.solve(covariance, values)

    def __call__(self, at: Floats) -> Floats:
        """The offset at log training losses, each (k,)."""
        return np.asarray(_kernel(at, self._at) @ self._weights)


def _kernel(first: Floats, second: Floats) -> Floats:
    apart = (first[:, None] - second[None, :]) / OFFSET_LENGTH
    # Half of the offset is shared by all losses, so that one reading tells something about the far end.
    return OFFSET_SD**2 * (0.5 + 0.5 * np.exp(-0.5 * apart**2))


def _offset_readings(run: Branch) -> list[tuple[float, float, float]]:
    """(log training loss, log ratio, its error) at every evaluation of a run that training losses surround."""
    if run.training is None:
        return []
    log_examples, log_losses, errors = _usable(run.training)
    readings = []
    for examples, loss in zip(run.curve.examples, run.curve.losses, strict=True):
        if examples == 0 or len(log_examples) < 2:
            continue
        # A line through the nearest windows: the training loss at the evaluation, not before it.
        near = np.abs(log_examples - math.log(examples)) < 0.7
        if near.sum() < 2:
            continue
        level, error = _line_at(log_examples[near] - math.log(examples), log_losses[near], errors[near])
        readings.append((level, math.log(loss) - level, error))
    return readings


def _line_at(x: Floats, y: Floats, errors: Floats) -> tuple[float, float]:
    """A weighted line's value at x = 0 and its standard error; its slope is between -1 and 0 or so beforehand."""
    design = np.stack([np.ones_like(x), x], axis=1) / errors[:, None]
    precision = design.T @ design + np.diag([0.0, 1.0 / 0.5**2])
    right = design.T @ (y / errors) + np.array([0.0, -0.3 / 0.5**2])
    return float(np.linalg.solve(precision, right)[0]), math.sqrt(float(np.linalg.inv(precision)[0, 0]))


def _usable(training: TrainingLosses) -> tuple[Floats, Floats, Floats]:
    """Log examples, log losses and relative errors of the windows that have a logarithm, initialisation left out."""
    examples, losses, errors = (
        np.array(column, dtype=np.float64) for column in (training.examples, training.losses, training.errors)
    )
    keep = (losses > 0) & (examples > 0)
    relative = np.maximum(errors[keep] / losses[keep], 1e-3)
    return np.log(examples[keep]), np.log(losses[keep]), relative


def loss_points(run: Branch, offset: TrainingOffset) -> LossPoints:
    """The points of a run from initialisation: its evaluations, and its training losses in bins of log steps."""
    rows = _training_points(run, offset)
    jitter = max(run.curve.jitter(), 1e-3)
    rows += [
        (examples / run.batch_size, math.log(loss), jitter)
        for examples, loss in zip(run.curve.examples, run.curve.smoothed(), strict=True)
        if examples > 0
    ]
    rows.sort()
    steps, log_losses, errors = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return LossPoints(steps, log_losses, errors)


def _training_points(run: Branch, offset: TrainingOffset) -> list[tuple[float, float, float]]:
    if run.training is None:
        return []
    log_examples, log_losses, errors = _usable(run.training)
    if not len(log_examples):
        return []
    widths = _widths(np.exp(log_examples))
    scatter = errors * np.sqrt(widths)
    usual = np.sort(scatter)[(len(scatter) - 1) // 2]
    kept = (errors < LARGEST_ERROR) | (scatter <= OUTLYING * usual)
    log_examples, log_losses, errors, widths = (each[kept] for each in (log_examples, log_losses, errors, widths))
    edges = np.linspace(log_examples[0], log_examples[-1] + 1e-9, POINTS_PER_RUN + 1)
    bins = np.clip(np.searchsorted(edges, log_examples, side="right") - 1, 0, POINTS_PER_RUN - 1)
    rows = []
    for k in np.unique(bins):
        own = bins == k
        weights = widths[own]
        error = math.sqrt(_scatter(log_examples, errors, widths, at=float(log_examples[own].mean())) / weights.sum())
        if error < LARGEST_ERROR:
            at, loss = (float(np.average(column[own], weights=weights)) for column in (log_examples, log_losses))
            rows.append((math.exp(at) / run.batch_size, loss, error))
    if not rows:
        return []
    # How well the offset is known is left out: all runs share it, so it moves the losses and not the trade-off.
    shifts = offset(np.array([loss for _, loss, _ in rows]))
    return [(steps, loss + shift, error) for (steps, loss, error), shift in zip(rows, shifts, strict=True)]


def _widths(middles: Floats) -> Floats:
    """Examples in windows with these middles, (k,): as far as half-way to the neighbours."""
    if len(middles) == 1:
        return middles
    between = 0.5 * (middles[1:] + middles[:-1])
    first, last = middles[0] - (between[0] - middles[0]), middles[-1] + (middles[-1] - between[-1])
    return np.diff(np.concatenate([[first], between, [last]]))


def _scatter(log_examples: Floats, errors: Floats, widths: Floats, *, at: float) -> float:
    """Relative variance of a window of one example, from the windows within a factor of e or so.

    A window may know its own scatter from few batches, and means that are weighted by such guesses claim up to twice
    the precision that they have.
    """
    weights = widths * np.exp(-0.5 * (log_examples - at) ** 2)
    return float(np.average(errors**2 * widths, weights=weights))


def octaves_behind(runs: Sequence[tuple[float, LossPoints]]) -> list[Floats]:
    """How far each point is behind the fastest run of its batch size at the same loss, in octaves of examples.

    Args:
        runs: batch size and points of each.

    Returns:
        For each run, (k,): 0 where no run of its batch size had that loss earlier.
    """
    behind = []
    for size, points in runs:
        logs = np.log(points.steps)
        first = logs.copy()
        for other_size, other in runs:
            if other_size == size:
                first = np.minimum(first, _log_steps_to(points.log_losses, other))
        behind.append((logs - first) / math.log(2.0))
    return behind


def _log_steps_to(log_losses: Floats, points: LossPoints) -> Floats:
    """Log steps at which a run first has each loss, interpolated; infinite where it does not."""
    lowest = np.minimum.accumulate(points.log_losses)
    return np.asarray(np.interp(-log_losses, -lowest, np.log(points.steps), right=np.inf))
