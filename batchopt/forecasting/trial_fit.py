"""The law fitted to the trials of a search, each at a pace of its own that a Gaussian process explains.

Trials differ in more than the law knows: other hyperparameters, seeds, what the law misses far from its best rates.
Here a step of a run counts for e^-r steps of the law, r a Gaussian process over the places of the trials, so that a
run's pace carries over to its neighbours and leaves the law alone. Law and paces are found together; the posterior is
sampled around the optimum.

Notation
    u    place of a trial: batch size, learning rate and others, in units of the distance over which paces change
    r    log pace of a run, a smooth part over u plus what is its own
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.drawn_law import DrawnLaw
from batchopt.forecasting.least_squares import minimise
from batchopt.forecasting.loss_points import LossPoints, TrainingOffset, loss_points
from batchopt.forecasting.schedule_fit import Points, errors_of, prior_of, steepness_of
from batchopt.forecasting.schedule_law import SHAPE, Courses, Frame, frame_of, losses
from batchopt.forecasting.schedule_points import course_of, edges_of
from batchopt.forecasting.schedule_slopes import log_loss_slopes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 24
LEAST_POINTS = 3
"""A run with fewer points says nothing about its pace."""
PIECES = 7
"""A course has so many pieces beside those that its points ask for: half of what a forecast takes, for speed."""
POINTS = 8
"""Of a run that are fitted: the last ones and others evenly over the logarithm of its examples."""
OWN_SD = 0.06
"""Standard deviation of the part of a log pace that no other run shares: seeds, data order."""
MISSED, INDEPENDENT = 0.05, 4.0
"""As in `schedule_fit`, and smaller: paces take up much of what the law misses."""
SHORT_RUN_SD = 0.06
"""Standard deviation of a log loss that may be jitter, times the number of points: few do not show how they scatter."""
FIRST_STEPS = 10.0
"""Losses after so many steps count half: optimizers are not themselves yet."""
FIRST_SEARCH, SEARCH, DRAW_STEPS = 6, 20, 3
KEPT_STARTS = 2
WORST = 50.0
"""Residual of a point that the law lets diverge."""
PACE_STEP = 1e-4


@dataclass(frozen=True, slots=True)
class Belief:
    """A normal prior of the parameters: `matrix @ (row - mean)` is standard normal."""

    mean: Floats
    matrix: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PacedLaw:
    """The law of a search with the paces of its runs.

    Attributes:
        law: best guess and draws.
        places: u of the runs, (n_runs, n_dimensions).
        log_paces: r of the runs, for the best guess and each draw, (1 + n_draws, n_runs).
        spread: standard deviation of the smooth part of a log pace, before any run.
        fitted: indices of the runs that were fitted, among those that were given, (n_runs,).
        own_sd: standard deviation of the part of a log pace that no other run shares, (n_runs,).
        common: standard deviation of the part that all runs share, before any run.
    """

    law: DrawnLaw
    places: Floats
    log_paces: Floats
    spread: float
    fitted: tuple[int, ...]
    own_sd: Floats
    common: float = 0.0

    @classmethod
    def without_runs(cls, law: DrawnLaw, n_dimensions: int, spread: float) -> PacedLaw:
        """A law that no run has told anything about paces yet."""
        return cls(law, np.zeros((0, n_dimensions)), np.zeros((len(law.rows), 0)), spread, (), np.zeros(0))

    def log_paces_at(self, places: Floats) -> tuple[Floats, Floats]:
        """The smooth part of log paces at places (k, n_dimensions).

        Returns:
            its mean for the best guess and each draw, (1 + n_draws, k), and its standard deviation, (k,).
        """
        covariance = pace_covariance(self.places, self.spread, self.own_sd, self.common)
        across = _kernel(places, self.places, self.spread) + self.common**2
        solved = np.linalg.solve(covariance, across.T)  # (n_runs, k)
        variance = self.spread**2 + self.common**2 - np.sum(across * solved.T, axis=1)
        return self.log_paces @ solved, np.sqrt(np.maximum(variance, 0.0))


def pace_covariance(places: Floats, spread: float, own_sd: Floats, common: float = 0.0) -> Floats:
    """Of the log paces of runs at places, (n_runs, n_runs)."""
    return _kernel(places, places, spread) + common**2 + np.diag(own_sd**2)


def _kernel(first: Floats, second: Floats, spread: float) -> Floats:
    apart = np.sum((first[:, None, :] - second[None, :, :]) ** 2, axis=2)
    return np.asarray(spread**2 * np.exp(-0.5 * apart))


def fit_trials(
    runs: Sequence[Branch],
    places: Floats,
    *,
    spread: float,
    highest_rate: float,
    prior: tuple[DrawnLaw, Floats] | None = None,
    common: float = 0.0,
) -> PacedLaw:
    """Fit law and paces to the runs of a search.

    Args:
        runs: loss curves from initialisation, under any schedule.
        places: u of the runs, (n_runs, n_dimensions).
        spread: standard deviation of the smooth part of a log pace.
        highest_rate: that is searched.
        prior: the law of a forecast, and how far each of its parameters is doubted beyond its draws, (parameters,).
        common: standard deviation of a part of the log paces that all runs share: how far off a forecast may be.

    Raises:
        EvidenceError: no run has three usable points.
    """
    initial = prior[0].initial_loss if prior is not None else _initial_loss(runs)
    delay = prior[0].delay if prior is not None else 0.0
    kept, points = _points_of(runs, initial, delay)
    lowest = float(np.exp(points.log_losses.min()))
    if prior is None:
        # Nobody said what kind of optimizer it is: of an adaptive one, others are a special case.
        frame = frame_of(points.courses, initial_loss=initial, lowest_loss=lowest, is_adaptive=True)
        belief = _first_belief(points, frame, highest_rate)
    else:
        frame, belief = _belief_of(*prior, points.courses.longest)
        lowest = min(lowest, prior[0].lowest_loss)
    places = places[kept]
    own_sd = np.full(len(places), OWN_SD)
    whitening = np.linalg.inv(np.linalg.cholesky(pace_covariance(places, spread, own_sd, common)))
    misfit = _Misfit(points, frame, belief, whitening)
    best, cost = _search(misfit)
    rows = np.concatenate([best[None], misfit.draws(best, cost, np.random.default_rng(0))])
    width = len(belief.mean)
    unstable = {(run.batch_size, run.learning_rate) for run in runs if run.outcome == "diverged"}
    law = DrawnLaw(frame, rows[:, :width], delay, tuple(sorted(unstable)), lowest)
    return PacedLaw(law, places, rows[:, width:], spread, tuple(kept), own_sd, common)


def _initial_loss(runs: Sequence[Branch]) -> float:
    """Loss before the first step: evaluated, or a guess."""
    evaluated = [run.curve.losses[0] for run in runs if run.curve.examples[:1] == (0,)]
    if evaluated:
        return float(np.median(evaluated))
    # The slowest run has hardly begun: a guess above it would be progress that nobody made.
    return 1.01 * max(run.curve.losses[0] for run in runs if run.curve.losses)


def _points_of(runs: Sequence[Branch], initial: float, delay: float) -> tuple[list[int], Points]:
    """The indices of the runs that can be fitted, and their points."""
    offset = TrainingOffset(runs, initial)
    alive = [(i, loss_points(run, offset)) for i, run in enumerate(runs) if run.outcome != "diverged"]
    settled = [(i, points.after_transient(math.log(initial))) for i, points in alive]
    kept = [(i, points) for i, points in settled if len(points.steps) >= LEAST_POINTS]
    if not kept:  # losses that stay above the initial one are evidence too, where there is no other
        kept = [(i, points) for i, points in alive if len(points.steps) >= LEAST_POINTS]
    if not kept:
        raise EvidenceError(
            f"the law needs a loss curve of at least {LEAST_POINTS} evaluations: let trials report more often"
        )
    courses, pieces, columns = [], [], []
    for i, points in kept:
        run, chosen = runs[i], _thinned(points)
        edges = edges_of(run.batch_size, run.learning_rate_schedule, chosen.steps, pieces=PIECES)
        courses.append(course_of(run.batch_size, run.learning_rate, run.learning_rate_schedule, edges, delay=delay))
        pieces.append(np.searchsorted(edges, chosen.steps) - 1)
        unseen = SHORT_RUN_SD / len(chosen.steps)
        columns.append((chosen.steps, chosen.log_losses, np.hypot(chosen.errors, unseen)))
    run_of = np.repeat(np.arange(len(kept)), list(map(len, pieces)))
    steps, log_losses, errors = (np.concatenate(column) for column in zip(*columns, strict=True))
    # The law knows no loss above the initial one: what a rate that is too high does there is no progress.
    log_losses = np.minimum(log_losses, math.log(initial))
    points = Points(Courses(courses), run_of, np.concatenate(pieces), log_losses, errors)
    total = errors_of(points, steepness_of(points), missed=MISSED, independent=INDEPENDENT)
    return [i for i, _ in kept], replace(points, errors=total * (1.0 + FIRST_STEPS / steps))


def _thinned(points: LossPoints) -> LossPoints:
    if len(points.steps) <= POINTS:
        return points
    logs = np.log(points.steps)
    wanted = np.linspace(logs[0], logs[-1], POINTS)
    keep = np.unique(np.abs(logs[:, None] - wanted).argmin(axis=0))
    return LossPoints(points.steps[keep], points.log_losses[keep], points.errors[keep])


def _first_belief(points: Points, frame: Frame, highest_rate: float) -> Belief:
    prior = prior_of(points, frame)
    mean, sd = prior.mean.copy(), prior.sd.copy()
    beliefs = {
        "pace": (0.85, 0.2),
        "log_gradient_noise": (1.5, 3.0),
        "log_edge": (max(mean[SHAPE.index("log_edge")], math.log(highest_rate) - 1.0), 2.0),
    }
    for name, (middle, spread) in beliefs.items():
        mean[SHAPE.index(name)], sd[SHAPE.index(name)] = middle, spread
    return Belief(mean, replace(prior, mean=mean, sd=sd).slopes)


def _belief_of(law: DrawnLaw, doubt: Floats, longest: float) -> tuple[Frame, Belief]:
    """A forecast's law as a prior, with knots as far as the trials went."""
    frame, rows = law.frame, law.rows
    spacing, end = float(frame.knots[1]), math.log1p(longest / frame.scale)
    more = max(0, math.ceil((end - frame.knots[-1]) / spacing))
    covariance = np.cov(rows.T) if len(rows) > 2 else np.zeros((rows.shape[1],) * 2)
    covariance = covariance + np.diag(doubt**2)
    mean, count = rows[0], rows.shape[1]
    for _ in range(more):
        covariance = np.pad(covariance, ((0, 1), (0, 1)), mode="edge")
        covariance[-1, -1] += 0.5**2
        mean = np.append(mean, mean[-1])
    knots = spacing * np.arange(len(frame.knots) + more)
    assert len(mean) == count + more
    return replace(frame, knots=knots), Belief(mean, np.linalg.inv(np.linalg.cholesky(covariance)))


