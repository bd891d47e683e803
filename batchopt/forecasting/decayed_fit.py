"""The schedule law fitted to the trials of a search whose learning rate decays, each at a pace of its own.

As in `paced_fit`, whose notation this is: a step of a run counts for e^-r steps of the law, under the schedule that the
run has. So a run in the middle of its schedule says how it would end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.decayed_law import DRAWS, PIECES, PIECES_OF_RAMP, DecayedLaw, Ends, stable_factors
from batchopt.forecasting.law_fit import initial_loss_of
from batchopt.forecasting.least_squares import minimise, soft, soft_slope
from batchopt.forecasting.loss_points import LossPoints, TrainingOffset, loss_points
from batchopt.forecasting.paced_fit import FIRST_STEPS, OWN_SD, SHORT_RUN_SD, PacedLaw, pace_covariance
from batchopt.forecasting.schedule_fit import Points, errors_of, steepness_of
from batchopt.forecasting.schedule_law import SHAPE, Courses, Frame, frame_of, losses
from batchopt.forecasting.schedule_points import course_of, edges_of
from batchopt.forecasting.schedule_prior import NOISE, prior_of
from batchopt.forecasting.schedule_slopes import log_loss_slopes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_POINTS = 3
"""A run with fewer points says nothing about its pace."""
POINTS = 8
"""Of a run that are fitted: the last ones and others evenly over the logarithm of its examples."""
MISSED, INDEPENDENT = 0.1, 4.0
"""As in `schedule_fit`, and smaller: paces take up much of what the law misses."""
FIRST_SEARCH, SEARCH, DRAW_STEPS = 6, 20, 6
"""Steps of the search from each start, from the best of them, and of each draw: with 20 and 60 nothing came out better
on the sweeps of `benchmarks/truth`."""
STARTS = ((0.0, 0.0), (-0.6, 0.5), (0.6, -0.5))
"""Standard deviations of the noise and of its memory from what is believed: little noise and much."""
WORST = 50.0
"""Residual of a point that the law lets diverge."""
PACE_STEP = 1e-4
"""Of a log pace, over which a derivative is taken: its own error is then a part in ten thousand."""
SLOWEST = 20.0
"""Log paces are cut off here, so that a search that goes astray does not overflow."""
BELOW_HIGHEST, EDGE_SD = 1.0, 2.0
"""The edge of stability is believed to be this far below the highest rate that is searched, in logarithms, or above all
that ran; and the standard deviation of that."""
WELL, WELL_PACE = 0.25, 0.5
"""A run did well whose log loss fell by this share of the largest fall, and whose log pace is no slower than that."""
SLOPE_STEP_SD = 0.5
"""How much the log slope of the signal changes from one knot to the next."""
FIRST_NOISE_SD, FIRST_SLOPE_SD, LEAST_FALL = 3.0, 1.5, 0.05
"""Without a forecast: standard deviations of the log noise and of the first log slope, whose mean is that of the fall
of the trials' losses, this much in logs at least. What probes' runs share is not so of trials at any rates: with the
beliefs of `schedule_prior`, six searches spent 1.2, 1.9 and 1.9 times as much on three problems, and one found nothing.
"""
LATEST_POINTS, LATE_SD = 4, 0.3
"""Points by which a run's latest pace is found, and the standard deviation of its distance from the pace all along."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A normal prior of the parameters: `matrix @ (row - mean)` is standard normal."""

    mean: Floats
    matrix: Floats


