"""From the posterior to a plan: predictions at candidate settings, the choice, the schedule and the reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.carried_rates import KnownRates
from batchopt.forecasting.horizons import LEAST_STEPS, ends_of, horizons_for, rates_for, schedule_of
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.ramp import cheapest_ramp
from batchopt.forecasting.single_run import SingleRun, estimate_of, of_draws, run_over, run_to_loss
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.choice import DIVERGED, GIVEN_UP, RUINED, candidate_batch_sizes, choose, mean_log
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.planning.plan import Alternative, Plan
from batchopt.planning.reasons import reasons_for
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan is asked for.

    Attributes:
        goal: the goal.
        shape: of the learning-rate schedule.
        bounds: smallest and largest batch size.
        multiple_of: batch sizes are multiples of this.
        measured: seconds per step, if known.
        warmup_examples: None for a share of the horizon.
        prior: (batch size, learning rate) that is known to work; None if there is none.
    """

    goal: LossGoal
    shape: Shape
    bounds: tuple[int, int]
    multiple_of: int
    measured: StepCost | None
    warmup_examples: int | None
    prior: tuple[int, float] | None = None


def make_plan(
    posterior: LossPosterior,
    wanted: Wanted,
    *,
    hyperbola: Callable[[float, Shape], tuple[Floats, Floats]],
    critical_batch_size: Callable[[float, Shape], Estimate],
    held_back: Callable[[Estimate, float], Estimate],
    doubts: tuple[str, ...],
) -> Plan:
    """The plan of `Forecast.plan`, which documents the arguments; losses are held back to what was seen."""
    goal, measured, shape = wanted.goal, wanted.measured, wanted.shape
    sizes = candidate_batch_sizes(*_within_memory(wanted.bounds, measured), multiple_of=wanted.multiple_of)

    def critical_at(loss: float) -> Estimate | None:
        return _critical(critical_batch_size, min(loss, 0.99 * posterior.initial_loss), shape)

    at = critical_at(goal.loss if isinstance(goal, ReachLoss) else posterior.lowest_loss)
    known = KnownRates(posterior, wanted.prior, wanted.warmup_examples, None if at is None else at.value)
    if isinstance(goal, ReachLoss):
        if goal.loss >= posterior.initial_loss:
            raise UnreachableGoalError(
                f"loss {goal.loss:.4g} needs no training: the initial loss is {posterior.initial_loss:.4g}"
            )
        price = _price(goal, measured, lambda: hyperbola(goal.loss, shape))
        runs, best, regret = _reaching(known, shape, goal, sizes, price)
    else:
        price, regret = goal.price(measured), None
        runs, best = _within_budget(known, shape, goal, sizes, price)
    by_law = (_alternative(run, price, measured) for run in runs)
    points = tuple(replace(point, loss=held_back(point.loss, point.horizon)) for point in by_law)
    chosen = points[runs.index(best)]
    ramp = cheapest_ramp(posterior, shape, best, goal, price, sizes, warmup_examples=wanted.warmup_examples)
    schedule = Schedule.constant(best.batch_size, examples=best.horizon, learning_rate=best.learning_rate)
    segments, horizon, rates = (schedule.segments, best.horizon, best.schedule)
    if ramp is not None:
        segments, horizon, rates = ramp.segments, ramp.horizon, ramp.schedule
    loss = goal.loss if isinstance(goal, ReachLoss) else chosen.loss.value
    critical = critical_at(loss)
    relative = 1.0 if ramp is None else ramp.relative_cost
    name = shape if isinstance(shape, str) else "function"
    return Plan(
        goal=goal,
        price=price,
        best=chosen,
        alternatives=points,
        learning_rate_schedule=name,
        predicted=best.predicted,
        critical_batch_size=critical,
        schedule=Schedule(segments, horizon, best.learning_rate, rates),
        schedule_cost=chosen.cost.scaled(relative),
        reasons=reasons_for(
            goal,
            chosen,
            points,
            shape=name,
            horizon=horizon,
            critical=critical,
            segments=segments,
            relative_cost=relative,
            price=price,
            lowest_observed=posterior.lowest_loss,
            expected_regret=regret,
            rate=None if best.known is None else best.known.in_words(best.batch_size, best.learning_rate),
            doubts=doubts,
        ),
        expected_regret=regret,
    )


