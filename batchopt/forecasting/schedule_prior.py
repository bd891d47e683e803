"""What is believed of the schedule law's parameters before any loss is seen: what fits to whole sweeps share."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.schedule_law import LEAST_FORGETTING, SHAPE, Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.schedule_fit import Points

    Floats = NDArray[np.float64]

NOISE, MEMORY, FORGETTING, SATURATION = (
    SHAPE.index(name) for name in ("log_noise", "log_memory", "forgetting", "log_saturation")
)
NOISE_STEPS, NOISE_SD = 10.0, 1.5
"""What is believed of the noise is how much of it so many steps at the middle rate add, and the standard deviation of
its log. A, u_0 and beta make up for one another in a fit, so that A alone says little: over whole sweeps of eleven
problems the log of the noise of ten steps has a standard deviation of 1.2, and that of A one of 2.6."""
SATURATION_BELOW, SATURATION_ABOVE = 0.8, 2.0
"""Standard deviations of the log saturation below and above its mean: it may well be far above, where it plays no role.
Far below, where a higher rate brings nothing but noise, it was in no whole sweep."""
EARLY_SLOPE, LATE_SLOPE, LATE_STEPS = 0.21, 0.46, math.exp(4.0)
"""Slopes of D at the beginning, and after an intrinsic time of so many steps at the middle rate: geometric means of
eleven whole sweeps. A probe may end on the first plateau, whose slope says little of what comes after it."""
SLOPE_SD, SLOPE_STEP_SD = 1.5, 0.45
"""Standard deviation of the first log slope of D from that, and of the change from one knot to the next: 0.4 in whole
sweeps, and slopes that had parted from their mean did not come back to it. With slopes that do, a tenth of the way from
each knot to the next, losses of the LSTM were predicted to fall too far, and in none of three live runs was the end in
its interval."""
LARGEST_LOG_RATIO = 300.0
"""Of times, far beyond what is believed, so that a search that goes astray does not overflow."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Independent normal beliefs, but for three.

    Noise is believed by what it adds, a saturation below its mean less than one above, and a slope of D near the one
    before it.

    Attributes:
        mean: of the parameters, (parameters,).
        sd: of the residuals, (parameters,).
        log_time: log of the intrinsic time over which noise adds up.
    """

    mean: Floats
    sd: Floats
    log_time: float

    def residuals(self, rows: Floats) -> Floats:
        """Standard normal where the rows are of the prior, (n, parameters)."""
        first = len(SHAPE)
        found = rows - self.mean
        found[:, first + 1 :] -= (rows - self.mean)[:, first:-1]
        added = log_added_noise(np.concatenate([rows, self.mean[None]]), self.log_time)
        found[:, NOISE] = added[:-1] - added[-1]
        return np.asarray(found / self._sds(rows))

    def jacobian(self, rows: Floats) -> Floats:
        """Derivatives of the residuals by the parameters, (n, parameters, parameters)."""
        width, first = len(self.mean), len(SHAPE)
        found = np.tile(np.eye(width), (len(rows), 1, 1))
        after = np.arange(first + 1, width)
        found[:, after, after - 1] = -1.0
        found[:, NOISE, MEMORY], found[:, NOISE, FORGETTING] = _log_added_noise_slopes(rows, self.log_time)
        return np.asarray(found / self._sds(rows)[:, :, None])

    def _sds(self, rows: Floats) -> Floats:
        sds = np.tile(self.sd, (len(rows), 1))
        sds[rows[:, SATURATION] < self.mean[SATURATION], SATURATION] = SATURATION_BELOW
        return sds


def log_added_noise(rows: Floats, log_time: float) -> Floats:
    """Log of the noise that is left of a unit of source all along an intrinsic time u, A times the integral of K, (n,).

    The integral of (1 + s / u_0)^(-beta) up to u is u_0 ((1 + u / u_0)^(1 - beta) - 1) / (1 - beta).
    """
    power, log_ratio = _powers(rows, log_time)
    return np.asarray(rows[:, NOISE] + rows[:, MEMORY] + np.log(np.expm1(power * log_ratio) / power))


def _log_added_noise_slopes(rows: Floats, log_time: float) -> tuple[Floats, Floats]:
    """Its derivatives by the log memory and by the forgetting, (n,) each."""
    power, log_ratio = _powers(rows, log_time)
    grown = np.expm1(power * log_ratio)
    by_memory = 1.0 - power * (grown + 1.0) * -np.expm1(-log_ratio) / grown
    by_forgetting = 1.0 / power - log_ratio * (grown + 1.0) / grown
    return by_memory, np.where(rows[:, FORGETTING] > LEAST_FORGETTING, by_forgetting, 0.0)


def _powers(rows: Floats, log_time: float) -> tuple[Floats, Floats]:
    """1 - beta, not quite 0, and log(1 + u / u_0), (n,) each."""
    power = 1.0 - np.maximum(rows[:, FORGETTING], LEAST_FORGETTING)
    power = np.where(np.abs(power) < 1e-5, 1e-5, power)
    return power, np.minimum(np.logaddexp(0.0, log_time - rows[:, MEMORY]), LARGEST_LOG_RATIO)


def prior_of(points: Points, frame: Frame) -> Prior:
    """What is believed of runs like these before their losses are seen.

    Fitted to whole sweeps of eleven problems, constant and decaying (`benchmarks/truth`), kappa was -0.4 to 2.4, the
    forgetting 0.05, its bound, to 1.3, the growth of the gradient noise -0.2 to 1.9, and the memory a thousandth of the
    highest rate, within a factor of 10: means and deviations are about theirs. The saturation was within a factor of
    2.5 of the middle rate on eight networks, and far above it on softmax regression, the perceptron and the quadratic,
    which need none: it is believed to be above. The others are wide, and were set by hand.

    With beliefs of the noise of ten steps, of the saturation below its mean and of slopes, in place of wide ones of A,
    of the saturation and of slopes about their mean, the median regret of plans from 30 probes of 1 went from 19 to
    16 %, and critical batch sizes were off by 1.57 in place of 1.64, at worst by 4.1 in place of 5.6; of 164 plans from
    30 probes of 0.1, 72 in place of 95 never arrived or were refused.
    """
    every = points.courses
    rates = every.peaks
    rate = float(np.exp(np.mean(np.log(rates))))
    beliefs = {
        "log_noise": (math.log(1.5 * frame.initial_loss / rate / frame.scale), NOISE_SD),
        "log_memory": (math.log(float(rates.max())) - 6.5, 1.5),
        "forgetting": (0.7, 0.4),
        "kappa": (0.55, 0.5),
        "log_oscillation": (math.log(frame.batch_size) + 1.0, 1.5),
        "log_edge": (math.log(float(rates.max())) + 1.0, 1.0),
        "log_gradient_noise": (0.5, 2.0),
        "gradient_noise_growth": (0.85, 0.35),
        "floor": (-3.0, 2.0),
        "log_saturation": (math.log(rate) + 1.0, SATURATION_ABOVE),
    }
    shape = np.array([beliefs[name] for name in SHAPE]).T
    slopes = _log_slopes(frame, rate)
    sd = np.concatenate([shape[1], [SLOPE_SD], np.full(len(slopes) - 1, SLOPE_STEP_SD)])
    return Prior(np.concatenate([shape[0], slopes]), sd, math.log(NOISE_STEPS * rate))


def _log_slopes(frame: Frame, rate: float) -> Floats:
    """Logs of the slopes of D that are believed, between straight in the log of steps at the middle rate."""
    steps = 1.0 + np.expm1(frame.knots[:-1]) * frame.scale / rate
    share = np.minimum(np.log(steps) / math.log(LATE_STEPS), 1.0)
    return np.asarray(math.log(EARLY_SLOPE) + share * math.log(LATE_SLOPE / EARLY_SLOPE))


def starts_of(prior: Prior) -> list[Floats]:
    """Where a search begins: much and little noise, long and short memory."""
    starts = []
    for noise, memory in itertools.product((-2.0, 0.0, 2.0), (-1.0, 1.0)):
        start = prior.mean.copy()
        start[NOISE] += noise
        start[MEMORY] += memory
        starts.append(start)
    return starts
