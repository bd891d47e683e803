"""From the law to a plan: predictions at candidate settings, the choice among them, the schedule and the reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.run_path import path_of
from batchopt.planning.choice import Prediction, candidate_batch_sizes, choose_lowest, choose_reaching
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Alternative, Plan
from batchopt.planning.reasons import reasons_for
from batchopt.planning.staging import Staging, stage
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_RATES = 2.0 ** np.arange(-2.0, 2.01, 0.25)
"""Candidate learning rates around the best guess's own optimum, a quarter of an octave apart."""


def make_plan(
    law: LawPosterior,
    goal: ReachLoss | LowestLoss,
    *,
    bounds: tuple[int, int],
    multiple_of: int,
    measured: StepCost | None,
    learning_rates: tuple[float, float],
    critical_batch_size: Callable[[float], Estimate],
    doubts: tuple[str, ...],
) -> Plan:
    """The plan of `Forecast.plan`, which documents the arguments."""
    sizes = candidate_batch_sizes(*_within_memory(bounds, measured), multiple_of=multiple_of)
    price = _price(law, goal, measured)
    if isinstance(goal, ReachLoss):
        if goal.loss >= law.initial_loss:
            raise UnreachableGoalError(
                f"loss {goal.loss:.4g} needs no training: the initial loss is {law.initial_loss:.4g}"
            )
        predictions = [_reaching(law, goal.loss, size, learning_rates) for size in sizes]
        best, points = choose_reaching(predictions, price=price, measured=measured)
    else:
        predictions = [_within_budget(law, goal, price, size, learning_rates) for size in sizes]
        best, points = choose_lowest(predictions, price=price, measured=measured)
    critical = critical_batch_size(min(best.loss.value, 0.99 * law.initial_loss))
    staging = _staging(law, best, price, [size for size in sizes if is_doubling(size, best.batch_size)])
    reasons = reasons_for(
        goal,
        best,
        points,
        critical=critical,
        staging=staging,
        price=price,
        lowest_observed=law.lowest_loss,
        doubts=doubts,
    )
    return Plan(
        goal=goal,
        price=price,
        best=best,
        alternatives=points,
        critical_batch_size=critical,
        schedule=staging.schedule,
        schedule_cost=best.cost.scaled(staging.relative_cost),
        reasons=reasons,
    )


def _within_memory(bounds: tuple[int, int], measured: StepCost | None) -> tuple[int, int]:
    low, high = bounds
    largest = measured.largest_batch_size if measured is not None else None
    if largest is not None and low > largest:
        raise UnreachableGoalError(
            f"the largest batch that fits in memory is {largest}, below the smallest wanted, {low}"
        )
    return low, high if largest is None else min(high, largest)


def _price(law: LawPosterior, goal: ReachLoss | LowestLoss, measured: StepCost | None) -> StepCost:
    if isinstance(goal, LowestLoss):
        return goal.price(measured)
    balanced = goal.least == "balanced" or isinstance(goal.least, tuple)
    if not balanced:
        return goal.price(measured)
    steps_min, examples_min = law.hyperbola(goal.loss)
    if not (math.isfinite(steps_min[0]) and math.isfinite(examples_min[0])):
        raise UnreachableGoalError(f"loss {goal.loss:.4g} is beyond what the forecast reaches: ask for a higher loss")
    wanted = ReachLoss(goal.loss, "balanced")
    return wanted.price(measured, steps_min=float(steps_min[0]), examples_min=float(examples_min[0]))


def _candidates(law: LawPosterior, size: int, loss: float, learning_rates: tuple[float, float]) -> Floats:
    centre = law.best_steps([float(size)], loss, best_guess_only=True)[1][0, 0]
    return np.unique(np.clip(centre * _RATES, *learning_rates))


def _reaching(law: LawPosterior, loss: float, size: int, learning_rates: tuple[float, float]) -> Prediction:
    rates = _candidates(law, size, loss, learning_rates)
    steps = law.steps_to(np.full(len(rates), float(size)), rates, loss)
    return Prediction(size, rates, steps, np.full(steps.shape, loss))


def _within_budget(
    law: LawPosterior, goal: LowestLoss, price: StepCost, size: int, learning_rates: tuple[float, float]
) -> Prediction:
    steps = math.floor(goal.within / price(size))
    rates = _candidates(law, size, law.lowest_loss, learning_rates)
    if steps < 1:
        nothing = np.full((1 + len(law.draws), len(rates)), np.inf)
        return Prediction(size, rates, nothing, nothing)
    losses = law.losses_at(np.full(len(rates), float(size)), rates, np.full(len(rates), float(steps * size)))
    return Prediction(size, rates, np.full(losses.shape, float(steps)), losses)


def is_doubling(size: int, other: int) -> bool:
    """Whether one size is a power of two (at most eight) times the other: a schedule's switches stay whole factors."""
    return max(size, other) in (min(size, other) * factor for factor in (1, 2, 4, 8))


def _staging(law: LawPosterior, best: Alternative, price: StepCost, sizes: list[int]) -> Staging:
    path, multipliers = path_of(
        law, best.batch_size, best.learning_rate, first=0.0, last=best.steps.value, batch_sizes=sizes
    )
    return stage(path, price=price, batch_sizes=sizes, learning_rate=best.learning_rate, multipliers=multipliers)