def _critical(read: Callable[[float, Shape], Estimate], loss: float, shape: Shape) -> Estimate | None:
    """The critical batch size; None where the forecast shows no trade-off at that loss."""
    try:
        return read(loss, shape)
    except UnreachableGoalError:
        return None


def _within_memory(bounds: tuple[int, int], measured: StepCost | None) -> tuple[int, int]:
    low, high = bounds
    largest = measured.largest_batch_size if measured is not None else None
    if largest is not None and low > largest:
        raise UnreachableGoalError(
            f"the largest batch that fits in memory is {largest}, below the smallest wanted, {low}"
        )
    return low, high if largest is None else min(high, largest)


def _price(goal: ReachLoss, measured: StepCost | None, hyperbola: Callable[[], tuple[Floats, Floats]]) -> StepCost:
    if goal.least != "balanced" and not isinstance(goal.least, tuple):
        return goal.price(measured)
    steps_min, examples_min = hyperbola()
    if not (math.isfinite(steps_min[0]) and math.isfinite(examples_min[0])):
        raise UnreachableGoalError(
            f"no trade-off between steps and examples shows at loss {goal.loss:.4g}, so nothing can be balanced: give "
            'the price of a step in place of "balanced", or ask for another loss'
        )
    balanced = ReachLoss(goal.loss, "balanced")
    return balanced.price(measured, steps_min=float(steps_min[0]), examples_min=float(examples_min[0]))


def _reaching(
    known: KnownRates, shape: Shape, goal: ReachLoss, sizes: Sequence[int], price: StepCost
) -> tuple[list[SingleRun], SingleRun, float]:
    """The best run of each batch size, the best of all, and its expected regret."""
    grid = _Grid(known, shape, goal.loss, sizes, price)
    at = grid.best()
    best = None if at is None else grid.run(*at)
    if best is None:
        raise UnreachableGoalError(
            f"no batch size and learning rate within the bounds reaches the loss {goal.loss:.4g}, as likely as not: "
            "ask for a loss nearer to what was observed, probe with more examples, or widen the bounds"
        )
    runs = []
    for i, size in enumerate(sizes):
        j = grid.best_rate(i)
        run = best if size == best.batch_size else None if j is None else grid.run(i, j)
        runs += [] if run is None else [run]
    return runs, best, grid.expected_regret(best)


def _most(diverges: NDArray[np.bool_]) -> Floats:
    """What a draw counts with at most, over what the best setting takes in half of the draws."""
    return np.where(diverges, RUINED, GIVEN_UP).astype(np.float64)


class _Grid:
    """Horizons that reach a loss over batch sizes and peak rates."""

    def __init__(self, known: KnownRates, shape: Shape, loss: float, sizes: Sequence[int], price: StepCost) -> None:
        self.known, self.shape, self.loss, self.sizes, self.price = known, shape, loss, sizes, price
        posterior, of_size = known.law, np.array(sizes, float)[:, None]
        self.rates, horizons = rates_for(posterior, sizes), horizons_for(posterior)
        prices = np.array([price(size) for size in sizes])[:, None]
        flat = np.repeat(sizes, self.rates.shape[1]), self.rates.ravel()
        diverges = of_draws(posterior.is_unstable(*flat)).reshape(-1, *self.rates.shape)
        ends = ends_of(posterior, shape, sizes, self.rates, horizons, warmup_examples=known.warmup_examples)
        needed = of_draws(ends.examples_to(loss))
        self._middle, self._costs = np.median(needed, axis=0), needed * prices / of_size
        most = _most(diverges) * self._middle.min(axis=1, keepdims=True)
        scores = mean_log(needed, most=most) + np.log(prices / of_size)
        self._scores = np.where(np.isfinite(self._middle), scores, np.inf)
        self._log_steps = np.log(self._middle / of_size)

    def best(self) -> tuple[int, ...] | None:
        """Indices of batch size and rate; None where none is likely to reach the loss."""
        return choose(self._scores, self._log_steps)

    def expected_regret(self, run: SingleRun) -> float:
        """By which share a run costs more than the best setting of each draw, in the mean cost.

        A draw counts with at most `GIVEN_UP` times what the run costs in half of them, also where it diverges.
        """
        law = self.known.law if run.known is None else run.known.trusted_by(self.known.law)
        ends = ends_of(
            law, self.shape, [run.batch_size], np.array([[run.learning_rate]]), horizons_for(law),
            warmup_examples=self.known.warmup_examples,
        )  # fmt: skip
        of_examples = self.price(run.batch_size) / run.batch_size
        own = of_draws(ends.examples_to(self.loss))[:, 0, 0] * of_examples
        # Between the horizons of the grid a run may just arrive in half of the draws.
        middle = float(np.median(own))
        most = GIVEN_UP * (middle if math.isfinite(middle) else run.horizon * of_examples)
        best = np.minimum(own, self._costs.min(axis=(1, 2)))
        return float(np.mean(np.minimum(own, most)) / np.mean(np.minimum(best, most)) - 1.0)

    def best_rate(self, i: int) -> int | None:
        """Index of the rate at one batch size."""
        at = choose(self._scores[i], self._log_steps[i])
        return None if at is None else at[0]

    def run(self, i: int, j: int) -> SingleRun | None:
        """The run of a setting, looked at closely."""
        near, warmup = float(self._middle[i, j]), self.known.warmup_examples

        def run(law: LossPosterior, rate: float) -> SingleRun | None:
            return run_to_loss(law, self.shape, self.sizes[i], rate, self.loss, near=near, warmup_examples=warmup)

        return self.known.at(self.shape, near, self.sizes[i], float(self.rates[i, j]), run)


