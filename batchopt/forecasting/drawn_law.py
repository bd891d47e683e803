"""The schedule law as a search uses it: draws of its parameters, without what the law misses.

Everything is read off curves of loss over examples, one for each setting. Of a constant rate a curve is the run itself;
of a rate that decays its points are the ends of runs with longer and longer horizons, because a loss is reached at the
end of a decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.schedule_law import SHAPE, Courses, Frame, losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_LOG = -700.0
PIECES = 26
"""Of a run at a constant rate, evenly over the logarithm of its steps."""
FIRST_STEP = 1.0
SIGNAL_POINTS = 256
"""At which the signal is tabulated to find where it falls to a loss."""


@dataclass(frozen=True, slots=True, eq=False)
class DrawnLaw:
    """The best guess and draws of the law's parameters, in this order wherever there are rows.

    Attributes:
        frame: what they are relative to.
        rows: (1 + draws, parameters).
        delay: steps that momentum lags behind.
        unstable: (batch size, learning rate) of runs that diverged: at most that batch size, no such rate is used.
        lowest_loss: lowest loss that was observed; below it everything is extrapolation.
    """

    frame: Frame
    rows: Floats
    delay: float
    unstable: tuple[tuple[int, float], ...]
    lowest_loss: float

    @property
    def initial_loss(self) -> float:
        """L_0 of the law."""
        return self.frame.initial_loss

    def curves(self, batch_sizes: Floats, learning_rates: Floats, longest: float) -> LossCurves:
        """Losses along runs at a constant rate, for k settings, up to so many examples."""
        last = np.maximum(longest / batch_sizes, 2.0 * FIRST_STEP)
        edges = FIRST_STEP * (last[:, None] / FIRST_STEP) ** np.linspace(0.0, 1.0, PIECES)
        lagged = edges - self.delay * -np.expm1(-edges / self.delay) if self.delay else edges
        steps = np.diff(lagged, axis=1, prepend=0.0)
        rates = np.broadcast_to(learning_rates[:, None], steps.shape)
        found = losses(self.rows, self.frame, Courses.even(steps, batch_sizes, rates), single=True)[:, :, 1:]
        found = np.log(np.nan_to_num(found, nan=math.inf)).astype(np.float64)
        found[:, self.is_unstable(batch_sizes, learning_rates)] = np.inf
        return LossCurves(np.log(edges * batch_sizes[:, None]), found)

    def loss_ahead(self, beyond: float) -> Floats:
        """The loss that the signal has when v is so far beyond where it had the lowest observed loss, (1 + draws,)."""
        v = np.linspace(0.0, self.frame.knots[-1] + 3.0 * beyond, SIGNAL_POINTS)
        signal = self._signal(v)
        reached = np.array([np.interp(-self.lowest_loss, -row, v) for row in signal])
        return np.array([np.interp(at + beyond, v, row) for at, row in zip(reached, signal, strict=True)])

    def _signal(self, v: Floats) -> Floats:
        spacing = float(self.frame.knots[1])
        slopes = np.exp(self.rows[:, len(SHAPE) :])
        knot = np.minimum((v / spacing).astype(int), slopes.shape[1] - 1)
        before = (np.cumsum(slopes, axis=1) - slopes) * spacing
        depth = before[:, knot] + slopes[:, knot] * (v - knot * spacing)
        floor = self.frame.lowest_loss / (1.0 + np.exp(-self.rows[:, SHAPE.index("floor")]))[:, None]
        return np.asarray(floor + (self.frame.initial_loss - floor) * np.exp(-depth))

    def is_unstable(self, batch_sizes: Floats, learning_rates: Floats) -> NDArray[np.bool_]:
        """Whether runs are taken to diverge, (k,)."""
        limits = np.full(len(batch_sizes), np.inf)
        for size, rate in self.unstable:
            limits = np.minimum(limits, np.where(batch_sizes <= size, rate, np.inf))
        return np.asarray(learning_rates >= limits)


@dataclass(frozen=True, slots=True)
class LossCurves:
    """Losses over examples of k settings.

    Attributes:
        log_examples: rising, (k, g).
        log_losses: (1 + draws, k, g); inf where a run diverges.
    """

    log_examples: Floats
    log_losses: Floats

    def log_examples_to(self, log_losses: Floats) -> Floats:
        """Log examples at which the curves first fall to a loss of each row (n,), (n, k); inf where they don't."""
        far = self.log_losses - log_losses[:, None, None]
        below = far <= 0.0
        first = np.argmax(below, axis=2)[:, :, None]
        before = np.maximum(first - 1, 0)
        low, high = (np.take_along_axis(far, at, axis=2)[:, :, 0] for at in (first, before))
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(first[:, :, 0] > 0, high / np.maximum(high - low, 1e-12), 1.0)
        part = np.where(np.isfinite(high), np.clip(part, 0.0, 1.0), 1.0)
        setting = np.arange(far.shape[1])
        at, start = (self.log_examples[setting, index[:, :, 0]] for index in (first, before))
        return np.where(below.any(axis=2), start + part * (at - start), np.inf)

    def log_losses_at(self, log_examples: Floats) -> Floats:
        """Log losses after log examples (n, k), (n, k); held at the ends of the curves."""
        low, high = self.log_examples[:, 0], self.log_examples[:, -1]
        at = np.clip((log_examples - low) / (high - low), 0.0, 1.0) * (self.log_examples.shape[1] - 1)
        left = np.minimum(at.astype(int), self.log_examples.shape[1] - 2)[:, :, None]
        first, second = (np.take_along_axis(self.log_losses, left + i, axis=2)[:, :, 0] for i in (0, 1))
        with np.errstate(invalid="ignore"):
            found = first + (at - left[:, :, 0]) * (second - first)
        return np.where(np.isnan(found), np.inf, found)
