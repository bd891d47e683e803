"""The law of a study: the forecast as a prior, widened before it is used, and fitted to the trials."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.constant import ConstantForecast
from batchopt.forecasting.decayed_fit import fit_decayed
from batchopt.forecasting.decayed_law import DecayedLaw, Ends
from batchopt.forecasting.decaying import DecayingForecast
from batchopt.forecasting.law import SHAPE, LawPosterior
from batchopt.forecasting.paced_fit import GRID_POINTS, PacedLaw, Ranges, fit_paced
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_law import SHAPE as SCHEDULE_SHAPE
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.search.decay import Decay, budget
from batchopt.search.observations import Observation, as_branch, unstable_settings
from batchopt.search.parameters import Axis, Space
from batchopt.search.places import Places
from batchopt.search.settings import Known
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_logger = logging.getLogger(__name__)

DOUBTED = ("log_b", "log_lr")
"""Parameters of a forecast's law whose draws are widened: they differ most where a probe misleads."""
UNTESTED_DOUBT = 0.5
"""Standard deviation that is added before there are trials: more would cost the first ones their aim."""
TESTED_DOUBT = 1.5
"""Standard deviation that is added where trials can decide: a rate that is 30 times off is then soon given up."""
DOUBT_OF_DECAYED = {
    "log_noise": 1.0, "log_memory": 1.0, "forgetting": 0.1, "kappa": 0.15, "log_oscillation": 1.0, "log_edge": 1.5,
    "log_gradient_noise": 1.0, "gradient_noise_growth": 0.1, "floor": 0.7, "log_saturation": 1.0,
}  # fmt: skip
SLOPE_DOUBT = 0.3
"""The same where trials decay: standard deviations that are added to those of a forecast's parameters where trials can
decide, and of the log slopes of its signal. Set by hand."""
UNTESTED_SHARE = UNTESTED_DOUBT / TESTED_DOUBT
"""Share of them before there are trials."""
COMMON_DOUBT = 1.5
"""Standard deviation of the log pace by which all decaying trials may differ from a forecast: as `TESTED_DOUBT`."""
PACE_SPREAD, PACE_SPREAD_OF_OTHERS = 0.3, 0.5
"""Standard deviation of log paces over batch size and learning rate alone, and where trials differ in more."""


@dataclass(frozen=True, slots=True)
class Thin:
    """There is no surrogate yet, and why."""

    reason: str


def paced_by(
    known: Known,
    observations: Sequence[Observation],
    price: StepCost | None,
    space: Space,
    places: Places,
    ends: Ends | None = None,
) -> tuple[PacedLaw | Thin, tuple[int, ...]]:
    """The law after the trials, with their paces, and the numbers of those in it, in the order of the paces.

    Args:
        known: what the study is about.
        observations: trials, of which those that can be fitted are.
        price: cost of a step; None in a study of two objectives.
        space: candidates of batch size and learning rate.
        places: where trials lie.
        ends: of the trials' runs, where their learning rate decays.
    """
    told = [(o, branch) for o in observations if (branch := branch_of(o, known, price)) is not None]
    law = usable_law(known, ends)
    if law is None and not told:
        metric = known.settings.metric
        few = "three losses" if metric is None else f"the {metric.goal.metric} three times"
        return Thin(f"no forecast says how the goal is reached, and no trial has reported {few} yet"), ()
    at = tuple(tuple(map(float, places.of(o.batch_size, o.learning_rate, o.params))) for o, _ in told)
    branches = tuple(branch for _, branch in told)
    ranges = Ranges(_ends(space.batch_sizes), _ends(space.learning_rates))
    if ends is None:
        prior = law if isinstance(law, LawPosterior) else None
        paced = _fit(prior, branches, at, ranges, places.n_dimensions)
    else:
        own = known.forecast.law if law is not None and isinstance(known.forecast, DecayingForecast) else None
        paced = _fit_decayed(own, branches, at, ranges, places.n_dimensions, ends)
    fitted = () if isinstance(paced, Thin) else tuple(told[i][0].number for i in paced.fitted)
    return paced, fitted


def branch_of(observation: Observation, known: Known, price: StepCost | None) -> Branch | None:
    """A trial as evidence for the law, with its schedule; None where it says nothing, or its horizon is not known."""
    settings = known.settings
    if settings.decay is None:
        return as_branch(observation, settings.goal, price)
    horizon = horizon_of(observation, settings.decay, settings.goal, price)
    return None if horizon is None else as_branch(observation, settings.goal, price, settings.decay.over(horizon))


