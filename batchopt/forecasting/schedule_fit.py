"""The schedule law fitted to loss curves, with what it misses as a Gaussian process.

Notation
    y       log loss at a point of a run
    s       how much y falls over log examples: turns a misfit of the loss into one of pace
    delta   what the law misses of y, a Gaussian process over where and when a run is, of standard deviation s `MISSED`

Points that are near to one another, on one curve or on curves of similar settings, are missed alike. What is missed
near a setting is known there, so a prediction is the law plus delta. The law itself is fitted as if errors were
independent, with each run's points counted as a few: the full covariance would have it explain the wiggles of curves,
whose level the process takes up, and leave its parameters adrift (tried on the sweeps of `benchmarks/truth`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.forecasting.least_squares import minimise, soft, soft_slope
from batchopt.forecasting.schedule_law import Courses, Frame, log_noise_scales, losses
from batchopt.forecasting.schedule_prior import Prior, prior_of, starts_of
from batchopt.forecasting.schedule_slopes import log_loss_slopes, log_noise_scale_slopes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MISSED = 0.2
"""Standard deviation of what the law misses, as a share of the examples to a loss: at 0.15, 0.2 and 0.3,
intervals of 90 % held 0.83, 0.87 and 0.90 of the final losses of 24 probes, for a law whose noise only adds. The
numbers below were set by hand on six sweeps at constant rates; `benchmarks/law.py` shows what they give."""
OWN = 0.1
"""Of that which no other point shares: seeds, single evaluations; also a share of examples."""
INDEPENDENT_POINTS = 3.0
"""A run's points count as so many, if they are more."""
EARLY = 0.25
"""What is missed grows by this share for every octave of examples that a point comes before the end of the longest run:
a forecast carries on the end."""
BEHIND = 0.5
"""And for every octave of examples that a point is behind the fastest of its batch size: rates far from the best matter
little and follow no law."""
BATCH_OCTAVES, RATE_OCTAVES, LOG_EXAMPLES, DECAY = 3.0, 1.5, 1.2, 0.7
"""Distances over which what is missed changes: in batch size, in learning rate over the root of the batch size, in log
examples, and in how far the rate has decayed (from 0 to 1)."""
DECAYED, DECAYED_ERROR = 0.7, 0.5
"""Points at which the rate is below this share of its peak count as if their error were so much smaller: few runs have
decayed, and the ends of decays are what is asked for. For a law whose noise only adds it lowered, on six sweeps, the
median error of ends that were held back from 0.045 to 0.040, and that of the law alone from 0.068 to 0.053 (geometric
means); a quarter gained no more."""
READING_SD = 0.65
"""By how much the mean of a probe's readings of the simple noise scale differs from the law's b, in logs: 0.5 between
problems, and 0.4 of three readings that scatter by 0.7 each. Fitted to the losses of whole sweeps alone, b was
0.36 +- 0.55 above it on the seven networks whose law needs noise that slows (`benchmarks/noise_evidence.py`); where it
needs none, on softmax regression, a perceptron and a quadratic, the losses do not determine b."""
LEAST_STEEPNESS = 0.02
LATE = 2.0
"""The last so much of log examples is late: from a probe's short runs to its long ones."""
ALIKE = 0.1
"""Runs whose log examples differ by less are of one length."""
LEAST_POINTS = 6
"""Fewer points say nothing of a law with ten parameters beside its curve."""
DRAWS, DRAW_STEPS = 32, 3
WIDER = 1.3
"""Draws are disturbed by this multiple of the errors, since no such law is quite right. At 1, 1.3 and 1.6 intervals of
90 % held 77, 81 and 87 % of the critical batch sizes of 50 probes of ten problems, and 82, 86 and 91 % of 2,547 last
losses of runs beyond the probes. Plans suffer at 1.6: the 90th percentile of their regret, over 30 of these probes,
was 1.04, 0.72 and 1.53, and 1, 0 and 6 of 168 never arrived."""
SEARCH_STEPS, FIRST_STEPS, KEPT_STARTS = 60, 10, 2
WORST = 50.0
"""Residual of a run that the law lets diverge."""


