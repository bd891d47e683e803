"""The surrogate of a study: the law of the forecast, updated by the trials, priced in the goal's unit.

The forecast enters as a prior that is widened before it is used, so that a wrong one is overruled by a few trials.
Trials keep a pace of their own beside the law, explained by a Gaussian process over all their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.forecasting.drawn_law import DrawnLaw, LossCurves
from batchopt.forecasting.kept import KeptForecast
from batchopt.forecasting.trial_fit import PacedLaw
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.fit import LONGEST, Thin, fewest_steps, grid_of, paced_by, unstable_in, usable_law
from batchopt.search.latest_paces import with_latest_paces
from batchopt.search.ledger import Seen, seen_in
from batchopt.search.naming import warn_of_exponents
from batchopt.search.observations import (
    Observation,
    check_objective,
    reading_of,
)
from batchopt.search.parameters import Space
from batchopt.search.places import Places
from batchopt.search.price import price_of
from batchopt.search.prospects import NEAR_BEST, Candidates
from batchopt.search.saying import tell_once
from batchopt.search.search_space import last_distributions, middle_of, others_of, space_of
from batchopt.search.settings import Known
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    import optuna
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

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


@dataclass(frozen=True, slots=True, eq=False)
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
        rates: learning rates of the whole space, (r,).
        longest: examples that the law's curves go to.
    """

    paced: PacedLaw
    goal: ReachLoss | LowestLoss
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
    rates: Floats = field(default_factory=lambda: np.ones(1))
    longest: float = 1e6

    @property
    def law(self) -> DrawnLaw:
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

    def costs(self, candidates: Candidates, loss: float, *, beyond: float | None = None) -> Floats:
        """Cost to reach a loss, (1 + n_draws, k): of one step or more; inf where it is not reached.

        Args:
            candidates: the settings.
            loss: to be reached.
            beyond: stop this far in v beyond the lowest loss that was observed: too low a cost to a loss that is
                further away, but costs that can be compared; None to go to the loss.
        """
        sizes, rates = candidates.batch_sizes, candidates.learning_rates
        paces, _ = self._paces(candidates)
        logs = self.curves(sizes, rates).log_examples_to(self.log_targets(loss, beyond))
        return np.maximum(np.exp(logs + paces) / sizes, 1.0) * self._prices(sizes)

    def log_targets(self, loss: float, beyond: float | None) -> Floats:
        """The log loss that counts as the goal's, by row, (1 + n_draws,)."""
        targets = np.full(len(self.law.rows), math.log(loss))
        return targets if beyond is None else np.maximum(targets, np.log(self.law.loss_ahead(beyond)))

    def paced_scores(
        self, candidates: Candidates, *, budget: float = 1.0, beyond: float | None = None
    ) -> tuple[Floats, Floats]:
        """What the study minimises: cost at the goal's loss, or loss at the budget (or a share of it).

        Returns:
            (1 + n_draws, k), and the standard deviation of the log pace that is not known, (k,).
        """
        paces, sd = self._paces(candidates)
        if isinstance(self.goal, ReachLoss):
            return self.costs(candidates, self.goal.loss, beyond=beyond), sd
        sizes, rates = candidates.batch_sizes, candidates.learning_rates
        steps = np.floor(budget * self.goal.within / self._prices(sizes))
        logs = np.log(np.maximum(steps, 1.0) * sizes) - paces
        losses = np.exp(self.curves(sizes, rates).log_losses_at(logs))
        return np.where(steps >= 1.0, losses, np.inf), sd

    def log_scores_of_run(self, run: Observation, *, beyond: float | None = None) -> Floats:
        """Log score of a run that was fitted, at the pace that it showed, (1 + n_draws,)."""
        paces = self.latest[:, self.fitted.index(run.number)]
        curve = self.curves(np.array([float(run.batch_size)]), np.array([run.learning_rate]))
        if isinstance(self.goal, ReachLoss):
            logs = curve.log_examples_to(self.log_targets(self.goal.loss, beyond))[:, 0] + paces
            least = max(1.0, STILL_TO_GO * max(run.curve.examples) / run.batch_size)
            return np.asarray(np.log(np.maximum(np.exp(logs) / run.batch_size, least) * self.price(run.batch_size)))
        steps = max(1.0, math.floor(self.goal.within / self.price(run.batch_size)))
        return curve.log_losses_at(math.log(steps * run.batch_size) - paces[:, None])[:, 0]

    def best_rates(self, batch_sizes: Floats) -> Floats:
        """The best guess of the best learning rate, at the lowest loss that was seen, (k,)."""
        sizes, back = np.unique(batch_sizes, return_inverse=True)
        grid = [axis.ravel() for axis in np.meshgrid(sizes, self.rates, indexing="ij")]
        curves = _curves(self.row_law(0), *map(tuple, grid), self.longest)
        target = max(math.log(self.law.lowest_loss), float(np.min(curves.log_losses[0, :, -1])))
        logs = curves.log_examples_to(np.array([target]))[0].reshape(len(sizes), -1)
        # Where no rate gets there, the one that comes nearest.
        nearest = curves.log_losses[0, :, -1].reshape(logs.shape)
        best = np.where(np.isfinite(logs.min(axis=1)), logs.argmin(axis=1), nearest.argmin(axis=1))
        return np.asarray(self.rates[best][back])

    def steepness(self, candidates: Candidates, best: NDArray[np.int_]) -> Floats:
        """How much the log score falls per log cost at the best candidate of every row, (1 + n_draws,)."""
        if isinstance(self.goal, ReachLoss):
            return np.ones(len(best))
        ends = []
        for budget in (1.0, math.exp(-NEAR_BEST)):
            scores, _ = self.paced_scores(candidates.chosen(best), budget=budget)
            ends.append(np.log(np.diagonal(scores)))
        return np.maximum((ends[1] - ends[0]) / NEAR_BEST, LEAST_STEEPNESS)

    def log_costs_of(self, log_scores: Floats) -> Floats:
        """Log cost of whole trials with these log scores: under a budget, all take it."""
        return log_scores if isinstance(self.goal, ReachLoss) else np.full_like(log_scores, math.log(self.goal.within))

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
        others = self.places.of_others({} if incumbent is None else incumbent.params)
        return Candidates(sizes.ravel(), rates.ravel(), np.tile(others, (sizes.size, 1)))

    def one(self, batch_size: float, learning_rate: float, params: Mapping[str, Any]) -> Candidates:
        """A single setting."""
        others = self.places.of_others(params)[None]
        return Candidates(np.array([float(batch_size)]), np.array([learning_rate]), others)

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

    def row_law(self, index: int) -> DrawnLaw:
        """One row of the law as its best guess, without draws: 0 the best guess itself, then the draws."""
        return _row_of(self.law, index)

    def curves(self, batch_sizes: Floats, learning_rates: Floats) -> LossCurves:
        """Losses of the law over examples, without paces."""
        # The law knows nothing of the other parameters: each pair of the two is worked out once.
        pairs, back = np.unique(np.stack([batch_sizes, learning_rates]), axis=1, return_inverse=True)
        found = _curves(self.law, tuple(pairs[0]), tuple(pairs[1]), self.longest)
        return LossCurves(found.log_examples[back], found.log_losses[:, back])

    def _paces(self, candidates: Candidates) -> tuple[Floats, Floats]:
        settings = self.places.of_settings(candidates.batch_sizes, candidates.learning_rates)
        return self.paced.log_paces_at(np.concatenate([settings, candidates.others], axis=1))

    def _prices(self, batch_sizes: Floats) -> Floats:
        return np.array([self.price(size) for size in batch_sizes])