def horizon_of(observation: Observation, decay: Decay, goal: LossGoal, price: StepCost | None) -> float | None:
    """Examples of a trial's schedule; None where they are not known."""
    if decay.horizon is None and isinstance(goal, LowestLoss) and price is not None:
        return budget(goal, price, observation.batch_size)
    return observation.horizon


def law_of(forecast: ConstantForecast | DecayingForecast | None, ends: Ends | None) -> LawPosterior | DecayedLaw | None:
    """The forecast's law, as a search asks it; None without one."""
    if isinstance(forecast, DecayingForecast):
        return None if ends is None else _law_of(forecast.law, ends)
    return None if forecast is None else forecast.law


@lru_cache(maxsize=4)
def _law_of(law: LossPosterior, ends: Ends) -> DecayedLaw:
    return DecayedLaw.of_forecast(law, ends)


def usable_law(known: Known, ends: Ends | None = None) -> LawPosterior | DecayedLaw | None:
    """The forecast's law; None where there is none, or where it cannot say how the goal is reached at all.

    Such a law would hold every trial against a curve that ends too early: what the trials show is better than that.
    """
    law, goal = law_of(known.forecast, ends), known.settings.goal
    if law is None:
        return None
    if isinstance(goal, ReachLoss) and not math.isfinite(sum(least_of(law, goal.loss))):
        return law if goal.loss >= law.initial_loss else None
    return law


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


@lru_cache(maxsize=8)
def _fit_decayed(
    prior: LossPosterior | None,
    branches: tuple[Branch, ...],
    places: tuple[tuple[float, ...], ...],
    ranges: Ranges,
    n_dimensions: int,
    ends: Ends,
) -> PacedLaw | Thin:
    """The same of trials whose learning rate decays."""
    spread = PACE_SPREAD if n_dimensions == 2 else PACE_SPREAD_OF_OTHERS
    believed = None if prior is None else (_law_of(prior, ends), _doubt_of(prior))
    if not branches and believed is not None:
        return PacedLaw.without_runs(_widened(*believed), n_dimensions, spread)
    try:
        return fit_decayed(
            branches,
            np.array(places),
            ends,
            spread=spread,
            highest_rate=ranges.learning_rates[1],
            prior=believed,
            common=0.0 if prior is None else COMMON_DOUBT,
        )
    except (EvidenceError, ValueError, np.linalg.LinAlgError) as error:
        level = logging.DEBUG if isinstance(error, EvidenceError) else logging.WARNING
        _logger.log(level, "The law could not be fitted to the trials: %s", error)
        if believed is not None:
            return PacedLaw.without_runs(_widened(*believed), n_dimensions, spread)
        return Thin(f"the law could not be fitted to the trials ({error})")


def _doubt_of(law: LossPosterior) -> Floats:
    """How far each parameter of a forecast's law is doubted, (parameters,)."""
    named = [DOUBT_OF_DECAYED[name] for name in SCHEDULE_SHAPE]
    return np.array(named + [SLOPE_DOUBT] * (len(law.rows[0]) - len(named)))


def _widened(law: DecayedLaw, doubt: Floats) -> DecayedLaw:
    moves = UNTESTED_SHARE * doubt * np.random.default_rng(0).standard_normal(law.rows.shape)
    moves[0] = 0.0
    return replace(law, rows=law.rows + moves)


def _doubted(law: LawPosterior, sd: float) -> LawPosterior:
    rows = np.array(law.draws)
    if not rows.size:
        return law
    rng = np.random.default_rng(0)
    for name in DOUBTED:
        rows[:, SHAPE.index(name)] += sd * rng.standard_normal(len(rows))
    return replace(law, draws=tuple(tuple(map(float, row)) for row in rows), grid_points=GRID_POINTS)


def unstable_in(law: LawPosterior | DecayedLaw, observations: Sequence[Observation]) -> tuple[tuple[int, float], ...]:
    """(batch size, learning rate) that diverge, by the probe and by trials, rising; none that a trial contradicts."""
    fine = [(o.batch_size, o.learning_rate) for o in observations if o.usable]
    before = {
        (size, rate) for size, rate in law.unstable if not any(size / 4 <= b <= size and r >= rate for b, r in fine)
    }
    return tuple(sorted(before | unstable_settings(observations)))


@lru_cache(maxsize=4)
def least_of(law: LawPosterior | DecayedLaw, loss: float) -> tuple[float, float]:
    """The fewest steps and the fewest examples to a loss, by the law's best guess; infinite where it never does."""
    steps_min, examples_min = law.hyperbola(loss)
    return float(steps_min[0]), float(examples_min[0])


def _ends(axis: Axis) -> tuple[float, float]:
    return axis.sizes[0], axis.sizes[-1]