def fit_decayed(
    runs: Sequence[Branch],
    places: Floats,
    ends: Ends,
    *,
    spread: float,
    highest_rate: float,
    prior: tuple[DecayedLaw, Floats] | None = None,
    common: float = 0.0,
) -> PacedLaw:
    """Fit law and paces to the runs of a search.

    Args:
        runs: loss curves from initialisation, with their schedules, finished or not.
        places: u of the runs, (n_runs, n_dimensions).
        ends: of the runs that the law is asked for.
        spread: standard deviation of the smooth part of a log pace.
        highest_rate: that is searched.
        prior: the law of a forecast, and how far each of its parameters is doubted beyond its draws, (parameters,).
        common: standard deviation of a part of the log paces that all runs share: how far off a forecast may be.

    Raises:
        EvidenceError: no run has three usable points.
    """
    initial = prior[0].initial_loss if prior is not None else initial_loss_of(runs)
    delay = prior[0].delay if prior is not None else 0.0
    kept, points = _points_of(runs, initial, delay)
    if prior is None:
        lowest = float(np.exp(points.log_losses.min()))
        frame = frame_of(points.courses, initial_loss=initial, lowest_loss=lowest, is_adaptive=True)
        belief = _first_belief(points, frame, highest_rate)
    else:
        frame, belief = _belief_of(*prior, points.courses.longest)
    places, own_sd = places[kept], np.full(len(kept), OWN_SD)
    whitening = np.linalg.inv(np.linalg.cholesky(pace_covariance(places, spread, own_sd, common)))
    misfit = _Misfit(points, frame, belief, whitening)
    best, cost = _search(misfit)
    rows = np.concatenate([best[None], misfit.draws(best, cost, np.random.default_rng(0))])
    law = _law_of([runs[i] for i in kept], runs, frame, rows[:, : misfit.width], delay, ends)
    law = replace(law, proven=_proven([runs[i] for i in kept], best[misfit.width :], initial))
    if prior is not None:
        law = _with_prior(law, prior[0])
    late = misfit.late_paces(rows)
    return PacedLaw(law, places, rows[:, misfit.width :], spread, tuple(kept), own_sd, common, late)


def _law_of(
    fitted: Sequence[Branch], runs: Sequence[Branch], frame: Frame, rows: Floats, delay: float, ends: Ends
) -> DecayedLaw:
    sizes, rates = [run.batch_size for run in fitted], [run.learning_rate for run in fitted]
    return DecayedLaw(
        frame=frame,
        rows=rows,
        delay=delay,
        unstable=tuple(sorted({(run.batch_size, run.learning_rate) for run in runs if run.outcome == "diverged"})),
        batch_sizes=(min(sizes), max(sizes)),
        learning_rates=(min(rates), max(rates)),
        lowest_loss=min(min(run.curve.losses) for run in fitted),
        ends=ends,
        stable_beyond=stable_factors(len(rows)),
    )


def _proven(fitted: Sequence[Branch], log_paces: Floats, initial_loss: float) -> tuple[tuple[int, float], ...]:
    falls = np.array([math.log(initial_loss / min(run.curve.losses)) for run in fitted])
    well = (log_paces < WELL_PACE) & (falls >= WELL * falls.max())
    return tuple((run.batch_size, run.learning_rate) for run, fine in zip(fitted, well, strict=True) if fine)


def _with_prior(law: DecayedLaw, prior: DecayedLaw) -> DecayedLaw:
    """What a forecast knows beside what trials showed."""
    return replace(
        law,
        unstable=tuple(sorted({*law.unstable, *prior.unstable})),
        batch_sizes=(min(law.batch_sizes[0], prior.batch_sizes[0]), max(law.batch_sizes[1], prior.batch_sizes[1])),
        learning_rates=(
            min(law.learning_rates[0], prior.learning_rates[0]), max(law.learning_rates[1], prior.learning_rates[1])
        ),
        lowest_loss=min(law.lowest_loss, prior.lowest_loss),
        proven=(*law.proven, *prior.proven),
    )  # fmt: skip


def _points_of(runs: Sequence[Branch], initial: float, delay: float) -> tuple[list[int], Points]:
    """The indices of the runs that can be fitted, and their points."""
    offset = TrainingOffset(runs, initial)
    alive = [(i, loss_points(run, offset)) for i, run in enumerate(runs) if run.outcome != "diverged"]
    settled = [(i, own.after_transient(math.log(initial))) for i, own in alive]
    # Losses that stay above the initial one are evidence too, where there is no other.
    kept = _long_enough(settled) or _long_enough(alive)
    if not kept:
        raise EvidenceError(
            f"the law needs a loss curve of at least {LEAST_POINTS} evaluations: let trials report more often"
        )
    courses, pieces = [], []
    for i, own in kept:
        run = runs[i]
        edges = edges_of(
            run.batch_size, run.learning_rate_schedule, own.steps, pieces=PIECES, pieces_of_ramp=PIECES_OF_RAMP
        )
        courses.append(course_of(run.batch_size, run.learning_rate, run.learning_rate_schedule, edges, delay=delay))
        pieces.append(np.searchsorted(edges, own.steps) - 1)
    lengths = [len(own.steps) for _, own in kept]
    steps, log_losses = (np.concatenate([getattr(own, name) for _, own in kept]) for name in ("steps", "log_losses"))
    errors = np.concatenate([np.hypot(own.errors, SHORT_RUN_SD / len(own.steps)) for _, own in kept])
    # The law knows no loss above the initial one: what a rate that is too high does there is no progress.
    log_losses = np.minimum(log_losses, math.log(initial))
    run_of = np.repeat(np.arange(len(kept)), lengths)
    points = Points(Courses(courses), run_of, np.concatenate(pieces), log_losses, errors)
    total = errors_of(points, steepness_of(points), missed=MISSED, independent=INDEPENDENT)
    return [i for i, _ in kept], replace(points, errors=total * (1.0 + FIRST_STEPS / steps))


