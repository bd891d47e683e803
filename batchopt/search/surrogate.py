"""The surrogate of a study: the law of the forecast, updated by the trials, priced in the goal's unit.

The forecast enters as a prior that is widened before it is used, so that a wrong one is overruled by a few trials.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.law import SHAPE, LawPosterior
from batchopt.forecasting.law_fit import fit_law, update_law
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.observations import (
    Observation,
    as_branch,
    check_objective,
    finished_trials,
    largest_that_fits,
    observe,
    reading_of,
    unstable_settings,
)
from batchopt.search.parameters import Axis, Space, batch_size_axis, learning_rate_axis
from batchopt.search.price import price_of
from batchopt.search.settings import Known, StudySettings
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    import optuna
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_logger = logging.getLogger(__name__)

DOUBTED = ("log_b", "log_lr")
"""Parameters of a forecast's law whose draws are widened: they differ most where a probe misleads."""
UNTESTED_DOUBT = 0.5
"""Standard deviation that is added before there are trials: more would cost the first ones their aim."""
TESTED_DOUBT = 1.5
"""Standard deviation that is added where trials can decide: a rate that is 30 times off is then soon given up."""
DEFAULT_OCTAVES = 6
"""Half width of the learning rates considered while the parameter's own range is unknown."""
NEIGHBOURHOOD = 8.0
"""Batch sizes considered while the parameter's range is unknown: this factor beyond those observed."""


