"""How far the law is from what was observed: residuals and their derivatives, for many parameter rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.law import SHAPE, Frame, LawTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NOISE_OFFSET_SD = 0.6
"""Spread over problems of the log ratio of noise scale to local critical batch size."""
NOISE_TREND_SD = 0.25
"""Spread over problems of how fast that log ratio changes with log examples: the noise scale tells the level of the
critical batch size better than its growth."""
NOISE_SCATTER_SD = 0.6
"""Scatter of single readings about such a trend."""
_STEP = 1e-4
"""Of finite differences."""


@dataclass(frozen=True, slots=True)
class NoiseReading:
    """A noise scale as the fit reads it: kind, loss where it was measured, log of examples, and its standard error."""

    kind: str
    loss: float
    log_noise: float
    log_se: float


@dataclass(frozen=True, slots=True)
class Prior:
    """Gaussian prior as whitening: `matrix @ (parameters - mean)` is standard normal."""

    mean: Floats
    matrix: Floats


@dataclass(frozen=True, slots=True)
class Points:
    """Points of all usable runs.

    Attributes:
        batch_sizes: of the runs, (n_runs,).
        learning_rates: of the runs, (n_runs,).
        run: which run each point is of, rising, (n_points,).
        steps: of the run, (n_points,).
        log_losses: (n_points,).
        weights: inverse standard deviations, (n_points,).
    """

    batch_sizes: Floats
    learning_rates: Floats
    run: NDArray[np.int_]
    steps: Floats
    log_losses: Floats
    weights: Floats


@dataclass(frozen=True, slots=True)
class Misfit:
    """Residuals of parameter rows: curves, then prior, then noise readings and their nuisances.

    A row holds the law's parameters and, for each kind of noise scale, the offset and the trend of its log ratio to the
    local critical batch size. Residuals of curves are soft: large ones count by their size, not by its square.

    Attributes:
        points: of the curves.
        frame: of the law.
        prior: of the law's parameters.
        noise: readings; may be empty.
        shifts: added to the whitened residuals before they are softened, (n, n_residuals) or (1, n_residuals).
    """

    points: Points
    frame: Frame
    prior: Prior
    noise: Sequence[NoiseReading]
    shifts: Floats

    @property
    def n_nuisances(self) -> int:
        """Parameters beside the law's."""
        return 2 * len(self._kinds)

    @property
    def _kinds(self) -> list[str]:
        return sorted({reading.kind for reading in self.noise})

    @property
    def n_residuals(self) -> int:
        """Of one row."""
        return len(self.points.steps) + len(self.prior.mean) + len(self.noise) + self.n_nuisances

    def residuals(self, rows: Floats) -> Floats:
        """(n, n_residuals) for parameters (n, n_parameters)."""
        law = rows[:, : len(self.prior.mean)]
        table = self.frame.table(law)
        misfit = (table.log_loss(self._progress(table)) - self.points.log_losses) * self.points.weights
        blocks = [misfit, (law - self.prior.mean) @ self.prior.matrix.T]
        if self.noise:
            blocks += self._noise_blocks(table, rows[:, len(self.prior.mean) :])
        whitened = np.concatenate(blocks, axis=1) + self.shifts
        count = misfit.shape[1]
        whitened[:, :count] = _soft(whitened[:, :count])
        return whitened

    def jacobian(self, rows: Floats) -> Floats:
        """Derivatives of the residuals, (n, n_residuals, n_parameters).

        The slopes of F change the loss at a given progress only, and the shape changes progress only: the former have a
        closed form, the latter take finite differences of progress, which is what costs time.
        """
        n, count, width = len(rows), len(self.points.steps), len(self.prior.mean)
        law = rows[:, :width]
        table = self.frame.table(law)
        v = self._progress(table)
        out = np.zeros((n, self.n_residuals, rows.shape[1]))
        whitened = (table.log_loss(v) - self.points.log_losses) * self.points.weights + self._shifts(n)[:, :count]
        outer = _soft_slope(whitened) * self.points.weights
        for i in range(len(SHAPE)):
            stepped = law.copy()
            stepped[:, i] += _STEP
            moved = (self._progress(self.frame.table(stepped)) - v) / _STEP
            out[:, :count, i] = outer * table.log_loss_slope(v) * moved
        out[:, :count, len(SHAPE) : width] = outer[:, :, None] * table.log_loss_by_slopes(v)
        out[:, count : count + width, :width] = self.prior.matrix
        if self.noise:
            base = np.concatenate(self._noise_blocks(table, rows[:, width:]), axis=1)
            for i in range(rows.shape[1]):
                stepped = rows.copy()
                stepped[:, i] += _STEP
                changed = np.concatenate(
                    self._noise_blocks(self.frame.table(stepped[:, :width]), stepped[:, width:]), axis=1
                )
                out[:, count + width :, i] = (changed - base) / _STEP
        return out

    def _shifts(self, n: int) -> Floats:
        return np.broadcast_to(self.shifts, (n, self.shifts.shape[1]))

    def _progress(self, table: LawTable) -> Floats:
        """v of all points, (n, n_points)."""
        points = self.points
        cumulative = table.cumulative_steps(points.batch_sizes, points.learning_rates)
        ends = np.searchsorted(points.run, np.arange(len(points.batch_sizes) + 1))
        v = np.empty((len(cumulative), len(points.steps)))
        for row, curves in zip(v, cumulative, strict=True):
            for run, curve in enumerate(curves):
                own = slice(ends[run], ends[run + 1])
                row[own] = np.interp(points.steps[own], curve, table.grid)
        return v

    def _noise_blocks(self, table: LawTable, ratio: Floats) -> list[Floats]:
        log_noise = np.array([reading.log_noise for reading in self.noise])
        # All kinds are of the same gradients: together they tell as much as one, and count as one.
        apart = math.sqrt(len(self._kinds))
        spread = np.array([math.hypot(reading.log_se, apart * NOISE_SCATTER_SD) for reading in self.noise])
        v = np.stack([table.v_of_loss(reading.loss) for reading in self.noise], axis=1)
        v = np.minimum(v, self.frame.knots[-1])
        kind = np.array([self._kinds.index(reading.kind) for reading in self.noise])
        offsets, trends = ratio[:, 0::2], ratio[:, 1::2]
        log_ratio = offsets[:, kind] + trends[:, kind] * (v - self.frame.v_mid)
        readings = (table.log_b(v) + log_ratio - log_noise) / spread
        return [readings, offsets / (apart * NOISE_OFFSET_SD), trends / (apart * NOISE_TREND_SD)]


def _soft(values: Floats) -> Floats:
    """Residuals whose half square is sqrt(1 + values^2) - 1."""
    return np.asarray(np.sign(values) * np.sqrt(2.0 * (np.sqrt(1.0 + values**2) - 1.0)))


def _soft_slope(values: Floats) -> Floats:
    """Derivative of `_soft`."""
    root = np.sqrt(1.0 + values**2)
    return np.asarray(1.0 / np.sqrt(root**2 * 2.0 / (1.0 + root)))