@dataclass(frozen=True, slots=True)
class Points:
    """Losses of runs that the law is fitted to, or is asked for.

    Attributes:
        courses: of the runs.
        run: which run each point is of, (m,).
        piece: after which of its pieces, (m,).
        log_losses: y, (m,); of no use where they are asked for.
        errors: standard deviation of y beyond what all points have, (m,).
    """

    courses: Courses
    run: NDArray[np.int_]
    piece: NDArray[np.int_]
    log_losses: Floats
    errors: Floats

    @property
    def examples(self) -> Floats:
        """Seen at each point, (m,)."""
        seen = np.cumsum(self.courses.steps * self.courses.batch_sizes, axis=1)
        return np.asarray(seen[self.run, self.piece])

    @property
    def batch_sizes(self) -> Floats:
        """Of the steps before each point, (m,)."""
        return np.asarray(self.courses.batch_sizes[self.run, self.piece])

    @property
    def places(self) -> Floats:
        """Where and when each point is, in units of the distances over which what is missed changes, (m, 4)."""
        size, peak = self.batch_sizes, self.courses.peaks[self.run]
        left = self.courses.learning_rates[self.run, self.piece] / peak
        scaled = (
            np.log2(size) / BATCH_OCTAVES,
            np.log2(peak / np.sqrt(size)) / RATE_OCTAVES,
            np.log(self.examples) / LOG_EXAMPLES,
            left / DECAY,
        )
        return np.stack(scaled, axis=1)

    def of(self, found: Floats) -> Floats:
        """What `losses` gives, at the points: log losses, (n, m)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(found[:, self.run, self.piece + 1]))


@dataclass(frozen=True, slots=True)
class NoiseReadings:
    """Noise scales that were measured along runs. They count as one, however many: a problem's readings are off alike.

    Attributes:
        courses: of the runs up to each reading.
        log_scales: logs of the readings, (n,).
    """

    courses: Courses
    log_scales: Floats


@dataclass(frozen=True, slots=True)
class ScheduleLaw:
    """A fitted law.

    Attributes:
        frame: what its parameters are relative to.
        rows: the best parameters, then draws of the posterior, (1 + draws, parameters).
        points: that it was fitted to.
        steepness: s.
        cost: half the sum of squares at the best parameters.
        weights: that take places to what is missed, by row, (1 + draws, m).
    """

    frame: Frame
    rows: Floats
    points: Points
    steepness: float
    cost: float
    weights: Floats

    def log_losses(self, wanted: Points) -> Floats:
        """Log losses at other points, (1 + draws, k), with what the law is known to miss near them."""
        by_law = wanted.of(losses(self.rows, self.frame, wanted.courses, single=True))
        across = _kernel(wanted.places, self.points.places) * (MISSED * self.steepness) ** 2
        return np.asarray(by_law + self.weights @ across.T)


def fit_schedule_law(
    points: Points,
    frame: Frame,
    *,
    readings: NoiseReadings | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> ScheduleLaw:
    """Fit the law to points, and draw from its posterior.

    Raises:
        EvidenceError: fewer points than say anything.
    """
    check_points(points)
    prior = prior_of(points, frame)
    steepness = steepness_of(points)
    misfit = _Misfit(points, frame, prior, steepness, readings)
    starts = np.array(starts_of(prior))
    found, costs = minimise(misfit.residuals, misfit.jacobian, starts, most_steps=FIRST_STEPS)
    kept = found[np.argsort(costs, kind="stable")[:KEPT_STARTS]]
    found, costs = minimise(misfit.residuals, misfit.jacobian, kept, most_steps=SEARCH_STEPS)
    best, cost = found[int(np.argmin(costs))], float(costs.min())
    rows = np.concatenate([best[None], misfit.draws(best, cost, np.random.default_rng(seed), draws)])
    missed = points.log_losses - points.of(losses(rows, frame, points.courses))
    variance = (MISSED * steepness) ** 2
    covariance = _kernel(points.places, points.places) * variance + np.diag(points.errors**2 + (OWN * steepness) ** 2)
    return ScheduleLaw(frame, rows, points, steepness, cost, np.asarray(np.linalg.solve(covariance, missed.T).T))


def check_points(points: Points) -> None:
    """Raise EvidenceError where there are too few to say anything."""
    if len(points.log_losses) < LEAST_POINTS:
        raise EvidenceError(
            f"a law needs {LEAST_POINTS} losses after the first, got {len(points.log_losses)}: probe for longer"
        )


def steepness_of(points: Points) -> float:
    """How much log loss falls over log examples late in the runs.

    It is the fall of the lowest loss so far of a batch size, of those that have long runs the one that falls most: a
    long run may have been an unlucky one. Most runs of a probe are short, and may be on a plateau all along: they say
    nothing of what comes after it. Where only the ends of runs are known, it is how much the lowest falls from the
    shortest runs to the longest.
    """
    log_examples = np.log(points.examples)
    if np.bincount(points.run).max() == 1:
        first, apart = points.log_losses[log_examples < log_examples.min() + ALIKE], np.ptp(log_examples)
        return max(LEAST_STEEPNESS, float(first.min() - points.log_losses.min()) / apart if apart > ALIKE else 1.0)
    sizes = points.batch_sizes
    falls = []
    for size in np.unique(sizes):
        own = np.flatnonzero(sizes == size)
        own = own[np.argsort(log_examples[own], kind="stable")]
        at, lowest = log_examples[own], np.minimum.accumulate(points.log_losses[own])
        begin = max(float(at[0]), float(at[-1]) - LATE)
        if at[-1] > log_examples.max() - LATE and at[-1] > begin + ALIKE:
            falls.append((np.interp(begin, at, lowest) - lowest[-1]) / (at[-1] - begin))
    return max(LEAST_STEEPNESS, *falls) if falls else 1.0


def errors_of(
    points: Points, steepness: float, *, missed: float | None = None, independent: float = INDEPENDENT_POINTS
) -> Floats:
    """What each point may be off by as one of a run's few independent ones, (m,).

    Args:
        points: of all runs.
        steepness: s.
        missed: standard deviation of what the law misses, as a share of examples; None for `MISSED`.
        independent: a run's points count as so many, if they are more.
    """
    places = points.places
    log_examples = np.log(points.examples)
    counts = np.bincount(points.run)[points.run]
    early = (log_examples.max() - log_examples) / math.log(2.0)
    own = (MISSED if missed is None else missed) * steepness
    shared = own * (1.0 + EARLY * early) * (1.0 + BEHIND * _octaves_behind(points, log_examples))
    shared *= np.where(places[:, 3] * DECAY < DECAYED, DECAYED_ERROR, 1.0)
    return np.asarray(np.sqrt(points.errors**2 + shared**2 * np.maximum(1.0, counts / independent)))


def _octaves_behind(points: Points, log_examples: Floats) -> Floats:
    """How many octaves of examples before a point another point of its batch size had its loss, (m,)."""
    sizes = points.batch_sizes
    behind = np.zeros(len(sizes))
    for size in np.unique(sizes):
        own = np.flatnonzero(sizes == size)
        order = own[np.argsort(log_examples[own], kind="stable")]
        lowest = np.minimum.accumulate(points.log_losses[order])
        first = np.interp(-points.log_losses[own], -lowest, log_examples[order])
        behind[own] = np.maximum(0.0, log_examples[own] - first) / math.log(2.0)
    return behind


class _Misfit:
    """Residuals of rows of parameters: points, each over its own error, readings, and then the prior."""

    def __init__(
        self, points: Points, frame: Frame, prior: Prior, steepness: float, readings: NoiseReadings | None
    ) -> None:
        self.points, self.frame, self.prior, self.readings = points, frame, prior, readings
        self.errors = errors_of(points, steepness)
        self.reading_count = int(readings is not None)
        self.shifts: Floats = np.zeros((1, len(self.errors) + self.reading_count + len(prior.mean)))

    def residuals(self, rows: Floats) -> Floats:
        """(n, points + readings + parameters); large ones of the first two count by their size, not its square."""
        scaled, shifts = self._scaled(self.points.of(losses(rows, self.frame, self.points.courses)))
        parts = [soft(scaled)]
        if self.readings is not None:
            off = self._of_readings(log_noise_scales(rows, self.frame, self.readings.courses))
            off = np.nan_to_num(off, nan=WORST, posinf=WORST, neginf=-WORST)
            parts.append(soft(off + shifts[:, :1]))
        parts.append(self.prior.residuals(rows) + shifts[:, self.reading_count :])
        return np.concatenate(parts, axis=1)

    def _of_readings(self, log_scales: Floats) -> Floats:
        """How far the law's noise scales are from those measured, over what these may be off by, (n, 1)."""
        assert self.readings is not None
        return np.asarray((log_scales - self.readings.log_scales).mean(axis=1, keepdims=True) / READING_SD)

    def _scaled(self, log_losses: Floats) -> tuple[Floats, Floats]:
        count = len(self.errors)
        off = (log_losses - self.points.log_losses) / self.errors
        finite = np.nan_to_num(off, nan=WORST, posinf=WORST, neginf=-WORST)
        return finite + self.shifts[:, :count], self.shifts[:, count:]

    def jacobian(self, rows: Floats) -> Floats:
        """(n, points + readings + parameters, parameters)."""
        alike = rows[:1] if np.all(rows == rows[0]) else rows  # as where all draws start
        log_losses, slopes = log_loss_slopes(alike, self.frame, self.points.courses, self.points.run, self.points.piece)
        count, after = len(self.errors), len(self.errors) + self.reading_count
        softened = soft_slope(self._scaled(log_losses)[0]) / self.errors
        found = np.empty((len(rows), after + rows.shape[1], rows.shape[1]))
        np.multiply(softened[:, :, None], slopes, out=found[:, :count])
        if self.readings is not None:
            scales, by = log_noise_scale_slopes(alike, self.frame, self.readings.courses)
            off = self._of_readings(scales) + self.shifts[:, count:after]
            found[:, count] = soft_slope(off) * by.mean(axis=1) / READING_SD
        found[:, after:] = self.prior.jacobian(rows)
        return np.nan_to_num(found, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def draws(self, best: Floats, cost: float, rng: np.random.Generator, draws: int) -> Floats:
        """Draws of the posterior, (draws, parameters), by randomize-then-optimize (Bardsley et al. 2014).

        Each is the best fit to points and a prior that are disturbed by `WIDER` times their own errors.
        """
        count = len(self.points.log_losses)
        self.shifts = WIDER * rng.standard_normal((draws, self.shifts.shape[1]))
        self.shifts[:, :count] *= math.sqrt(max(1.0, 2.0 * cost / count))
        rows, _ = minimise(self.residuals, self.jacobian, np.tile(best, (draws, 1)), most_steps=DRAW_STEPS)
        self.shifts = np.zeros((1, self.shifts.shape[1]))
        return rows


def _kernel(first: Floats, second: Floats) -> Floats:
    """Correlation of what is missed at two lists of places."""
    middle = second.mean(axis=0)  # squares of what is near the origin lose no digits
    first, second = first - middle, second - middle
    found = first @ second.T
    found -= 0.5 * np.sum(first**2, axis=1)[:, None]
    found -= 0.5 * np.sum(second**2, axis=1)
    return np.asarray(np.exp(found, out=found))