def build_surrogate(
    study: optuna.Study, known: Known, *, without: int | None = None, asking: int | None = None
) -> Surrogate | Thin:
    """The surrogate from what the study holds now, running trials included.

    Args:
        study: whatever stand-in of it a pruner's bracket shows.
        known: what it is about.
        without: number of a trial to leave out.
        asking: number of a running trial that is fitted, however many others are.

    Raises:
        EvidenceError: the study contradicts the goal (direction, number of objectives).
    """
    settings, forecast = known.settings, known.forecast
    ranges = last_distributions(study, settings)
    if ranges is not None:
        check_objective(study, settings.goal)
        warn_of_exponents(study, settings, ranges[0])
        tell_once(f"Study {study.study_name}: {reading_of(settings.goal)}.")
    seen = seen_in(study, settings, without=without, asking=asking)
    observations = seen.told
    try:
        space = space_of(study, settings, forecast)
    except EvidenceError as error:
        return Thin(str(error))
    if space is None:
        return Thin("no trial has suggested both parameters yet")
    price = price_of(settings.goal, forecast, observations, middle_of(space.batch_sizes))
    two = isinstance(settings.goal, ReachLoss) and isinstance(settings.goal.least, tuple)
    if price is None and not two:
        return Thin("no step cost was measured, and no completed trial shows one")
    places = Places(others_of(seen, settings))
    paced, fitted = paced_by(known, seen.fitted, price, space, places)
    if isinstance(paced, Thin):
        return paced
    if isinstance(settings.goal, ReachLoss) and settings.goal.loss >= paced.law.initial_loss:
        return Thin(f"the goal's loss is not below the initial loss, {paced.law.initial_loss:.4g}")
    paced = replace(paced, law=replace(paced.law, unstable=unstable_in(paced.law, observations)))
    largest = memory_limit(known, seen)
    surrogate = Surrogate(
        paced=paced,
        goal=settings.goal,
        price=price or StepCost(1.0, 0.0, unit="steps"),
        space=Space(space.batch_sizes.up_to(largest), space.learning_rates),
        places=places,
        largest_batch_size=largest,
        observations=observations,
        fitted=fitted,
        latest=paced.log_paces,
        trends=np.zeros_like(paced.log_paces),
        informed=usable_law(known, space) is not None,
        expected=_expected(forecast, settings.goal, price, space),
        rates=space.learning_rates.array,
        longest=LONGEST * max([_longest(forecast), *(max(o.curve.examples, default=0.0) for o in observations)]),
    )
    surrogate = with_latest_paces(surrogate)
    return replace(surrogate, misfit=_misfit(surrogate))


