"""The law of a study: the forecast as a prior, widened before it is used, and fitted to the trials."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.drawn_law import DrawnLaw
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_law import SHAPE
from batchopt.forecasting.trial_fit import DRAWS, PacedLaw, fit_trials
from batchopt.planning.goal import ReachLoss
from batchopt.search.observations import Observation, as_branch, unstable_settings
from batchopt.search.parameters import Space
from batchopt.search.places import Places
from batchopt.search.settings import Known
from batchopt.step_cost import StepCost
from batchopt.tradeoff import hyperbolas_through

_logger = logging.getLogger(__name__)

DOUBT = {
    "log_noise": 1.0, "log_memory": 1.0, "forgetting": 0.1, "kappa": 0.15, "log_oscillation": 1.0, "log_edge": 1.5,
    "log_gradient_noise": 1.0, "gradient_noise_growth": 0.1, "floor": 0.7, "pace": 0.1,
}  # fmt: skip
SLOPE_DOUBT = 0.3
"""Standard deviations that are added to those of a forecast's parameters where trials can decide."""
UNTESTED_SHARE = 0.35
"""Share of them before there are trials: more would cost the first ones their aim."""
COMMON_DOUBT = 1.5
"""Standard deviation of the log pace by which all trials may differ from a forecast: a rate that is 30 times off is
then soon given up."""
LONGEST = 64.0
"""Curves go on to this many times the examples of the longest run: what comes later is for nobody to wait for."""
MOST_OCTAVES = 18
"""Batch sizes over which a trade-off is read."""
PACE_SPREAD, PACE_SPREAD_OF_OTHERS = 0.3, 0.5
"""Standard deviation of log paces over batch size and learning rate alone, and where trials differ in more."""


@dataclass(frozen=True, slots=True)
class Thin:
    """There is no surrogate yet, and why."""

    reason: str


def paced_by(
    known: Known, observations: Sequence[Observation], price: StepCost | None, space: Space, places: Places
) -> tuple[PacedLaw | Thin, tuple[int, ...]]:
    """The law after the trials, with their paces, and the numbers of those in it, in the order of the paces.

    Args:
        known: what the study is about.
        observations: trials, of which those that can be fitted are.
        price: cost of a step; None in a study of two objectives.
        space: candidates of batch size and learning rate.
        places: where trials lie.
    """
    told = [(o, branch) for o in observations if (branch := as_branch(o, known.settings.goal, price)) is not None]
    law = usable_law(known, space)
    if law is None and not told:
        return Thin("no forecast says how the goal is reached, and no trial has reported three losses yet"), ()
    at = tuple(tuple(map(float, places.of(o.batch_size, o.learning_rate, o.params))) for o, _ in told)
    branches = tuple(branch for _, branch in told)
    paced = _fit(law, branches, at, space.learning_rates.sizes[-1], places.n_dimensions)
    fitted = () if isinstance(paced, Thin) else tuple(told[i][0].number for i in paced.fitted)
    return paced, fitted


def usable_law(known: Known, space: Space) -> LossPosterior | None:
    """The forecast's law; None where there is none, or where it cannot say how the goal is reached at all.

    Such a law would hold every trial against a curve that ends too early: what the trials show is better than that.
    """
    forecast, goal = known.forecast, known.settings.goal
    if forecast is None:
        return None
    if not isinstance(goal, ReachLoss) or goal.loss >= forecast.law.initial_loss:
        return forecast.law
    return forecast.law if math.isfinite(min(fewest_steps(forecast.law, goal.loss, *grid_of(space)))) else None