def _within_budget(
    known: KnownRates, shape: Shape, goal: LowestLoss, sizes: Sequence[int], price: StepCost
) -> tuple[list[SingleRun], SingleRun]:
    """As `_reaching`, for the lowest loss at the end of a budget."""
    posterior, steps = known.law, {size: math.floor(goal.within / price(size)) for size in sizes}
    usable = [size for size in sizes if steps[size] >= LEAST_STEPS] or [size for size in sizes if steps[size] >= 2]
    rates = rates_for(posterior, usable)
    found = np.full((1 + posterior.draws, *rates.shape), np.inf)
    for i, size in enumerate(usable):
        horizon, width = steps[size] * size, rates.shape[1]
        schedule = schedule_of(shape, horizon, known.warmup_examples)
        found[:, i] = posterior.losses_at_end([size] * width, rates[i], [schedule] * width, [horizon] * width)
    scores = np.mean(np.minimum(found, math.log(DIVERGED * posterior.initial_loss)), axis=0)
    scores = np.where(np.isfinite(np.median(of_draws(found), axis=0)), scores, np.inf)
    log_steps = np.log([steps[size] for size in usable])[:, None] + np.zeros_like(scores)
    at = choose(scores, log_steps) if usable else None
    if at is None:
        raise UnreachableGoalError(
            "no batch size and learning rate within the bounds takes two steps and stays stable within the budget: "
            "raise it, or widen the bounds"
        )
    runs = []
    for i, size in enumerate(usable):
        j = at[1] if i == at[0] else int(np.argmin(scores[i]))
        if math.isfinite(scores[i, j]):
            run = _run_over(known, shape, size, float(rates[i, j]), steps[size] * size)
            runs += [] if run is None else [run]
    return runs, next(run for run in runs if run.batch_size == usable[at[0]])


def _run_over(known: KnownRates, shape: Shape, size: int, rate: float, horizon: int) -> SingleRun | None:
    """The run of a setting over a horizon; None where it is more likely to diverge."""
    schedule = schedule_of(shape, horizon, known.warmup_examples)

    def run(law: LossPosterior, rate: float) -> SingleRun | None:
        found = run_over(law, schedule, size, rate, horizon=horizon)
        return found if np.isfinite(np.median(of_draws(found.losses))) else None

    return known.at(shape, horizon, size, rate, run)


def _alternative(run: SingleRun, price: StepCost, measured: StepCost | None) -> Alternative:
    examples = estimate_of(run.examples)
    steps = examples.scaled(1.0 / run.batch_size)
    return Alternative(
        batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        horizon=run.horizon,
        loss=estimate_of(run.losses),
        steps=steps,
        examples=examples,
        seconds=None if measured is None else measured.of_steps(steps, batch_size=run.batch_size),
        cost=price.of_steps(steps, batch_size=run.batch_size),
    )