@lru_cache(maxsize=8)
def _curves(law: DrawnLaw, sizes: tuple[float, ...], rates: tuple[float, ...], longest: float) -> LossCurves:
    """The law's curves over a grid, which several questions about one trial share."""
    return law.curves(np.array(sizes), np.array(rates), longest)


@lru_cache(maxsize=8)
def _row_of(law: DrawnLaw, index: int) -> DrawnLaw:
    return replace(law, rows=law.rows[[index]])


def _expected(
    forecast: KeptForecast | None, goal: ReachLoss | LowestLoss, price: StepCost | None, space: Space
) -> float:
    if forecast is None or price is None or not isinstance(goal, ReachLoss):
        return math.inf
    steps = fewest_steps(forecast.law, goal.loss, *grid_of(space))
    return min(fewest * price(size) for fewest, size in zip(steps, space.batch_sizes.sizes, strict=True))


def _longest(forecast: KeptForecast | None) -> float:
    return 1.0 if forecast is None else forecast.law.longest


def memory_limit(known: Known, seen: Seen) -> int | None:
    """The largest batch size that is not known to exceed memory; None where nothing is known."""
    goal, forecast = known.settings.goal, known.forecast
    costs = [
        forecast.step_cost if forecast is not None else None,
        goal.least if isinstance(goal, ReachLoss) else goal.of,
    ]
    limits = [cost.largest_batch_size for cost in costs if isinstance(cost, StepCost)]
    return min((limit for limit in (seen.largest_batch_size, *limits) if limit is not None), default=None)


def _misfit(surrogate: Surrogate) -> float:
    """How far completed trials lie from the law without their own paces, as a factor's logarithm."""
    done = [o for o in surrogate.observations if o.values is not None]
    if not done:
        return 0.0
    sizes = np.array([float(o.batch_size) for o in done])
    rates = np.array([o.learning_rate for o in done])
    others = np.array([surrogate.places.of_others(o.params) for o in done])
    alone = replace(
        surrogate,
        paced=PacedLaw.without_runs(surrogate.row_law(0), surrogate.places.n_dimensions, surrogate.paced.spread),
    )
    predicted = alone.paced_scores(Candidates(sizes, rates, others))[0][0]
    observed = np.array([surrogate.value_of(o) for o in done])
    both = np.isfinite(predicted)
    if 2 * np.count_nonzero(both) < len(done):
        return math.inf  # The law denies what most completed trials did.
    return float(np.sqrt(np.mean(np.log(observed[both] / predicted[both]) ** 2)))
