"""Fitting the shared law to whole loss curves and to readings of the noise scale.

All points of all runs are fitted at once by least squares with priors, so a short run at one batch size, a stopped one
and the long reference run all inform the same few parameters. Noise scales enter as readings of the local critical
batch size with an unknown offset and trend, because the noise scale is a proxy whose ratio to the truth differs by
problem and drifts along a run. The posterior is the Gaussian around the optimum (Laplace).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.law import SHAPE, Frame, LawPosterior
from batchopt.forecasting.least_squares import minimise
from batchopt.forecasting.loss_points import LossPoints, TrainingOffset, loss_points, octaves_behind
from batchopt.forecasting.misfit import Misfit, NoiseReading, Points, Prior

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

N_DRAWS = 64
LEAST_POINTS = 3
"""A run with fewer points says nothing about its pace."""
INDEPENDENT_POINTS_PER_RUN = 2.0
"""Points of one curve share what the law misses, which counts as this many independent errors."""
MODEL_ERROR = 0.12
"""Standard deviation of log examples that the law misses at the end of the fastest runs."""
BEHIND = 0.5
"""It grows by this share for every octave of examples that a run is behind the fastest of its batch size, because rates
far from the best matter little and follow no law."""
EARLY = 0.25
"""And for every octave that a point comes before the end of the longest run: a forecast carries on the end."""
LEAST_STEEPNESS = 0.02
"""How much log loss falls over log examples at least, where errors of the one are turned into errors of the other."""
HORIZON = math.log(200.0)
"""How far beyond the longest run the curve of loss over progress is carried, in log examples."""
KNOT_SPACING = 0.6
SEARCH_STEPS, DRAW_STEPS = 60, 4

SCALE = 4.0
"""y0 in units of the smallest batch size: below some steps there is nothing to tell."""
MIDDLE = 0.6
"""v_mid in units of the longest run's v."""

_SHAPE_PRIOR = {"q": (0.5, 0.15), "log_k": (0.0, 0.7)}
"""Critical batch sizes grow with the root of examples: with exponents of 0.13 to 0.63 in whole sweeps
(`benchmarks/truth`), of 0.46 in language models (Zhang et al. 2024, arXiv 2410.21676; Bergsma et al. 2025, arXiv
2505.13738)."""
_LEARNING_RATE_PRIOR = {
    False: {
        "d": (-0.1, 0.12),
        "g": (0.0, 0.25),
        "alpha": (1.0, 0.15),
        "log_a_steps": (0.5, 1.0),
        "log_a_examples": (0.2, 1.0),
    },
    True: {
        "d": (0.12, 0.12),
        "g": (0.15, 0.15),
        "alpha": (0.5, 0.15),
        "log_a_steps": (-0.1, 0.5),
        "log_a_examples": (-0.4, 0.5),
    },
    None: {
        "d": (0.0, 0.15),
        "g": (0.1, 0.2),
        "alpha": (0.75, 0.3),
        "log_a_steps": (0.2, 1.0),
        "log_a_examples": (0.0, 1.0),
    },
}
"""How the best rate changes with progress and batch size, and how much it matters, by whether the optimizer scales
coordinates as Adam does. Set by hand after fits to whole sweeps (`benchmarks/truth`); a few curves tell little of
it, so a forecast of later losses and other batch sizes rests on this."""
_CENTRE_SD = 2.0
_FIRST_SLOPE = (math.log(0.2), 1.5)
_EARLY_SLOPES, _EARLY_SLOPE_STEP_SD, _SLOPE_STEP_SD = 4, 0.5, 0.25
"""Losses begin in their own way and then follow a power law of examples, more or less."""
_UPDATE_FLOOR = {
    "log_b": 1.0, "q": 0.1, "log_lr": 1.0, "d": 0.1, "log_k": 0.4, "g": 0.1, "alpha": 0.1,
    "log_a_steps": 0.4, "log_a_examples": 0.4,
}  # fmt: skip
_UPDATE_SLOPE_FLOOR = 0.3


