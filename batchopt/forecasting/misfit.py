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

    A row holds the law's parameters, then the log pace of every run where runs have one of their own, then for each
    kind of noise scale the offset and the trend of its log ratio to the local critical batch size. Residuals of curves
    are soft: large ones count by their size, not by its square.

    Attributes:
        points: of the curves.
        frame: of the law.
        prior: of the law's parameters.
        noise: readings; may be empty.
        shifts: added to the whitened residuals before they are softened, (n, n_residuals) or (1, n_residuals).
        paces: whitening of the log paces, (n_runs, n_runs): a run takes e^pace times the steps of the law; None where
            all runs keep the law's.
    """

    points: Points
    frame: Frame
    prior: Prior
    noise: Sequence[NoiseReading]
    shifts: Floats
    paces: Floats | None = None

    @property
    def n_nuisances(self) -> int:
        """Parameters beside the law's."""
        return self._n_paces + 2 * len(self._kinds)

    @property
    def _n_paces(self) -> int:
        return 0 if self.paces is None else len(self.paces)

    @property
    def _kinds(self) -> list[str]:
        return sorted({reading.kind for reading in self.noise})

    @property
    def n_residuals(self) -> int:
        """Of one row."""
        return len(self.points.steps) + len(self.prior.mean) + len(self.noise) + self.n_nuisances

    def residuals(self, rows: Floats) -> Floats:
        """(n, n_residuals) for parameters (n, n_parameters)."""
        law, log_paces, ratios = self._parts(rows)
        table = self.frame.table(law)
        v = self._progress(table, self._steps(log_paces))
        misfit = (table.log_loss(v) - self.points.log_losses) * self.points.weights
        blocks = [misfit, (law - self.prior.mean) @ self.prior.matrix.T]
        if self.paces is not None:
            blocks.append(log_paces @ self.paces.T)
        if self.noise:
            blocks += self._noise_blocks(table, ratios)
        whitened = np.concatenate(blocks, axis=1) + self.shifts
        count = misfit.shape[1]
        whitened[:, :count] = _soft(whitened[:, :count])
        return whitened

    def loss_jacobian(self, rows: Floats) -> Floats:
        """Derivatives by the slopes of F alone, zero for all other parameters, which a search then leaves alone."""
        count, width = len(self.points.steps), len(self.prior.mean)
        law, log_paces, _ = self._parts(rows)
        table = self.frame.table(law)
        v = self._progress(table, self._steps(log_paces))
        shifts = self._shifts(len(rows))[:, :count]
        whitened = (table.log_loss(v) - self.points.log_losses) * self.points.weights + shifts
        outer = _soft_slope(whitened) * self.points.weights
        slopes = slice(len(SHAPE), width)
        out = np.zeros((len(rows), self.n_residuals, rows.shape[1]))
        out[:, :count, slopes] = outer[:, :, None] * table.log_loss_by_slopes(v)
        out[:, count : count + width, slopes] = self.prior.matrix[:, slopes]
        return out

    def jacobian(self, rows: Floats) -> Floats:
        """Derivatives of the residuals, (n, n_residuals, n_parameters).

        The slopes of F change the loss at a given progress only, and the shape changes progress only: the former have a
        closed form, the latter take finite differences of progress, which is what costs time.
        """
        count, width = len(self.points.steps), len(self.prior.mean)
        alike = rows[:1] if np.all(rows == rows[0]) else rows  # as where all draws start
        log_losses, by_law, by_pace = self._log_loss_slopes(alike)
        out = np.zeros((len(rows), self.n_residuals, rows.shape[1]))
        whitened = (log_losses - self.points.log_losses) * self.points.weights + self._shifts(len(rows))[:, :count]
        outer = _soft_slope(whitened) * self.points.weights
        np.multiply(outer[:, :, None], by_law, out=out[:, :count, :width])
        out[:, count : count + width, :width] = self.prior.matrix
        if self.paces is not None:
            out[:, np.arange(count), width + self.points.run] = outer * by_pace
            ahead = width + self._n_paces
            out[:, count + width : count + ahead, width:ahead] = self.paces
        if self.noise:
            first = count + width + self._n_paces
            # The rows themselves, then all of them with one parameter stepped, for each parameter.
            steps = np.concatenate([np.zeros((1, rows.shape[1])), _STEP * np.eye(rows.shape[1])])
            found = self._noise_residuals((alike + steps[:, None]).reshape(-1, rows.shape[1]))
            base, *stepped = found.reshape(len(steps), len(alike), -1)
            out[:, first:] = np.stack([(each - base) / _STEP for each in stepped], axis=2)
        return out

    def _log_loss_slopes(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """Log losses of all points and their derivatives by the law's parameters and by the log pace of their run.

        Returns:
            (n, n_points), (n, n_points, n_law) and (n, n_points).
        """
        n, n_shape = len(rows), len(SHAPE)
        law, log_paces, _ = self._parts(rows)
        table, steps = self.frame.table(law), self._steps(log_paces)
        # A longer pace is fewer steps of the law, which are read off the same curves.
        v, slower = np.split(self._progress(table, np.concatenate([steps, steps * (1.0 - _STEP)], axis=1)), 2, axis=1)
        stepped = np.tile(law, (n_shape, 1, 1))
        stepped[np.arange(n_shape), :, np.arange(n_shape)] += _STEP
        moved = self._progress(self.frame.table(stepped.reshape(-1, law.shape[1])), np.tile(steps, (n_shape, 1)))
        slope = table.log_loss_slope(v)
        by_law = np.empty((*v.shape, law.shape[1]))
        by_law[:, :, :n_shape] = np.moveaxis((moved.reshape(n_shape, n, -1) - v) * (slope / _STEP), 0, 2)
        by_law[:, :, n_shape:] = table.log_loss_by_slopes(v)
        return table.log_loss(v), by_law, np.asarray((slower - v) * (slope / _STEP))

    def _parts(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """Parameters of the law, log paces, ratios of noise scales."""
        width = len(self.prior.mean)
        return rows[:, :width], rows[:, width : width + self._n_paces], rows[:, width + self._n_paces :]

    def _noise_residuals(self, rows: Floats) -> Floats:
        law, _, ratios = self._parts(rows)
        return np.concatenate(self._noise_blocks(self.frame.table(law), ratios), axis=1)

    def _steps(self, log_paces: Floats) -> Floats:
        """Steps of all points at the law's pace, (n, n_points)."""
        if self.paces is None:
            return np.broadcast_to(self.points.steps, (len(log_paces), len(self.points.steps)))
        return np.asarray(self.points.steps * np.exp(-log_paces[:, self.points.run]))

    def _shifts(self, n: int) -> Floats:
        return np.broadcast_to(self.shifts, (n, self.shifts.shape[1]))

    def _progress(self, table: LawTable, steps: Floats) -> Floats:
        """v of all points after steps (n, n_points), or of all of them several times: as many."""
        points = self.points
        run = np.tile(points.run, steps.shape[1] // len(points.run))
        return table.v_of_points(steps, points.batch_sizes, points.learning_rates, run)

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