def _long_enough(runs: Sequence[tuple[int, LossPoints]]) -> list[tuple[int, LossPoints]]:
    return [(i, _thinned(own)) for i, own in runs if len(own.steps) >= LEAST_POINTS]


def _thinned(points: LossPoints) -> LossPoints:
    if len(points.steps) <= POINTS:
        return points
    logs = np.log(points.steps)
    wanted = np.linspace(logs[0], logs[-1], POINTS)
    keep = np.unique(np.abs(logs[:, None] - wanted).argmin(axis=0))
    return LossPoints(points.steps[keep], points.log_losses[keep], points.errors[keep])


def _first_belief(points: Points, frame: Frame, highest_rate: float) -> Belief:
    """Without a forecast: that of a probe's runs, but wider, and with slopes about those of the trials."""
    prior, first = prior_of(points, frame), len(SHAPE)
    mean, sd = prior.mean.copy(), prior.sd.copy()
    sd[NOISE], sd[first], sd[first + 1 :] = FIRST_NOISE_SD, FIRST_SLOPE_SD, SLOPE_STEP_SD
    fall = math.log(frame.initial_loss / math.exp(points.log_losses.min()))
    mean[first:] = math.log(max(fall, LEAST_FALL) / frame.knots[-1])
    edge = SHAPE.index("log_edge")
    mean[edge], sd[edge] = max(mean[edge], math.log(highest_rate) - BELOW_HIGHEST), EDGE_SD
    matrix, after = np.diag(1.0 / sd), np.arange(first + 1, len(mean))
    matrix[after, after - 1] = -1.0 / sd[after]
    return Belief(mean, matrix)


def _belief_of(law: DecayedLaw, doubt: Floats, longest: float) -> tuple[Frame, Belief]:
    """A forecast's law as a prior, with knots as far as the trials went."""
    frame, rows = law.frame, law.rows
    spacing, end = float(frame.knots[1]), math.log1p(longest / frame.scale)
    more = max(0, math.ceil((end - frame.knots[-1]) / spacing))
    covariance = np.cov(rows.T) if len(rows) > 2 else np.zeros((rows.shape[1],) * 2)
    covariance = covariance + np.diag(doubt**2)
    mean = rows[0]
    for _ in range(more):
        covariance = np.pad(covariance, ((0, 1), (0, 1)), mode="edge")
        covariance[-1, -1] += SLOPE_STEP_SD**2
        mean = np.append(mean, mean[-1])
    knots = spacing * np.arange(len(frame.knots) + more)
    return replace(frame, knots=knots), Belief(mean, np.linalg.inv(np.linalg.cholesky(covariance)))