@lru_cache(maxsize=8)
def _fit(
    prior: LossPosterior | None,
    branches: tuple[Branch, ...],
    places: tuple[tuple[float, ...], ...],
    highest_rate: float,
    n_dimensions: int,
) -> PacedLaw | Thin:
    """The law after the trials. Remembered by its content, which every worker and every part of a process shares."""
    spread = PACE_SPREAD if n_dimensions == 2 else PACE_SPREAD_OF_OTHERS
    believed = None if prior is None else (drawn(prior), _doubt(prior))
    unfitted = None if believed is None else PacedLaw.without_runs(_widened(*believed), n_dimensions, spread)
    if not branches and unfitted is not None:
        return unfitted
    try:
        return fit_trials(
            branches,
            np.array(places),
            spread=spread,
            highest_rate=highest_rate,
            prior=believed,
            common=0.0 if prior is None else COMMON_DOUBT,
        )
    except (EvidenceError, ValueError, np.linalg.LinAlgError) as error:
        # A study must outlive a fit that fails: what is left is the forecast, or the base sampler. Trials that are too
        # short to be fitted are nothing to warn of.
        level = logging.DEBUG if isinstance(error, EvidenceError) else logging.WARNING
        _logger.log(level, "The law could not be fitted to the trials: %s", error)
        return unfitted or Thin(f"the law could not be fitted to the trials ({error})")


def drawn(law: LossPosterior) -> DrawnLaw:
    """The law of a forecast, as a search uses it."""
    rows = np.array(law.rows)[: 1 + DRAWS]
    unstable = tuple((size, broken) for size, _, broken in law.unstable)
    return DrawnLaw(law.frame, rows, law.delay, unstable, law.lowest_loss)


def _doubt(law: LossPosterior) -> np.ndarray:
    named = [DOUBT[name] for name in SHAPE]
    if not law.is_adaptive:  # which has no such parameters
        named = [
            1e-3 if name in ("pace", "log_gradient_noise", "gradient_noise_growth") else doubt
            for name, doubt in zip(SHAPE, named, strict=True)
        ]
    return np.array(named + [SLOPE_DOUBT] * (len(law.rows[0]) - len(SHAPE)))


def _widened(law: DrawnLaw, doubt: np.ndarray) -> DrawnLaw:
    moves = UNTESTED_SHARE * doubt * np.random.default_rng(0).standard_normal(law.rows.shape)
    moves[0] = 0.0
    return replace(law, rows=law.rows + moves)


def unstable_in(law: DrawnLaw, observations: Sequence[Observation]) -> tuple[tuple[int, float], ...]:
    """(batch size, learning rate) that diverge, by the probe and by trials, rising; none that a trial contradicts."""
    fine = [(o.batch_size, o.learning_rate) for o in observations if o.usable]
    before = {
        (size, rate) for size, rate in law.unstable if not any(size / 4 <= b <= size and r >= rate for b, r in fine)
    }
    return tuple(sorted(before | unstable_settings(observations)))


@lru_cache(maxsize=4)
def fewest_steps(
    law: LossPosterior, loss: float, sizes: tuple[float, ...], rates: tuple[float, ...]
) -> tuple[float, ...]:
    """The fewest steps to a loss at each batch size over learning rates, by the law's best guess; inf where never."""
    believed = drawn(law)
    best = replace(believed, rows=believed.rows[:1])
    size, rate = (axis.ravel() for axis in np.meshgrid(sizes, rates, indexing="ij"))
    curves = best.curves(size, rate, LONGEST * law.longest)
    logs = curves.log_examples_to(np.array([math.log(loss)]))[0] - np.log(size)
    return tuple(np.exp(logs.reshape(len(sizes), -1).min(axis=1)).tolist())


def least_of(law: LossPosterior, loss: float) -> tuple[float, float]:
    """The fewest steps and the fewest examples to a loss, by the law's best guess; infinite where it never does."""
    sizes = tuple(float(2**k) for k in range(MOST_OCTAVES))
    low, high = law.learning_rates
    rates = np.geomspace(low * math.sqrt(law.batch_sizes[0]) / 4.0, high * math.sqrt(law.batch_sizes[1]) * 4.0, 48)
    steps = np.array(fewest_steps(law, loss, sizes, tuple(rates.tolist())))
    reached = np.isfinite(steps)
    if np.count_nonzero(reached) < 3:
        return math.inf, math.inf
    steps_min, examples_min = hyperbolas_through(np.array(sizes)[reached], steps[None, reached])
    return float(steps_min[0]), float(examples_min[0])


def grid_of(space: Space) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Batch sizes and learning rates of a space."""
    return space.batch_sizes.sizes, space.learning_rates.sizes
