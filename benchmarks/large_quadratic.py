"""Of `scale.py`: a noisy quadratic with 10^6 modes, whose losses are known in closed form under any schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchopt import LearningRateSchedule
from batchopt.forecasting.horizons import schedule_of
from batchopt.learning_rate_schedule import Shape

MODES, GROUPS = 10**6, 200
FULL, FULL_BATCH = 2**27, 1024
"""Examples of the full run, and the batch size at which its budget holds so many."""
WORLDS = {"slow": (1.6, 0.08), "middle": (1.6, 0.16), "fast": (1.6, 0.3)}
"""How fast the loss falls: curvatures fall with the number of the mode to the power of the first number, and what each
adds to the loss at the start to the power of one and the second."""
FLOOR = 0.2
"""Of the loss, beside the 1 that can be learned."""
NOISE = 100.0
"""Covariance of an example's gradient over the curvature: with it critical batch sizes at the end of the full run are
around a thousand examples, as language models' are of sequences."""
PIECES = 80
"""Of a run, growing with its examples and again even: the rate is constant in each."""
HORIZON_STEP, LEAST_STEPS = 0.5, 64
HORIZONS = FULL * np.exp2(np.arange(-3.0, 6.5, HORIZON_STEP))
"""Horizons of the truth, half an octave apart."""


@dataclass(frozen=True)
class World:
    """A noisy quadratic.

    Attributes:
        curvatures: of the groups of modes, (g,).
        weights: modes of each group, (g,).
        starts: mean squares of a mode's parameter at the start, (g,).
    """

    curvatures: np.ndarray
    weights: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, name: str) -> World:
        """By its name."""
        spectrum, source = WORLDS[name]
        edges = np.unique(np.round(np.geomspace(1, MODES + 1, GROUPS + 1)))
        middles = np.sqrt(edges[:-1] * (edges[1:] - 1))
        curvatures = middles**-spectrum
        starts = curvatures ** (source / spectrum + 1.0 / spectrum - 1.0)
        own = 0.5 * np.sum((edges[1:] - edges[:-1]) * curvatures * starts)
        return cls(curvatures, edges[1:] - edges[:-1], starts / own)

    @property
    def initial_loss(self) -> float:
        """Floor included."""
        return 1.0 + FLOOR

    def loss(self, squares: np.ndarray) -> float:
        """At mean squares of the parameters."""
        return FLOOR + 0.5 * float(self.weights @ (self.curvatures * squares))

    def noise_scale(self, squares: np.ndarray) -> float:
        """tr(Sigma) / |G|^2."""
        signal = self.weights @ (self.curvatures**2 * squares)
        return float(NOISE * (self.weights @ self.curvatures) / signal)

    def run(
        self, batch_size: int, learning_rate: float, schedule: LearningRateSchedule, points: Sequence[float]
    ) -> tuple[list[float], np.ndarray]:
        """Losses at numbers of examples, rising, and the mean squares at the last; infinite where it diverges."""
        ends = np.asarray(points, float)
        edges = np.unique(np.concatenate([
            [0.0], ends, np.geomspace(min(batch_size, ends[-1]), ends[-1], PIECES), np.linspace(0, ends[-1], PIECES)
        ]))  # fmt: skip
        rates = learning_rate * schedule.means(edges)
        squares, found = self.starts, []
        for begin, end, rate in zip(edges[:-1], edges[1:], rates, strict=True):
            steps = (end - begin) / batch_size
            kept = (1.0 - rate * self.curvatures) ** 2
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                power = kept**steps
                added = rate**2 * NOISE * self.curvatures / batch_size
                total = np.where(np.abs(1.0 - kept) > 1e-12, (1.0 - power) / (1.0 - kept), steps)
                squares = power * squares + total * added
            if end in ends:
                loss = self.loss(squares)
                found.append(loss if math.isfinite(loss) and loss < 10.0 else math.inf)
        return found, squares

    def end(self, batch_size: int, learning_rate: float, horizon: float, shape: Shape = "wsd") -> float:
        """The loss at the end of a run whose rate decays."""
        return self.run(batch_size, learning_rate, schedule_of(shape, horizon, None), [horizon])[0][0]

    def examples_to(self, loss: float, batch_size: int, learning_rate: float) -> float:
        """The horizon of the shortest wsd run that ends at a loss, between those tried; infinite if none does."""
        before = math.inf
        for horizon in HORIZONS[LEAST_STEPS * batch_size <= HORIZONS]:
            end = self.end(batch_size, learning_rate, horizon)
            if end <= loss * (1.0 + 1e-9):
                part = math.log(end / loss) / math.log(end / before) if math.isfinite(before) else 0.0
                return float(horizon * 2.0 ** (-HORIZON_STEP * part))
            before = end
        return math.inf