class _Misfit:
    """Residuals of rows of parameters and paces: points, each over its own error, then both priors."""

    def __init__(self, points: Points, frame: Frame, belief: Belief, whitening: Floats) -> None:
        self.points, self.frame, self.belief, self.whitening = points, frame, belief, whitening
        self.width, self.runs = len(belief.mean), len(whitening)
        self.shifts: Floats = np.zeros((1, len(points.errors) + self.width + self.runs))

    def _log_losses(self, rows: Floats) -> Floats:
        stretch = np.exp(-np.clip(rows[:, self.width :], -SLOWEST, SLOWEST))
        return self.points.of(losses(rows[:, : self.width], self.frame, self.points.courses, stretch=stretch))

    def residuals(self, rows: Floats) -> Floats:
        """(n, points + parameters + runs); large ones of points count by their size, not by its square."""
        scaled = self._scaled(self._log_losses(rows))
        believed = (rows[:, : self.width] - self.belief.mean) @ self.belief.matrix.T
        paces = rows[:, self.width :] @ self.whitening.T
        priors = np.concatenate([believed, paces], axis=1) + self.shifts[:, scaled.shape[1] :]
        return np.concatenate([soft(scaled), priors], axis=1)

    def _scaled(self, log_losses: Floats) -> Floats:
        off = (log_losses - self.points.log_losses) / self.points.errors
        return np.nan_to_num(off, nan=WORST, posinf=WORST, neginf=-WORST) + self.shifts[:, : off.shape[1]]

    def jacobian(self, rows: Floats) -> Floats:
        """(n, points + parameters + runs, parameters + runs)."""
        points, count = self.points, len(self.points.errors)
        stretch = np.exp(-np.clip(rows[:, self.width :], -SLOWEST, SLOWEST))
        law = rows[:, : self.width]
        log_losses, slopes = log_loss_slopes(law, self.frame, points.courses, points.run, points.piece, stretch=stretch)
        softened = soft_slope(self._scaled(log_losses)) / points.errors
        found = np.zeros((len(rows), count + self.width + self.runs, self.width + self.runs))
        found[:, :count, : self.width] = softened[:, :, None] * slopes
        further = np.concatenate([rows[:, : self.width], rows[:, self.width :] + PACE_STEP], axis=1)
        by_pace = (self._log_losses(further) - log_losses) / PACE_STEP
        found[:, np.arange(count), self.width + points.run] = softened * by_pace
        found[:, count : count + self.width, : self.width] = self.belief.matrix
        found[:, count + self.width :, self.width :] = self.whitening
        return np.nan_to_num(found, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def late_paces(self, rows: Floats) -> Floats:
        """The log paces by the last losses of each run alone, (n, runs): one step from those of the whole run."""
        log_losses = self._log_losses(rows)
        further = np.concatenate([rows[:, : self.width], rows[:, self.width :] + PACE_STEP], axis=1)
        with np.errstate(invalid="ignore"):
            slopes = (self._log_losses(further) - log_losses) / PACE_STEP
            missed = self.points.log_losses - log_losses
        late = rows[:, self.width :].copy()
        for run in range(self.runs):
            own = np.flatnonzero(self.points.run == run)[-LATEST_POINTS:]
            weights = slopes[:, own] / self.points.errors[own] ** 2
            step = np.sum(weights * missed[:, own], axis=1) / (np.sum(weights * slopes[:, own], axis=1) + LATE_SD**-2)
            late[:, run] += np.where(np.isfinite(step), step, 0.0)
        return late

    def draws(self, best: Floats, cost: float, rng: np.random.Generator) -> Floats:
        """Draws of the posterior, (draws, parameters + runs), by randomize-then-optimize (Bardsley et al. 2014).

        Each is the best fit to points and priors that are disturbed by their own errors, found with the derivatives at
        the undisturbed one.
        """
        count = len(self.points.errors)
        slopes = self.jacobian(best[None])
        self.shifts = rng.standard_normal((DRAWS, self.shifts.shape[1]))
        self.shifts[:, :count] *= math.sqrt(max(1.0, 2.0 * cost / count))
        rows, _ = minimise(
            self.residuals,
            lambda rows: np.broadcast_to(slopes, (len(rows), *slopes.shape[1:])),
            np.tile(best, (DRAWS, 1)),
            most_steps=DRAW_STEPS,
        )
        self.shifts = np.zeros((1, self.shifts.shape[1]))
        return rows


def _search(misfit: _Misfit) -> tuple[Floats, float]:
    """The best parameters and half the sum of squares there."""
    mean = np.append(misfit.belief.mean, np.zeros(misfit.runs))
    sd = np.linalg.norm(np.linalg.inv(misfit.belief.matrix), axis=1)
    starts = []
    for noise, memory in STARTS:
        start = mean.copy()
        for name, far in (("log_noise", noise), ("log_memory", memory)):
            start[SHAPE.index(name)] += far * sd[SHAPE.index(name)]
        starts.append(start)
    rows, costs = minimise(misfit.residuals, misfit.jacobian, np.array(starts), most_steps=FIRST_SEARCH)
    kept = rows[np.argsort(costs, kind="stable")[:1]]
    rows, costs = minimise(misfit.residuals, misfit.jacobian, kept, most_steps=SEARCH)
    return rows[0], float(costs[0])
