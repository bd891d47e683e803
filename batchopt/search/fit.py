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
from batchopt.forecasting.law import SHAPE, LawPosterior
from batchopt.forecasting.paced_fit import GRID_POINTS, PacedLaw, Ranges, fit_paced
from batchopt.planning.goal import ReachLoss
from batchopt.search.observations import Observation, as_branch, unstable_settings
from batchopt.search.parameters import Axis, Space
from batchopt.search.places import Places
from batchopt.search.settings import Known
from batchopt.step_cost import StepCost

_logger = logging.getLogger(__name__)

DOUBTED = ("log_b", "log_lr")
"""Parameters of a forecast's law whose draws are widened: they differ most where a probe misleads."""
UNTESTED_DOUBT = 0.5
"""Standard deviation that is added before there are trials: more would cost the first ones their aim."""
TESTED_DOUBT = 1.5
"""Standard deviation that is added where trials can decide: a rate that is 30 times off is then soon given up."""
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
    law = usable_law(known)
    if law is None and not told:
        return Thin("no forecast says how the goal is reached, and no trial has reported three losses yet"), ()
    at = tuple(tuple(map(float, places.of(o.batch_size, o.learning_rate, o.params))) for o, _ in told)
    ranges = Ranges(_ends(space.batch_sizes), _ends(space.learning_rates))
    paced = _fit(law, tuple(branch for _, branch in told), at, ranges, places.n_dimensions)
    fitted = () if isinstance(paced, Thin) else tuple(told[i][0].number for i in paced.fitted)
    return paced, fitted


def usable_law(known: Known) -> LawPosterior | None:
    """The forecast's law; None where there is none, or where it cannot say how the goal is reached at all.

    Such a law would hold every trial against a curve that ends too early: what the trials show is better than that.
    """
    forecast, goal = known.forecast, known.settings.goal
    if forecast is None:
        return None
    if isinstance(goal, ReachLoss) and not math.isfinite(sum(least_of(forecast.law, goal.loss))):
        return forecast.law if goal.loss >= forecast.law.initial_loss else None
    return forecast.law


@lru_cache(maxsize=8)
def _fit(
    prior: LawPosterior | None,
    branches: tuple[Branch, ...],
    places: tuple[tuple[float, ...], ...],
    ranges: Ranges,
    n_dimensions: int,
) -> PacedLaw | Thin:
    """The law after the trials. Remembered by its content, which every worker and every part of a process shares."""
    spread = PACE_SPREAD if n_dimensions == 2 else PACE_SPREAD_OF_OTHERS
    believed = None if prior is None else _doubted(prior, TESTED_DOUBT if branches else UNTESTED_DOUBT)
    unfitted = None if believed is None else PacedLaw.without_runs(believed, n_dimensions, spread)
    if not branches and unfitted is not None:
        return unfitted
    try:
        return fit_paced(branches, np.array(places), ranges, spread=spread, prior=believed)
    except (EvidenceError, ValueError, np.linalg.LinAlgError) as error:
        # A study must outlive a fit that fails: what is left is the forecast, or the base sampler. Trials that are too
        # short to be fitted are nothing to warn of.
        level = logging.DEBUG if isinstance(error, EvidenceError) else logging.WARNING
        _logger.log(level, "The law could not be fitted to the trials: %s", error)
        return unfitted or Thin(f"the law could not be fitted to the trials ({error})")


def _doubted(law: LawPosterior, sd: float) -> LawPosterior:
    rows = np.array(law.draws)
    if not rows.size:
        return law
    rng = np.random.default_rng(0)
    for name in DOUBTED:
        rows[:, SHAPE.index(name)] += sd * rng.standard_normal(len(rows))
    return replace(law, draws=tuple(tuple(map(float, row)) for row in rows), grid_points=GRID_POINTS)


def unstable_in(law: LawPosterior, observations: Sequence[Observation]) -> tuple[tuple[int, float], ...]:
    """(batch size, learning rate) that diverge, by the probe and by trials, rising; none that a trial contradicts."""
    fine = [(o.batch_size, o.learning_rate) for o in observations if o.usable]
    before = {
        (size, rate) for size, rate in law.unstable if not any(size / 4 <= b <= size and r >= rate for b, r in fine)
    }
    return tuple(sorted(before | unstable_settings(observations)))


@lru_cache(maxsize=4)
def least_of(law: LawPosterior, loss: float) -> tuple[float, float]:
    """The fewest steps and the fewest examples to a loss, by the law's best guess; infinite where it never does."""
    steps_min, examples_min = law.hyperbola(loss)
    return float(steps_min[0]), float(examples_min[0])


def _ends(axis: Axis) -> tuple[float, float]:
    return axis.sizes[0], axis.sizes[-1]
