"""Fitting the shared law to whole loss curves and to readings of the noise scale.

All points of all runs are fitted at once by least squares with priors, so a short run at one batch size, a stopped one
and the long reference run all inform the same few parameters. Noise scales enter as readings of the local critical
batch size with an unknown offset and trend, because the noise scale is a proxy whose ratio to the truth differs by
problem and drifts along a run. The posterior is the Gaussian around the optimum (Laplace).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.law import SHAPE, LawPosterior, LawTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

N_DRAWS = 64
LEAST_POINTS = 3
"""A run with fewer evaluations on the clock says nothing about its pace."""
POINTS_PER_RUN = 8
INDEPENDENT_POINTS_PER_RUN = 2.0
"""Points of one curve share its misfit, so a run counts as this many independent points at most."""
MODEL_ERROR = 0.03
"""Standard deviation of log loss that the law misses, added to each curve's own jitter."""
NOISE_OFFSET_SD = 0.9
"""Spread over problems of the log ratio of noise scale to local critical batch size."""
NOISE_TREND_SD = 0.5
"""Spread over problems of how fast that log ratio changes with log progress: the noise scale tells the level of the
critical batch size better than its growth."""
NOISE_SCATTER_SD = 0.35
"""Scatter of single readings about such a trend."""
HORIZON = math.log(30.0)
"""How far beyond the longest run the curve of loss over progress is carried, in log progress."""
KNOT_SPACING = 0.6

_SHAPE_PRIOR = {"p": (1.0, 0.3), "d": (0.0, 0.15), "alpha": (0.75, 0.3), "log_c": (0.0, 0.7), "log_a": (0.0, 0.5)}
_WIDE_SD = 2.0
_FIRST_SLOPE = (math.log(0.2), 1.5)
_SLOPE_STEP_SD = 0.5
_UPDATE_FLOOR = {"log_b": 0.5, "p": 0.1, "log_lr": 0.5, "d": 0.05, "alpha": 0.1, "log_c": 0.2, "log_a": 0.2}
_UPDATE_SLOPE_FLOOR = 0.15


@dataclass(frozen=True, slots=True)
class NoiseReading:
    """A noise scale as the fit reads it: log of examples, its standard error, and the loss where it was measured."""

    loss: float
    log_noise: float
    log_se: float


@dataclass(frozen=True, slots=True)
class _Prior:
    """Gaussian prior as whitening: `matrix @ (parameters - mean)` is standard normal."""

    mean: Floats
    matrix: Floats


@dataclass(frozen=True, slots=True)
class _Points:
    """Thinned points of all usable runs, ready for the residuals."""

    batch_sizes: Floats
    learning_rates: Floats
    start_losses: Floats  # NaN for runs from initialisation
    run: NDArray[np.int_]
    steps: Floats
    log_losses: Floats
    weights: Floats


