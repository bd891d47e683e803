"""The surrogate of a study: the law of the forecast, updated by the trials, priced in the goal's unit.

The forecast enters as a prior that is widened before it is used, so that a wrong one is overruled by a few trials.
Trials keep a pace of their own beside the law, explained by a Gaussian process over all their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from batchopt.forecasting.decayed_law import DecayedLaw
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.paced_fit import PacedLaw
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.search.decay import Decay
from batchopt.search.fit import horizon_of
from batchopt.search.metric_reading import MetricReading
from batchopt.search.observations import Observation
from batchopt.search.parameters import Space
from batchopt.search.places import Places
from batchopt.search.prospects import NEAR_BEST, Candidates
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

AMPLE = math.exp(NEAR_BEST)
"""Where the rate decays, a run whose horizon is this many times what it needs is taken to end at the loss by even
chance: as much as a setting may be behind the best and still succeed."""
STILL_TO_GO = 1.03
"""A running trial takes at least this many times what it has taken."""
LEAST_STEEPNESS = 0.01
"""How much log loss falls over log cost at least, where differences of the one are turned into those of the other."""


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
    """Predicted costs over batch size, learning rate and the other parameters.

    Attributes:
        paced: posterior after the trials, with their paces.
        goal: what the objective's value means.
        price: cost of a step; in a study of two objectives every step costs 1, until `scalarised`.
        space: candidates of batch size and learning rate, within memory.
        places: where trials lie.
        largest_batch_size: largest that is not known to exceed memory.
        observations: trials that were used.
        fitted: numbers of those whose curves were fitted, in the order of the paces.
        latest: their log paces as they would be in the end, by their last losses, (1 + n_draws, n_runs).
        trends: how much of that is a change that is yet to come, likewise.
        misfit: root mean square of log(observed / predicted cost) over completed trials.
        informed: whether a forecast was the starting point.
        expected: the least cost to the goal by the forecast alone, at its best learning rates; infinite without one.
        decay: how the learning rate of trials decays; None where they keep it.
        metric: that trials report, and that losses stand for; None where they report losses.
        usual_horizon: in the middle of those of the trials, in examples, where they have their own.
    """

    paced: PacedLaw
    goal: LossGoal
    price: StepCost
    space: Space
    places: Places
    largest_batch_size: int | None
    observations: tuple[Observation, ...]
    fitted: tuple[int, ...]
    latest: Floats
    trends: Floats
    misfit: float = 0.0
    informed: bool = False
    expected: float = math.inf
    decay: Decay | None = None
    metric: MetricReading | None = None
    usual_horizon: float = math.inf

    @property
    def decays(self) -> bool:
        """Whether the learning rate of trials decays."""
        return self.decay is not None

    @property
    def law(self) -> LawPosterior | DecayedLaw:
        """The law without the trials' own paces."""
        return self.paced.law

    @property
    def two_objectives(self) -> bool:
        """Whether the study minimises steps and examples side by side."""
        return isinstance(self.goal, ReachLoss) and isinstance(self.goal.least, tuple)

    @property
    def incumbent(self) -> Observation | None:
        """The best completed and feasible trial; of two objectives, by their price."""
        done = [o for o in self.observations if o.values is not None and o.feasible]
        return min(done, key=lambda o: (self.value_of(o), o.number), default=None)

    def value_of(self, observation: Observation) -> float:
        """The value of a completed trial, of two objectives by their price."""
        if observation.values is None:
            return math.inf
        if not self.two_objectives:
            return observation.values[0]
        steps, examples = observation.values
        return steps * self.price.per_step + examples * self.price.per_example

    def in_words(self, loss: float) -> str:
        """A loss, or the metric that it stands for."""
        return (
            f"loss {loss:.4g}" if self.metric is None else f"{self.metric.goal.metric} {self.metric.value_at(loss):.4g}"
        )

    def score_in_words(self, score: float) -> str:
        """What the study minimises, as its objective returns it."""
        value = score if self.metric is None or not self.quantity else self.metric.value_at(score)
        return f"{self.quantity}{value:.4g}"

    @property
    def quantity(self) -> str:
        """The name of what an objective returns that is a metric, before its value; empty for a loss or a cost."""
        return f"{self.metric.goal.metric} " if self.metric is not None and isinstance(self.goal, LowestLoss) else ""

    def costs(self, candidates: Candidates, loss: float, *, beyond: float | None = None) -> Floats:
        """Cost to reach a loss, (1 + n_draws, k): of one step or more; inf where it is not reached.

        Args:
            candidates: the settings; where the rate decays each costs its horizon, and more where that is too short.
            loss: to be reached.
            beyond: as in `LawPosterior.steps_to`.
        """
        sizes, rates = candidates.batch_sizes, candidates.learning_rates
        paces, _ = self._paces(candidates)
        # The law knows nothing of the other parameters: each pair of the two is worked out once.
        pairs, back = np.unique(np.stack([sizes, rates]), axis=1, return_inverse=True)
        steps = _steps_to(self.law, tuple(pairs[0]), tuple(pairs[1]), loss, beyond)[:, back] * np.exp(paces)
        if candidates.horizons is not None:
            steps = np.maximum(AMPLE * steps, candidates.horizons / sizes)
        return np.maximum(steps, 1.0) * self._prices(sizes)

    def paced_scores(
        self, candidates: Candidates, *, budget: float = 1.0, beyond: float | None = None
    ) -> tuple[Floats, Floats]:
        """What the study minimises: cost at the goal's loss, or loss at the budget (or a share of it).

        Where the rate decays, the cost of a horizon that is long enough, or the loss at the end of the trial's own.

        Returns:
            (1 + n_draws, k), and the standard deviation of the log pace that is not known, (k,).
        """
        paces, sd = self._paces(candidates)
        if isinstance(self.goal, ReachLoss):
            return self.costs(candidates, self.goal.loss, beyond=beyond), sd
        sizes, rates = candidates.batch_sizes, candidates.learning_rates
        steps = np.floor(budget * self.goal.within / self._prices(sizes))
        if candidates.horizons is not None:
            steps = np.floor(budget * candidates.horizons / sizes)
        losses = self.law.losses_after(sizes, rates, np.maximum(steps, 1.0) * np.exp(-paces))
        return np.where(steps >= 1.0, losses, np.inf), sd

    def log_scores_of_run(self, run: Observation, *, beyond: float | None = None) -> Floats:
        """Log score of a run that was fitted, at the pace that it showed, (1 + n_draws,)."""
        paces = self.latest[:, self.fitted.index(run.number)]
        size, rate = np.array([float(run.batch_size)]), np.array([run.learning_rate])
        if isinstance(self.goal, ReachLoss):
            steps = self.law.steps_to(size, rate, self.goal.loss, beyond=beyond)[:, 0] * np.exp(paces)
            if run.horizon is not None:
                steps = np.maximum(AMPLE * steps, run.horizon / run.batch_size)
            least = max(1.0, STILL_TO_GO * max(run.curve.examples) / run.batch_size)
            return np.asarray(np.log(np.maximum(steps, least) * self.price(run.batch_size)))
        whole = math.floor(self.goal.within / self.price(run.batch_size))
        steps = (whole if run.horizon is None else run.horizon / run.batch_size) * np.exp(-paces)
        return np.asarray(np.log(self.law.losses_after(size, rate, steps[:, None])[:, 0]))

    def best_rates(self, batch_sizes: Floats) -> Floats:
        """The best guess of the best learning rate, (k,).

        At the lowest loss that was seen; where the rate decays, at the end of the middle horizon that is considered.
        """
        return self.law.best_rates(batch_sizes)

    def steepness(self, candidates: Candidates, best: NDArray[np.int_]) -> Floats:
        """How much the log score falls per log cost at the best candidate of every row, (1 + n_draws,)."""
        if isinstance(self.goal, ReachLoss):
            return np.ones(len(best))
        ends = []
        for budget in (1.0, math.exp(-NEAR_BEST)):
            scores, _ = self.paced_scores(candidates.chosen(best), budget=budget)
            ends.append(np.log(np.diagonal(scores)))
        return np.maximum((ends[1] - ends[0]) / NEAR_BEST, LEAST_STEEPNESS)

    def log_costs_of(self, log_scores: Floats, candidates: Candidates) -> Floats:
        """Log cost of whole trials with these log scores, (n, k): under a budget all take it, or else their horizon."""
        if candidates.horizons is not None:
            logs = np.log(candidates.horizons / candidates.batch_sizes * self._prices(candidates.batch_sizes))
            return np.asarray(np.broadcast_to(logs, log_scores.shape))
        return log_scores if isinstance(self.goal, ReachLoss) else np.full_like(log_scores, math.log(self.goal.within))

    def horizons_of(self, params: Sequence[Mapping[str, Any]]) -> Floats | None:
        """Horizons of trials with these parameters, (n,); None where the rate is constant, or they are the budget."""
        if self.decay is None or self.decay.horizon is None:
            return None
        held = [self.decay.held_by(each, {}) for each in params]
        return np.array([self.usual_horizon if horizon is None else horizon for horizon in held])

    def horizon_of_run(self, run: Observation) -> float:
        """Examples of a run's learning-rate schedule; infinite where the rate does not decay."""
        if self.decay is None:
            return math.inf
        return horizon_of(run, self.decay, self.goal, self.price) or self.usual_horizon

    def scalarised(self, exchange: float) -> Surrogate:
        """A study of two objectives seen as one: exchange * steps / S_min + examples / (E_min * exchange)."""
        grid = self.grid()
        steps = self.costs(grid, self.goal.loss)[0] if isinstance(self.goal, ReachLoss) else np.array([math.inf])
        reached = np.isfinite(steps)
        if not np.any(reached):
            return self
        fewest, least = float(np.min(steps[reached])), float(np.min((steps * grid.batch_sizes)[reached]))
        return replace(
            self, price=StepCost(exchange / max(fewest, 1.0), 1.0 / (exchange * max(least, 1.0)), unit="balanced")
        )

    def grid(self) -> Candidates:
        """Every pair of candidates, the learning rate running fastest; all else as the incumbent has it."""
        sizes, rates = np.meshgrid(self.space.batch_sizes.array, self.space.learning_rates.array, indexing="ij")
        incumbent = self.incumbent
        params = {} if incumbent is None else incumbent.params
        others, lengths = self.places.of_others(params), self.horizons_of([params])
        horizons = None if lengths is None else np.repeat(lengths, sizes.size)
        return Candidates(sizes.ravel(), rates.ravel(), np.tile(others, (sizes.size, 1)), horizons)

    def one(
        self, batch_size: float, learning_rate: float, params: Mapping[str, Any], *, horizon: float | None = None
    ) -> Candidates:
        """A single setting; its horizon is by its parameters where none is given."""
        others, horizons = self.places.of_others(params)[None], self.horizons_of([params])
        if horizons is not None and horizon is not None:
            horizons = np.array([horizon])
        return Candidates(np.array([float(batch_size)]), np.array([learning_rate]), others, horizons)

    def best_predicted(self) -> tuple[float, float, float] | None:
        """Batch size, learning rate and score of the best candidate on the best guess; None where none gets there."""
        grid = self.grid()
        scores = self.paced_scores(grid)[0][0]
        best = int(np.argmin(scores))
        if not math.isfinite(scores[best]):
            return None
        return float(grid.batch_sizes[best]), float(grid.learning_rates[best]), float(scores[best])

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

    def _paces(self, candidates: Candidates) -> tuple[Floats, Floats]:
        settings = self.places.of_settings(candidates.batch_sizes, candidates.learning_rates)
        return self.paced.log_paces_at(np.concatenate([settings, candidates.others], axis=1))

    def _prices(self, batch_sizes: Floats) -> Floats:
        return np.array([self.price(size) for size in batch_sizes])


@lru_cache(maxsize=4)
def _steps_to(
    law: LawPosterior | DecayedLaw,
    sizes: tuple[float, ...],
    rates: tuple[float, ...],
    loss: float,
    beyond: float | None,
) -> Floats:
    """The law's steps over a grid, which several questions about one trial share."""
    return law.steps_to(sizes, rates, loss, beyond=beyond)
