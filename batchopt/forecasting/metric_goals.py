"""Goals in a metric: the loss that they stand for, and what a plan for that loss says of the metric."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from batchopt._wording import number
from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.metric_curve import curve_of
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import BestMetric, Goal, LossGoal, LowestLoss, ReachLoss, ReachMetric
from batchopt.planning.plan import Alternative, Plan
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast


def loss_goal(forecast: Forecast, goal: Goal) -> LossGoal:
    """The goal in the loss, its budget in examples or seconds.

    Raises:
        EvidenceError: the forecast knows no such metric, or of no epochs.
        UnreachableGoalError: the metric is not predicted to come so far at any loss, or cannot: an accuracy above one.
    """
    if isinstance(goal, ReachMetric):
        return ReachLoss(curve_of(forecast.metrics, goal.metric, forecast.doubts).loss_at(goal.value).value, goal.least)
    if isinstance(goal, BestMetric):
        curve_of(forecast.metrics, goal.metric, forecast.doubts)
        goal = LowestLoss(goal.within, goal.of)
    return goal if isinstance(goal, ReachLoss) else goal.resolved(forecast.population)


def in_metrics(forecast: Forecast, goal: Goal, plan: Plan, shape: Shape) -> Plan:
    """A plan with what it says of the task's metrics.

    The loss that a metric stands for is not known exactly, so what the plan is to take is as uncertain as that, too.

    Args:
        forecast: that it is from.
        goal: what was asked for.
        plan: for the loss that the goal stands for.
        shape: of the learning-rate schedule.
    """
    plan = replace(plan, metrics={curve.name: curve(plan.loss) for curve in forecast.metrics})
    if isinstance(goal, LossGoal):
        return plan
    if isinstance(goal, BestMetric):
        return replace(plan, asked=goal)
    loss = curve_of(forecast.metrics, goal.metric, forecast.doubts).loss_at(goal.value)
    doubt = "" if loss.resolved else ": so far from what was evaluated that it is a guess"
    # What is unresolved is the first doubt; else it comes after the first reason that is none.
    at = len(plan.doubts) + 1 if loss.resolved else 0
    told = (
        f"{goal.metric} {number(goal.value)} goes with a loss of {loss}{doubt}. The plan is made for the "
        "middle of that; the intervals of steps, examples and cost cover its ends too."
    )
    reasons = (*plan.reasons[:at], told, *plan.reasons[at:])
    less, more = _factors(forecast, plan.best, loss, shape)
    best, cost = _stretched(plan.best, less, more), _wider(plan.schedule_cost, less, more)
    others = tuple(best if point == plan.best else point for point in plan.alternatives)
    return replace(plan, best=best, schedule_cost=cost, alternatives=others, asked=goal, reasons=reasons)


def _factors(forecast: Forecast, point: Alternative, loss: Estimate, shape: Shape) -> tuple[float, float]:
    """By how much less a run takes to the upper end of a loss, and more to the lower; inf if it is never there."""

    def steps(to: float) -> float:
        try:
            found = forecast.steps(point.batch_size, point.learning_rate, to, learning_rate_schedule=shape)
        except (UnreachableGoalError, ValueError):
            return math.inf
        return found.value

    less, middle, more = (steps(to) for to in (min(loss.high, 0.99 * forecast.initial_loss), loss.value, loss.low))
    if not math.isfinite(middle):
        return 1.0, math.inf
    return max(1.0, middle / less), max(1.0, more / middle)


def _stretched(point: Alternative, less: float, more: float) -> Alternative:
    """A point whose intervals are wider by factors, downwards and upwards."""
    return replace(
        point,
        steps=_wider(point.steps, less, more),
        examples=_wider(point.examples, less, more),
        seconds=None if point.seconds is None else _wider(point.seconds, less, more),
        cost=_wider(point.cost, less, more),
    )


def _wider(estimate: Estimate, less: float, more: float) -> Estimate:
    down, up = estimate.widened(less), estimate.widened(more)
    return Estimate(estimate.value, down.low, up.high, down.resolved and up.resolved)