def fit_law(
    runs: Sequence[Branch], *, reference: Branch | None = None, noise: Sequence[NoiseReading] = (), seed: int = 0
) -> LawPosterior:
    """Fit the law to runs of one training problem.

    Where noise readings are given, the law is fitted with and without them and half of the draws come from each: where
    the two disagree, the intervals say so.

    Args:
        runs: loss curves, the reference run among them.
        reference: the run whose checkpoints later branches started from.
        noise: readings along the reference run.
        seed: of the posterior draws.

    Raises:
        EvidenceError: fewer than two runs with three usable points.
    """
    points = _collect(runs, reference)
    initial = _initial_loss(runs)
    longest = max(branch.curve.examples[-1] / branch.batch_size for branch in runs)
    v_end = math.log1p(longest)
    knots = np.linspace(0.0, v_end + HORIZON, math.ceil((v_end + HORIZON) / KNOT_SPACING) + 1)
    frame = _Frame(knots=knots, v_mid=0.6 * v_end, log_initial=math.log(initial))
    prior = _wide_prior(points, len(knots) - 1)
    fits = [_fit(points, frame, prior, [], _starts(prior))]
    if noise:
        fits.insert(0, _fit(points, frame, prior, noise, [*_starts(prior), fits[0].best]))
    rng = np.random.default_rng(seed)
    draws = np.concatenate([_draw(fit, N_DRAWS // len(fits), rng) for fit in fits])
    return _posterior(runs, frame, fits[0].best, draws)


def update_law(law: LawPosterior, runs: Sequence[Branch], *, seed: int = 0) -> LawPosterior:
    """The law after further runs from initialisation, the old posterior (widened) as the prior.

    The prior is widened because runs elsewhere in the search space also vary other hyperparameters, and because a wrong
    forecast must not hold out against evidence.

    Raises:
        EvidenceError: none of the runs has three usable points.
    """
    points = _collect(runs, None, least_runs=1)
    frame = _Frame(knots=np.array(law.knots), v_mid=law.v_mid, log_initial=math.log(law.initial_loss))
    rows = np.array([law.best, *law.draws])
    floor = [_UPDATE_FLOOR[name] for name in SHAPE] + [_UPDATE_SLOPE_FLOOR] * (len(law.knots) - 1)
    covariance = np.cov(rows.T) + np.diag(np.square(floor))
    prior = _Prior(np.array(law.best), np.linalg.inv(np.linalg.cholesky(covariance)))
    fit = _fit(points, frame, prior, [], [prior.mean])
    draws = _draw(fit, N_DRAWS, np.random.default_rng(seed))
    updated = _posterior(runs, frame, fit.best, draws)
    return LawPosterior(
        initial_loss=law.initial_loss,
        knots=law.knots,
        v_mid=law.v_mid,
        best=updated.best,
        draws=updated.draws,
        unstable=tuple(sorted({*law.unstable, *updated.unstable})),
        batch_sizes=_widest(law.batch_sizes, updated.batch_sizes),
        lowest_loss=min(law.lowest_loss, updated.lowest_loss),
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """What parameters are relative to."""

    knots: Floats
    v_mid: float
    log_initial: float

    def table(self, rows: Floats) -> LawTable:
        return LawTable(rows, self.knots, self.v_mid, self.log_initial)


@dataclass(frozen=True, slots=True)
class _Fit:
    best: Floats
    covariance: Floats


def _starts(prior: _Prior) -> list[Floats]:
    """Where the search for the best parameters begins: small and large critical batch sizes, mid and high rates."""
    starts = []
    for log_b, log_lr in itertools.product((-1.5, 1.5), (0.0, 1.5)):
        start = prior.mean.copy()
        start[SHAPE.index("log_b")] += log_b
        start[SHAPE.index("log_lr")] += log_lr
        starts.append(start)
    return starts


def _fit(
    points: _Points, frame: _Frame, prior: _Prior, noise: Sequence[NoiseReading], starts: Sequence[Floats]
) -> _Fit:
    residuals, n_nuisance = _residuals(points, frame, prior, noise)
    solutions = [
        optimize.least_squares(
            residuals, np.append(start, np.zeros(n_nuisance)), x_scale="jac", max_nfev=60, xtol=1e-5, ftol=1e-5
        )
        for start in starts
    ]
    best = min(solutions, key=lambda solution: float(solution.cost))
    n = len(prior.mean)
    dof = max(1, len(points.steps))
    inflation = max(1.0, 2.0 * best.cost / dof)
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * inflation
    return _Fit(best.x[:n], covariance[:n, :n])


def _residuals(
    points: _Points, frame: _Frame, prior: _Prior, noise: Sequence[NoiseReading]
) -> tuple[Callable[[Floats], Floats], int]:
    n = len(prior.mean)
    late = np.flatnonzero(np.isfinite(points.start_losses))
    losses = np.array([reading.loss for reading in noise])
    log_noise = np.array([reading.log_noise for reading in noise])
    spread = np.sqrt(np.array([reading.log_se for reading in noise]) ** 2 + NOISE_SCATTER_SD**2)
    ratio_sd = np.array([NOISE_OFFSET_SD, NOISE_TREND_SD])

    def residuals(theta: Floats) -> Floats:
        table = frame.table(theta[None, :n])
        shifts, ratio = theta[n : n + len(late)], theta[n + len(late) :]
        misfit = (_predict(points, table, late, shifts) - points.log_losses) * points.weights
        robust = np.sign(misfit) * np.sqrt(2.0 * (np.sqrt(1.0 + misfit**2) - 1.0))
        blocks = [robust, prior.matrix @ (theta[:n] - prior.mean), shifts / 0.5]
        if len(losses):
            v = np.array([np.minimum(table.v_of_loss(loss)[0], frame.knots[-1]) for loss in losses])
            log_ratio = ratio[0] + ratio[1] * (v - frame.v_mid)
            blocks += [(table.log_b(v[None])[0] + log_ratio - log_noise) / spread, ratio / ratio_sd]
        return np.concatenate(blocks)

    return residuals, len(late) + (2 if len(losses) else 0)


def _predict(points: _Points, table: LawTable, late: NDArray[np.int_], shifts: Floats) -> Floats:
    cumulative = table.cumulative_steps(points.batch_sizes, points.learning_rates)[0]
    offsets = np.zeros(len(points.batch_sizes))
    for run, shift in zip(late, shifts, strict=True):
        v_start = min(float(table.v_of_loss(points.start_losses[run])[0]), table.grid[-1]) + shift
        offsets[run] = np.interp(v_start, table.grid, cumulative[run])
    v = np.empty(len(points.steps))
    for run in range(len(offsets)):
        own = points.run == run
        v[own] = np.interp(points.steps[own] + offsets[run], cumulative[run], table.grid)
    return np.asarray(table.log_loss(v[None])[0])


def _collect(runs: Sequence[Branch], reference: Branch | None, *, least_runs: int = 2) -> _Points:
    kept = [(branch, on_clock) for branch in runs if len((on_clock := _on_clock(branch)).examples) >= LEAST_POINTS]
    kept = [(branch, curve) for branch, curve in kept if branch.outcome != "diverged"]
    if len(kept) < least_runs:
        raise EvidenceError(
            f"the law needs {least_runs} loss curves of at least {LEAST_POINTS} evaluations, got {len(kept)}: "
            "give the probe more examples, or let trials report more often"
        )
    columns: list[tuple[int, float, float, float]] = []
    for i, (branch, curve) in enumerate(kept):
        chosen = _thin(curve)
        weight = math.sqrt(min(1.0, INDEPENDENT_POINTS_PER_RUN / len(chosen)))
        weight /= math.hypot(curve.jitter(), MODEL_ERROR)
        smoothed = curve.smoothed()
        columns += [(i, curve.examples[k] / branch.batch_size, math.log(smoothed[k]), weight) for k in chosen]
    run, steps, log_losses, weights = (np.array(column) for column in zip(*columns, strict=True))
    return _Points(
        batch_sizes=np.array([float(branch.batch_size) for branch, _ in kept]),
        learning_rates=np.array([branch.learning_rate for branch, _ in kept]),
        start_losses=np.array([_start_loss(branch, reference) for branch, _ in kept]),
        run=run.astype(int),
        steps=steps,
        log_losses=log_losses,
        weights=weights,
    )


def _on_clock(branch: Branch) -> LossCurve:
    """The part of a curve that counts: after the burn-in, examples counted from its end, initialisation left out."""
    start = branch.burn_in_examples
    pairs = [(n - start, loss) for n, loss in zip(branch.curve.examples, branch.curve.losses, strict=True) if n > start]
    return LossCurve(tuple(n for n, _ in pairs), tuple(loss for _, loss in pairs))


def _thin(curve: LossCurve) -> list[int]:
    """Indices of at most `POINTS_PER_RUN` points, evenly spaced in log examples, first and last among them."""
    log_examples = np.log(curve.examples)
    targets = np.linspace(log_examples[0], log_examples[-1], POINTS_PER_RUN)
    return sorted({int(np.argmin(np.abs(log_examples - target))) for target in targets})


def _start_loss(branch: Branch, reference: Branch | None) -> float:
    """Loss where a later branch's clock starts: read off its own curve, so that its start is tied to the shared F."""
    if branch.start_examples == 0:
        return math.nan
    before = [
        loss
        for n, loss in zip(branch.curve.examples, branch.curve.smoothed(), strict=True)
        if n <= branch.burn_in_examples
    ]
    if before:
        return before[-1]
    if reference is None:
        raise EvidenceError("a branch from mid-run needs its reference run, and none was given")
    return float(np.interp(branch.start_examples, reference.curve.examples, reference.curve.losses))


def _initial_loss(runs: Sequence[Branch]) -> float:
    initial = [
        branch.curve.losses[0] for branch in runs if branch.start_examples == 0 and branch.curve.examples[0] == 0
    ]
    if initial:
        return float(np.median(initial))
    return 1.1 * max(branch.curve.losses[0] for branch in runs)


def _wide_prior(points: _Points, n_slopes: int) -> _Prior:
    centre = {"log_b": np.log(points.batch_sizes).mean(), "log_lr": np.log(points.learning_rates).mean()}
    n_shape = len(SHAPE)
    mean, matrix = np.zeros(n_shape + n_slopes), np.zeros((n_shape + n_slopes,) * 2)
    for i, name in enumerate(SHAPE):
        mean[i], sd = _SHAPE_PRIOR.get(name, (centre.get(name, 0.0), _WIDE_SD))
        matrix[i, i] = 1.0 / sd
    # Log slopes of F: the first is vague, each next one is a small step away (a random walk).
    mean[n_shape:] = _FIRST_SLOPE[0]
    matrix[n_shape, n_shape] = 1.0 / _FIRST_SLOPE[1]
    for i in range(n_shape + 1, n_shape + n_slopes):
        matrix[i, i], matrix[i, i - 1] = 1.0 / _SLOPE_STEP_SD, -1.0 / _SLOPE_STEP_SD
    return _Prior(mean, matrix)


def _draw(fit: _Fit, n: int, rng: np.random.Generator) -> Floats:
    values, vectors = np.linalg.eigh(fit.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(fit.best + rng.standard_normal((n, len(fit.best))) @ root.T)


def _posterior(runs: Sequence[Branch], frame: _Frame, best: Floats, draws: Floats) -> LawPosterior:
    sizes = [branch.batch_size for branch in runs]
    diverged = [branch for branch in runs if branch.outcome == "diverged"]
    return LawPosterior(
        initial_loss=math.exp(frame.log_initial),
        knots=tuple(map(float, frame.knots)),
        v_mid=float(frame.v_mid),
        best=tuple(map(float, best)),
        draws=tuple(tuple(map(float, row)) for row in draws),
        unstable=tuple(sorted({(branch.batch_size, branch.learning_rate) for branch in diverged})),
        batch_sizes=(min(sizes), max(sizes)),
        lowest_loss=min(min(branch.curve.smoothed()) for branch in runs),
    )


def _widest(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return min(first[0], second[0]), max(first[1], second[1])
