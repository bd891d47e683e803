"""The law fitted to the trials of a search, each at a pace of its own that a Gaussian process explains.

Trials differ in more than the law knows: other hyperparameters, seeds, what the law misses far from its best rates.
Here a run takes e^r times the steps of the law, r a Gaussian process over the places of the trials, so that a run's
pace carries over to its neighbours and leaves the law alone. Law and paces are found together; the posterior is the
Gaussian around the optimum, sampled as in `law_fit`.

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

from batchopt.evidence import Branch
from batchopt.forecasting.law import SHAPE, LawPosterior
from batchopt.forecasting.law_fit import collect, frame_of, initial_loss_of, posterior_of, prior_of, wide_prior
from batchopt.forecasting.least_squares import minimise
from batchopt.forecasting.misfit import Misfit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.decayed_law import DecayedLaw

    Floats = NDArray[np.float64]

N_DRAWS = 24
GRID_POINTS = 40
OWN_SD = 0.06
"""Standard deviation of the part of a log pace that no other run shares: seeds, data order."""
MODEL_ERROR, INDEPENDENT_POINTS = 0.05, 4.0
"""As in `law_fit`, and smaller: paces take up much of what the law misses."""
SHORT_RUN_SD = 0.06
"""Standard deviation of a log loss that may be jitter, times the number of points: few do not show how they scatter."""
FIRST_STEPS = 10.0
"""Losses after so many steps count half: optimizers are not themselves yet."""
SEARCH_STEPS, DRAW_STEPS, LOSS_STEPS = 12, 2, 4
KEPT_STARTS = 3


@dataclass(frozen=True, slots=True)
class Ranges:
    """What may be tried, as far as it is known: (lowest, highest) batch size and learning rate."""

    batch_sizes: tuple[float, float]
    learning_rates: tuple[float, float]


@dataclass(frozen=True, slots=True)
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
        late: log paces by the last losses of the runs alone, (1 + n_draws, n_runs); None where they are found later.
    """

    law: LawPosterior | DecayedLaw
    places: Floats
    log_paces: Floats
    spread: float
    fitted: tuple[int, ...]
    own_sd: Floats
    common: float = 0.0
    late: Floats | None = None

    @classmethod
    def without_runs(cls, law: LawPosterior | DecayedLaw, n_dimensions: int, spread: float) -> PacedLaw:
        """A law that no run has told anything about paces yet."""
        return cls(law, np.zeros((0, n_dimensions)), np.zeros((1 + len(law.draws), 0)), spread, (), np.zeros(0))

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


def fit_paced(
    runs: Sequence[Branch], places: Floats, ranges: Ranges, *, spread: float, prior: LawPosterior | None = None
) -> PacedLaw:
    """Fit law and paces to the runs of a search.

    Args:
        runs: loss curves from initialisation.
        places: u of the runs, (n_runs, n_dimensions).
        ranges: what is searched, which centres a prior where there is no forecast.
        spread: standard deviation of the smooth part of a log pace.
        prior: the law of a forecast, already as wide as it is doubted.

    Raises:
        EvidenceError: no run has three usable points.
    """
    initial = prior.initial_loss if prior is not None else initial_loss_of(runs)
    kept, points = collect(runs, initial, least_runs=1, model_error=MODEL_ERROR, independent=INDEPENDENT_POINTS)
    unseen = SHORT_RUN_SD / np.bincount(points.run)[points.run]
    errors = np.hypot(1.0 / points.weights, unseen) * (1.0 + FIRST_STEPS / points.steps)
    points = replace(points, weights=1.0 / errors)
    places = places[kept]
    frame = (frame_of(runs, initial) if prior is None else prior.frame).coarser(GRID_POINTS)
    believed = wide_prior(_centre(ranges), len(frame.knots) - 1, None) if prior is None else prior_of(prior)
    own_sd = np.full(len(places), OWN_SD)
    whitening = np.linalg.inv(np.linalg.cholesky(pace_covariance(places, spread, own_sd)))
    misfit = Misfit(points, frame, believed, (), np.zeros((1, 1)), paces=whitening)
    misfit = replace(misfit, shifts=np.zeros((1, misfit.n_residuals)))
    best, cost = _search(misfit)
    draws = _draws(misfit, best, cost)
    width = len(believed.mean)
    law = posterior_of(runs, points, frame, best[:width], draws[:, :width])
    law = replace(law, grid_points=GRID_POINTS)
    if prior is not None:
        law = replace(
            law,
            unstable=tuple(sorted({*law.unstable, *prior.unstable})),
            batch_sizes=(min(law.batch_sizes[0], prior.batch_sizes[0]), max(law.batch_sizes[1], prior.batch_sizes[1])),
            lowest_loss=min(law.lowest_loss, prior.lowest_loss),
        )
    return PacedLaw(law, places, np.concatenate([best[None], draws])[:, width:], spread, tuple(kept), own_sd)


def _centre(ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the law's critical batch size and learning rate, by what is searched."""
    return {
        name: (0.5 * math.log(low * high), max(1.5, 0.25 * math.log(high / low)))
        for name, (low, high) in (("log_b", ranges.batch_sizes), ("log_lr", ranges.learning_rates))
    }


def _search(misfit: Misfit) -> tuple[Floats, float]:
    """The best parameters and half the sum of squares there.

    The curve of losses is fitted at many critical batch sizes and learning rates, which is cheap, and the most
    promising are followed to the end.
    """
    mean = np.append(misfit.prior.mean, np.zeros(misfit.n_nuisances))
    spread = np.linalg.norm(np.linalg.inv(misfit.prior.matrix), axis=1)  # prior standard deviations
    starts = []
    for b in (-1.5, -0.5, 0.5, 1.5):
        for lr in (-1.2, -0.4, 0.4, 1.2):
            start = mean.copy()
            start[SHAPE.index("log_b")] += b * spread[SHAPE.index("log_b")]
            start[SHAPE.index("log_lr")] += lr * spread[SHAPE.index("log_lr")]
            starts.append(start)
    rows, costs = minimise(misfit.residuals, misfit.loss_jacobian, np.array(starts), most_steps=LOSS_STEPS)
    kept = rows[np.argsort(costs, kind="stable")[:KEPT_STARTS]]
    rows, costs = minimise(misfit.residuals, misfit.jacobian, kept, most_steps=SEARCH_STEPS)
    best = int(np.argmin(costs))
    return rows[best], float(costs[best])


def _draws(misfit: Misfit, best: Floats, cost: float) -> Floats:
    count = len(misfit.points.steps)
    shifts = np.random.default_rng(0).standard_normal((N_DRAWS, misfit.n_residuals))
    shifts[:, :count] *= math.sqrt(max(1.0, 2.0 * cost / max(1, count)))
    disturbed = replace(misfit, shifts=shifts)
    rows, _ = minimise(disturbed.residuals, disturbed.jacobian, np.tile(best, (N_DRAWS, 1)), most_steps=DRAW_STEPS)
    return rows