def fit_law(
    runs: Sequence[Branch],
    *,
    noise: Sequence[NoiseReading] = (),
    initial_loss: float | None = None,
    adaptive: bool | None = None,
    delay: float = 0.0,
    seed: int = 0,
) -> LawPosterior:
    """Fit the law to runs of one training problem.

    Where noise readings are given, the law is fitted with and without them and half of the draws come from each: where
    the two disagree, the intervals say so.

    Args:
        runs: loss curves from initialisation.
        noise: readings along tuned runs.
        initial_loss: loss before the first step; taken from the runs if None.
        adaptive: whether the optimizer scales coordinates by their gradients, as Adam does; None if it is not known.
        delay: steps that the optimizer's momentum lags behind.
        seed: of the posterior draws.

    Raises:
        EvidenceError: fewer than two runs with three usable points.
    """
    initial = initial_loss_of(runs) if initial_loss is None or initial_loss <= 0 else initial_loss
    _, points = collect(runs, initial)
    frame = frame_of(runs, initial, delay=delay)
    centre = {
        "log_b": (math.log(points.batch_sizes.max()), _CENTRE_SD),
        "log_lr": (float(np.log(points.learning_rates).mean()), _CENTRE_SD),
    }
    prior = wide_prior(centre, len(frame.knots) - 1, adaptive)
    fits = [_fit(points, frame, prior, [], _starts(prior))]
    if noise:
        fits.insert(0, _fit(points, frame, prior, noise, [*_starts(prior), fits[0].law]))
    rng = np.random.default_rng(seed)
    draws = np.concatenate([fit.draws(N_DRAWS // len(fits), rng) for fit in fits])
    return posterior_of(runs, points, frame, fits[0].law, draws)


def frame_of(runs: Sequence[Branch], initial: float, *, delay: float = 0.0) -> Frame:
    """What the parameters of a law of these runs are relative to."""
    scale = SCALE * min(run.batch_size for run in runs)
    v_end = math.log1p(max(run.examples for run in runs) / scale)
    return Frame(
        knots=np.linspace(0.0, v_end + HORIZON, math.ceil((v_end + HORIZON) / KNOT_SPACING) + 1),
        v_mid=MIDDLE * v_end,
        log_initial=math.log(initial),
        scale=scale,
        delay=delay,
    )


def prior_of(law: LawPosterior) -> Prior:
    """A posterior as the prior of further runs: its Gaussian, widened."""
    rows = np.array([law.best, *law.draws])
    floor = [_UPDATE_FLOOR[name] for name in SHAPE] + [_UPDATE_SLOPE_FLOOR] * (len(law.knots) - 1)
    covariance = np.cov(rows.T) + np.diag(np.square(floor))
    return Prior(np.array(law.best), np.linalg.inv(np.linalg.cholesky(covariance)))


@dataclass(frozen=True, slots=True)
class _Fit:
    """The best parameters with their nuisances, half the sum of squares there, and whose they are."""

    best: Floats
    cost: float
    misfit: Misfit

    def draws(self, n: int, rng: np.random.Generator) -> Floats:
        """Posterior draws of the law's parameters, (n, n_parameters), by randomize-then-optimize (Bardsley 2014).

        Each is the best fit to data and prior that are disturbed by their own errors, so that a draw is a law which
        does fit, however curved the posterior is. Where the law misses the data by more than their errors, the
        disturbance grows with it.
        """
        count = len(self.misfit.points.steps)
        inflation = max(1.0, 2.0 * self.cost / max(1, count))
        shifts = rng.standard_normal((n, self.misfit.n_residuals))
        shifts[:, :count] *= math.sqrt(inflation)
        disturbed = replace(self.misfit, shifts=shifts)
        rows, _ = minimise(disturbed.residuals, disturbed.jacobian, np.tile(self.best, (n, 1)), most_steps=DRAW_STEPS)
        return rows[:, : len(self.misfit.prior.mean)]

    @property
    def law(self) -> Floats:
        """The best parameters of the law."""
        return self.best[: len(self.misfit.prior.mean)]


def _fit(points: Points, frame: Frame, prior: Prior, noise: Sequence[NoiseReading], starts: Sequence[Floats]) -> _Fit:
    misfit = Misfit(points, frame, prior, tuple(noise), shifts=np.zeros((1, 1)))
    misfit = replace(misfit, shifts=np.zeros((1, misfit.n_residuals)))
    rows = np.array([np.append(start, np.zeros(misfit.n_nuisances)) for start in starts])
    found, costs = minimise(misfit.residuals, misfit.jacobian, rows, most_steps=SEARCH_STEPS)
    best = int(np.argmin(costs))
    return _Fit(found[best], float(costs[best]), misfit)


def _starts(prior: Prior) -> list[Floats]:
    """Where the search for the best parameters begins: small and large critical batch sizes, mid to high rates."""
    starts = []
    for log_b, log_lr in itertools.product((-3.0, -1.5, 0.5), (0.0, 1.5, 3.0)):
        start = prior.mean.copy()
        start[SHAPE.index("log_b")] += log_b
        start[SHAPE.index("log_lr")] += log_lr
        starts.append(start)
    return starts


def collect(
    runs: Sequence[Branch],
    initial: float,
    *,
    least_runs: int = 2,
    model_error: float = MODEL_ERROR,
    independent: float = INDEPENDENT_POINTS_PER_RUN,
) -> tuple[list[int], Points]:
    """The indices of the runs that can be fitted, and their points.

    Raises:
        EvidenceError: they are fewer than `least_runs`.
    """
    offset = TrainingOffset(runs, initial)
    alive = [(run, loss_points(run, offset)) for run in runs if run.outcome != "diverged"]
    settled = [(run, points.after_transient(math.log(initial))) for run, points in alive]
    kept = _with_enough_points(settled)
    if len(kept) < least_runs:  # losses that stay above the initial one are evidence too, where there is no other
        kept = _with_enough_points(alive)
    if len(kept) < least_runs:
        raise EvidenceError(
            f"the law needs {least_runs} loss curves of at least {LEAST_POINTS} evaluations, got {len(kept)}: "
            "give the probe more examples, or let trials report more often"
        )
    longest_runs = {run.batch_size: points for run, points in sorted(kept, key=lambda pair: pair[0].examples)}
    steepness = max(LEAST_STEEPNESS, *(points.steepness() for points in longest_runs.values()))
    longest = max(run.examples for run, _ in kept)
    behind = octaves_behind([(float(run.batch_size), points) for run, points in kept])
    weights = []
    for (run, points), octaves_behind_best in zip(kept, behind, strict=True):
        octaves_early = np.log2(longest / (points.steps * run.batch_size))
        missed = model_error * steepness * (1.0 + BEHIND * octaves_behind_best) * (1.0 + EARLY * octaves_early)
        correlated = missed**2 * max(1.0, len(points.steps) / independent)
        weights.append(1.0 / np.sqrt(points.errors**2 + correlated))
    fitted = {id(run) for run, _ in kept}
    return [i for i, run in enumerate(runs) if id(run) in fitted], Points(
        batch_sizes=np.array([float(run.batch_size) for run, _ in kept]),
        learning_rates=np.array([run.learning_rate for run, _ in kept]),
        run=np.repeat(np.arange(len(kept)), [len(points.steps) for _, points in kept]),
        steps=np.concatenate([points.steps for _, points in kept]),
        # The law knows no loss above the initial one: what a rate that is too high does there is no progress.
        log_losses=np.minimum(np.concatenate([points.log_losses for _, points in kept]), math.log(initial)),
        weights=np.concatenate(weights),
    )


def _with_enough_points(runs: Sequence[tuple[Branch, LossPoints]]) -> list[tuple[Branch, LossPoints]]:
    return [(run, points) for run, points in runs if len(points.steps) >= LEAST_POINTS]


def initial_loss_of(runs: Sequence[Branch]) -> float:
    """Loss before the first step: evaluated, or that of the first training batches."""
    evaluated = [run.curve.losses[0] for run in runs if run.curve.examples[:1] == (0,)]
    if evaluated:
        return float(np.median(evaluated))
    first = [(run.batch_size, run.training.losses[0]) for run in runs if run.training and run.training.examples]
    if first:
        return float(np.average([loss for _, loss in first], weights=[size for size, _ in first]))
    # The slowest run has hardly begun: a guess above it would be progress that nobody made.
    return 1.01 * max(run.curve.losses[0] for run in runs if run.curve.losses)


def wide_prior(centre: dict[str, tuple[float, float]], n_slopes: int, adaptive: bool | None) -> Prior:
    """The prior without any forecast.

    Args:
        centre: mean and standard deviation of `log_b` and `log_lr`.
        n_slopes: of F.
        adaptive: whether the optimizer scales coordinates as Adam does; None if it is not known.
    """
    known = _SHAPE_PRIOR | _LEARNING_RATE_PRIOR[adaptive] | centre
    n_shape = len(SHAPE)
    mean, matrix = np.zeros(n_shape + n_slopes), np.zeros((n_shape + n_slopes,) * 2)
    for i, name in enumerate(SHAPE):
        mean[i], sd = known[name]
        matrix[i, i] = 1.0 / sd
    # Log slopes of F: the first is vague, each next one is a small step away (a random walk).
    mean[n_shape:] = _FIRST_SLOPE[0]
    matrix[n_shape, n_shape] = 1.0 / _FIRST_SLOPE[1]
    for i in range(n_shape + 1, n_shape + n_slopes):
        sd = _EARLY_SLOPE_STEP_SD if i < n_shape + _EARLY_SLOPES else _SLOPE_STEP_SD
        matrix[i, i], matrix[i, i - 1] = 1.0 / sd, -1.0 / sd
    return Prior(mean, matrix)


def posterior_of(runs: Sequence[Branch], points: Points, frame: Frame, best: Floats, draws: Floats) -> LawPosterior:
    """The law of runs, from the best parameters and draws of a fit to their points."""
    sizes = [branch.batch_size for branch in runs]
    diverged = [branch for branch in runs if branch.outcome == "diverged"]
    return LawPosterior(
        initial_loss=math.exp(frame.log_initial),
        scale=frame.scale,
        delay=frame.delay,
        knots=tuple(map(float, frame.knots)),
        v_mid=float(frame.v_mid),
        best=tuple(map(float, best)),
        draws=tuple(tuple(map(float, row)) for row in draws),
        unstable=tuple(sorted({(branch.batch_size, branch.learning_rate) for branch in diverged})),
        batch_sizes=(min(sizes), max(sizes)),
        lowest_loss=float(np.exp(points.log_losses.min())),
    )
