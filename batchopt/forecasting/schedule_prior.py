"""What is believed of the schedule law's parameters before any loss is seen."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.schedule_law import SHAPE, Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.schedule_fit import Points

    Floats = NDArray[np.float64]

_SLOPE_SD, _SLOPE_STEP_SD = 1.5, 0.5
"""Log slopes of D: the first is vague, each next one a small step away."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Independent normal beliefs of parameters, but for the slopes of D, of which the steps are independent."""

    mean: Floats
    sd: Floats

    def residuals(self, rows: Floats) -> Floats:
        """Standard normal where the rows are of the prior, (n, parameters)."""
        first = len(SHAPE)
        far = rows - self.mean
        steps = np.concatenate([far[:, : first + 1], np.diff(rows[:, first:], axis=1)], axis=1)
        return np.asarray(steps / self.sd)

    @property
    def slopes(self) -> Floats:
        """Derivatives of the residuals by the parameters, (parameters, parameters)."""
        return self.residuals(np.eye(len(self.mean)) + self.mean).T - self.residuals(self.mean[None]).T


def prior_of(points: Points, frame: Frame) -> Prior:
    """What is believed of runs like these before their losses are seen.

    Fitted to whole sweeps of eleven problems, constant and decaying (`benchmarks/truth`), kappa was -0.1 to 1.5, the
    forgetting 0.05, its bound, to 1.3, the growth of the gradient noise -0.2 to 1.6, and the memory a thousandth of the
    highest rate, within a factor of 10: means and deviations are about theirs. The saturation was within a factor of
    2.5 of the middle rate on eight networks, and far above it on softmax regression, the perceptron and the quadratic,
    which need none: it is believed to be above. The others are wide, and were set by hand.
    """
    every = points.courses
    rates = every.peaks
    rate = float(np.exp(np.mean(np.log(rates))))
    fall = math.log(frame.initial_loss / math.exp(points.log_losses.min()))
    beliefs = {
        "log_noise": (math.log(1.5 * frame.initial_loss / rate / frame.scale), 3.0),
        "log_memory": (math.log(float(rates.max())) - 6.5, 1.5),
        "forgetting": (0.7, 0.4),
        "kappa": (0.55, 0.5),
        "log_oscillation": (math.log(frame.batch_size) + 1.0, 1.5),
        "log_edge": (math.log(float(rates.max())) + 1.0, 1.0),
        "log_gradient_noise": (0.5, 2.0),
        "gradient_noise_growth": (0.85, 0.35),
        "floor": (-3.0, 2.0),
        "log_saturation": (math.log(rate) + 1.0, 2.0),
    }
    slope = math.log(max(fall, 0.05) / frame.knots[-1])
    slopes = len(frame.knots) - 1
    shape = np.array([beliefs[name] for name in SHAPE]).T
    mean = np.concatenate([shape[0], np.full(slopes, slope)])
    return Prior(mean, np.concatenate([shape[1], [_SLOPE_SD], np.full(slopes - 1, _SLOPE_STEP_SD)]))


def starts_of(prior: Prior) -> list[Floats]:
    """Where a search begins: much and little noise, long and short memory."""
    starts = []
    for noise, memory in itertools.product((-2.0, 0.0, 2.0), (-1.0, 1.0)):
        start = prior.mean.copy()
        start[SHAPE.index("log_noise")] += noise
        start[SHAPE.index("log_memory")] += memory
        starts.append(start)
    return starts