class _Misfit:
    """Residuals of rows of parameters and paces: points, each over its own error, then both priors."""

    def __init__(self, points: Points, frame: Frame, belief: Belief, whitening: Floats) -> None:
        self.points, self.frame, self.belief, self.whitening = points, frame, belief, whitening
        self.width, self.runs = len(belief.mean), len(whitening)
        self.shifts: Floats = np.zeros((1, len(points.errors) + self.width + self.runs))

    def _log_losses(self, rows: Floats) -> Floats:
        stretch = np.exp(-np.clip(rows[:, self.width :], -20.0, 20.0))
        return self.points.of(losses(rows[:, : self.width], self.frame, self.points.courses, stretch=stretch))

    def residuals(self, rows: Floats) -> Floats:
        """(n, points + parameters + runs); large ones of points count by their size, not by its square."""
        scaled = self._scaled(self._log_losses(rows))
        root = np.sqrt(1.0 + scaled**2)
        believed = (rows[:, : self.width] - self.belief.mean) @ self.belief.matrix.T
        paces = rows[:, self.width :] @ self.whitening.T
        priors = np.concatenate([believed, paces], axis=1) + self.shifts[:, scaled.shape[1] :]
        return np.concatenate([scaled * np.sqrt(2.0 / (1.0 + root)), priors], axis=1)

    def _scaled(self, log_losses: Floats) -> Floats:
        off = (log_losses - self.points.log_losses) / self.points.errors
        return np.nan_to_num(off, nan=WORST, posinf=WORST, neginf=-WORST) + self.shifts[:, : off.shape[1]]

    def jacobian(self, rows: Floats) -> Floats:
        """(n, points + parameters + runs, parameters + runs)."""
        points, count = self.points, len(self.points.errors)
        stretch = np.exp(-np.clip(rows[:, self.width :], -20.0, 20.0))
        law = rows[:, : self.width]
        log_losses, slopes = log_loss_slopes(
            law, self.frame, points.courses, points.run, points.piece, stretch=stretch
        )
        root = np.sqrt(1.0 + self._scaled(log_losses) ** 2)
        softened = np.sqrt(0.5 * (1.0 + root)) / root / points.errors
        found = np.zeros((len(rows), count + self.width + self.runs, self.width + self.runs))
        found[:, :count, : self.width] = softened[:, :, None] * slopes
        further = np.concatenate([rows[:, : self.width], rows[:, self.width :] + PACE_STEP], axis=1)
        by_pace = (self._log_losses(further) - log_losses) / PACE_STEP
        found[:, np.arange(count), self.width + points.run] = softened * by_pace
        found[:, count : count + self.width, : self.width] = self.belief.matrix
        found[:, count + self.width :, self.width :] = self.whitening
        return np.nan_to_num(found, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def draws(self, best: Floats, cost: float, rng: np.random.Generator) -> Floats:
        """Draws of the posterior, (draws, parameters + runs), by randomize-then-optimize (Bardsley et al. 2014).

        Each is the best fit to points and priors that are disturbed by their own errors, found with the derivatives at
        the undisturbed one.
        """
        count = len(self.points.errors)
        slopes = self.jacobian(best[None])[0]
        squares = slopes.T @ slopes
        self.shifts = rng.standard_normal((DRAWS, self.shifts.shape[1]))
        self.shifts[:, :count] *= math.sqrt(max(1.0, 2.0 * cost / count))
        rows = np.tile(best, (DRAWS, 1))
        values = self.residuals(rows)
        for _ in range(DRAW_STEPS):
            trial = rows - np.linalg.solve(squares, slopes.T @ values.T).T
            found = self.residuals(trial)
            better = np.sum(found**2, axis=1) < np.sum(values**2, axis=1)
            rows, values = (np.where(better[:, None], *each) for each in ((trial, rows), (found, values)))
        self.shifts = np.zeros((1, self.shifts.shape[1]))
        return rows


def _search(misfit: _Misfit) -> tuple[Floats, float]:
    """The best parameters and half the sum of squares there."""
    mean = np.append(misfit.belief.mean, np.zeros(misfit.runs))
    sd = np.linalg.norm(np.linalg.inv(misfit.belief.matrix), axis=1)
    starts = []
    for noise, memory in ((0.0, 0.0), (-0.6, 0.5), (0.6, -0.5)):
        start = mean.copy()
        for name, far in (("log_noise", noise), ("log_memory", memory)):
            start[SHAPE.index(name)] += far * sd[SHAPE.index(name)]
        starts.append(start)
    rows, costs = minimise(misfit.residuals, misfit.jacobian, np.array(starts), most_steps=FIRST_SEARCH)
    kept = rows[np.argsort(costs, kind="stable")[:1]]
    rows, costs = minimise(misfit.residuals, misfit.jacobian, kept, most_steps=SEARCH)
    return rows[0], float(costs[0])