@dataclass(frozen=True, slots=True)
class Thin:
    """There is no surrogate yet, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    """What a trial must beat.

    Attributes:
        loss: to be reached.
        cost: within this cost.
        trial: number of the incumbent that did it; None where it is the best predicted.
    """

    loss: float
    cost: float
    trial: int | None


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Predicted costs over batch size and learning rate.

    Attributes:
        law: posterior after the trials.
        goal: what the objective's value means.
        price: cost of a step; in a study of two objectives every step costs 1, until `scalarised`.
        space: candidates of both parameters, within memory.
        largest_batch_size: largest that is not known to exceed memory.
        observations: finished trials that were used.
        misfit: root mean square of log(observed / predicted cost) over completed trials.
    """

    law: LawPosterior
    goal: ReachLoss | LowestLoss
    price: StepCost
    space: Space
    largest_batch_size: int | None
    observations: tuple[Observation, ...]
    misfit: float = 0.0

    @property
    def two_objectives(self) -> bool:
        """Whether the study minimises steps and examples side by side."""
        return isinstance(self.goal, ReachLoss) and isinstance(self.goal.least, tuple)

    @property
    def incumbent(self) -> Observation | None:
        """The best completed and feasible trial; of two objectives, by their product."""
        done = [o for o in self.observations if o.values is not None and o.feasible]
        return min(done, key=lambda o: (math.prod(o.values or ()), o.number), default=None)

    def row(self, index: int) -> Surrogate:
        """The surrogate with one row as its best guess and no draws: 0 the best guess itself, then the draws."""
        rows = (self.law.best, *self.law.draws)
        return replace(self, law=replace(self.law, best=rows[index], draws=()))

    def costs(self, batch_sizes: Floats, learning_rates: Floats, loss: float) -> Floats:
        """Cost to reach a loss at k settings, (1 + n_draws, k): of one step or more; inf where it is not reached."""
        steps = np.maximum(self.law.steps_to(batch_sizes, learning_rates, loss), 1.0)
        return steps * self._prices(batch_sizes)

    def scores(self, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """What the study minimises, at k settings, (1 + n_draws, k): cost at the goal's loss, or loss at the budget."""
        if isinstance(self.goal, ReachLoss):
            return self.costs(batch_sizes, learning_rates, self.goal.loss)
        steps = np.floor(self.goal.within / self._prices(batch_sizes))
        losses = self.law.losses_at(batch_sizes, learning_rates, np.maximum(steps, 1.0) * batch_sizes)
        return np.where(steps >= 1.0, losses, np.inf)

    def scalarised(self, exchange: float) -> Surrogate:
        """A study of two objectives seen as one: exchange * steps / S_min + examples / (E_min * exchange)."""
        sizes, rates = self.grid()
        steps = self.scores(sizes, rates)[0]
        reached = np.isfinite(steps)
        if not np.any(reached):
            return self
        fewest, least = float(np.min(steps[reached])), float(np.min((steps * sizes)[reached]))
        return replace(
            self, price=StepCost(exchange / max(fewest, 1.0), 1.0 / (exchange * max(least, 1.0)), unit="balanced")
        )

    def grid(self) -> tuple[Floats, Floats]:
        """Every pair of candidates: batch sizes and learning rates, each (k,), the learning rate running fastest."""
        sizes, rates = np.meshgrid(self.space.batch_sizes.array, self.space.learning_rates.array, indexing="ij")
        return sizes.ravel(), rates.ravel()

    def best_predicted(self) -> tuple[float, float, float] | None:
        """Batch size, learning rate and score of the best candidate on the best guess; None where none gets there."""
        sizes, rates = self.grid()
        scores = self.row(0).scores(sizes, rates)[0]
        best = int(np.argmin(scores))
        return (float(sizes[best]), float(rates[best]), float(scores[best])) if math.isfinite(scores[best]) else None

    def target(self) -> Target | None:
        """What the incumbent did; None before a trial has completed."""
        incumbent = self.incumbent
        if incumbent is None or incumbent.values is None:
            return None
        if isinstance(self.goal, LowestLoss):
            return Target(incumbent.values[0], self.goal.within, incumbent.number)
        return Target(self.goal.loss, incumbent.values[0], incumbent.number)

    def first_target(self, score: float) -> Target:
        """What the first trials are held against: the best predicted score."""
        if isinstance(self.goal, LowestLoss):
            return Target(score, self.goal.within, None)
        return Target(self.goal.loss, score, None)

    def _prices(self, batch_sizes: Floats) -> Floats:
        return np.array([self.price(size) for size in batch_sizes])


def build_surrogate(study: optuna.Study, known: Known) -> Surrogate | Thin:
    """The surrogate from what the study holds now.

    Raises:
        EvidenceError: the study contradicts the goal (direction, number of objectives, values that are not positive).
    """
    settings, forecast = known.settings, known.forecast
    trials = finished_trials(study)
    having = [trial for trial in trials if settings.read(trial.params) is not None]
    if having:
        check_objective(study, settings.goal, having)
        _announce(study.study_name, settings.goal)
    observations = observe(having, settings)
    price = price_of(settings.goal, forecast, observations)
    branches = [branch for o in observations if (branch := as_branch(o, settings.goal, price)) is not None]
    law = _law(forecast, branches, enough_curves=sum(o.usable for o in observations) >= 2)
    if isinstance(law, Thin):
        return law
    if isinstance(settings.goal, ReachLoss) and settings.goal.loss >= law.initial_loss:
        return Thin(f"the goal's loss is not below the initial loss, {law.initial_loss:.4g}")
    two = isinstance(settings.goal, ReachLoss) and isinstance(settings.goal.least, tuple)
    if price is None and not two:
        return Thin("no step cost was measured, and too few completed trials show one")
    law = replace(law, unstable=_unstable(law, observations))
    largest = memory_limit(known, having)
    space = _space(study, settings, law)
    surrogate = Surrogate(
        law=law,
        goal=settings.goal,
        price=price or StepCost(1.0, 0.0, unit="steps"),
        space=Space(space.batch_sizes.up_to(largest), space.learning_rates),
        largest_batch_size=largest,
        observations=tuple(observations),
    )
    return replace(surrogate, misfit=_misfit(surrogate))


def memory_limit(known: Known, trials: Sequence[FrozenTrial]) -> int | None:
    """The largest batch size that is not known to exceed memory; None where nothing is known."""
    goal, forecast = known.settings.goal, known.forecast
    costs = [
        forecast.step_cost if forecast is not None else None,
        goal.least if isinstance(goal, ReachLoss) else goal.of,
    ]
    limits = [cost.largest_batch_size for cost in costs if isinstance(cost, StepCost)]
    return largest_that_fits(
        trials, known.settings, min([limit for limit in limits if limit is not None], default=None)
    )


@lru_cache(maxsize=64)
def _announce(study_name: str, goal: ReachLoss | LowestLoss) -> None:
    _logger.info("Study %s: %s.", study_name, reading_of(goal))


def _law(forecast: Forecast | None, branches: Sequence[Branch], *, enough_curves: bool) -> LawPosterior | Thin:
    if forecast is not None:
        return _posterior(forecast.law, tuple(branches))
    if not enough_curves:
        return Thin("there is no forecast, and fewer than two trials reported four losses or more")
    return _posterior(None, tuple(branches))


@lru_cache(maxsize=4)
def _posterior(prior: LawPosterior | None, branches: tuple[Branch, ...]) -> LawPosterior | Thin:
    """The law after the trials. Remembered by its content, which every worker and every part of a process shares."""
    try:
        if prior is None:
            return fit_law(branches)
        return update_law(_doubted(prior, TESTED_DOUBT), branches) if branches else _doubted(prior, UNTESTED_DOUBT)
    except (EvidenceError, ValueError, np.linalg.LinAlgError) as error:
        # A study must outlive a fit that fails: what is left is the forecast, or the base sampler.
        _logger.warning("The law could not be fitted to the trials: %s", error)
        return (
            Thin(f"the law could not be fitted to the trials ({error})")
            if prior is None
            else _doubted(prior, UNTESTED_DOUBT)
        )


def _doubted(law: LawPosterior, sd: float) -> LawPosterior:
    rows = np.array(law.draws)
    if not rows.size:
        return law
    rng = np.random.default_rng(0)
    for name in DOUBTED:
        rows[:, SHAPE.index(name)] += sd * rng.standard_normal(len(rows))
    return replace(law, draws=tuple(tuple(map(float, row)) for row in rows))


def _unstable(law: LawPosterior, observations: Sequence[Observation]) -> tuple[tuple[int, float], ...]:
    fine = [(o.batch_size, o.learning_rate) for o in observations if o.usable]
    before = {(size, rate) for size, rate in law.unstable if not any(b <= size and r >= rate for b, r in fine)}
    return tuple(sorted(before | unstable_settings(observations)))


def _space(study: optuna.Study, settings: StudySettings, law: LawPosterior) -> Space:
    known = last_distributions(study, settings)
    if known is not None:
        return Space(batch_size_axis(known[0], exponent=settings.exponent), learning_rate_axis(known[1]))
    smallest, largest = law.batch_sizes
    rates = np.exp2(np.arange(-DEFAULT_OCTAVES, DEFAULT_OCTAVES + 0.1, 0.25))
    middle = math.exp(law.best[SHAPE.index("log_lr")])
    sizes = [2**k for k in range(20) if smallest / NEIGHBOURHOOD <= 2**k <= largest * NEIGHBOURHOOD] or [largest]
    return Space(
        Axis(tuple(sizes), tuple(map(float, sizes))),
        Axis(tuple(map(float, middle * rates)), tuple(map(float, middle * rates)), 0.25 * math.log(2.0)),
    )


def last_distributions(
    study: optuna.Study, settings: StudySettings
) -> tuple[BaseDistribution, BaseDistribution] | None:
    """Ranges of batch size and learning rate in the latest trial that had both; None before there was one."""
    names = (settings.batch_size, settings.learning_rate)
    for trial in reversed(study._storage.get_all_trials(study._study_id, deepcopy=False)):
        if all(name in trial.distributions for name in names):
            return trial.distributions[names[0]], trial.distributions[names[1]]
    return None


def _misfit(surrogate: Surrogate) -> float:
    """How far completed trials lie from the law, as a factor's logarithm."""
    done = [o for o in surrogate.observations if o.values is not None]
    if not done:
        return 0.0
    sizes = np.array([float(o.batch_size) for o in done])
    rates = np.array([o.learning_rate for o in done])
    predicted = surrogate.row(0).scores(sizes, rates)[0]
    observed = np.array([(o.values or (1.0,))[0] for o in done])
    both = np.isfinite(predicted)
    if 2 * np.count_nonzero(both) < len(done):
        return math.inf  # The law denies what most completed trials did.
    return float(np.sqrt(np.mean(np.log(observed[both] / predicted[both]) ** 2)))
