"""From a forecast to a plan: what the plan chooses from, unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.horizons import warmup_within
from batchopt.forecasting.metric_goals import in_metrics, loss_goal
from batchopt.forecasting.planner import Wanted, make_plan
from batchopt.forecasting.probe_readings import FURTHER
from batchopt.forecasting.read_outs import hyperbola_to
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import Goal, ReachLoss, check_goal
from batchopt.planning.plan import Alternative, Plan
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast

AUTOMATIC: tuple[Shape, ...] = ("wsd", "linear", "cosine")
"""What a plan chooses from: a constant rate is never cheaper than the best of these."""


def plan_for(
    forecast: Forecast,
    goal: Goal,
    *,
    shape: Shape | None,
    batch_sizes: tuple[int, int] | None,
    multiple_of: int,
    step_cost: StepCost | None,
) -> Plan:
    """The plan of `Forecast.plan`, which documents the arguments; `shape` is None where the plan is to choose."""
    check_goal(goal)
    smallest = max(1, round(forecast.law.batch_sizes[0] / FURTHER))
    wanted = Wanted(
        goal=loss_goal(forecast, goal),
        shapes=AUTOMATIC if shape is None else (shape,),
        bounds=batch_sizes or (smallest, forecast.batch_size_limit),
        multiple_of=multiple_of,
        measured=step_cost or forecast.step_cost,
        warmup_examples=forecast.warmup_examples,
        prior=forecast.prior,
    )
    warmup = forecast.warmup_examples
    plan = _made(forecast, wanted)
    plan = replace(plan, parameters=forecast.parameters, population=forecast.population)
    cut = _doubt_of_warmup(plan.schedule.examples, warmup)
    plan = plan if cut is None else replace(plan, reasons=(cut, *plan.reasons))
    plan = _as_far_as_seen(plan, forecast.overfits_below)
    return in_metrics(forecast, goal, plan, shape)


def _made(forecast: Forecast, wanted: Wanted) -> Plan:
    """The plan for a goal in the loss; a budget is planned for at other rates where none near the prior is stable.

    Raises:
        UnreachableGoalError: as `Forecast.plan`.
    """
    law, warmup = forecast.law, forecast.warmup_examples
    try:
        return make_plan(
            law,
            wanted,
            hyperbola=lambda loss, shape: hyperbola_to(law, loss, shape, warmup_examples=warmup),
            critical_batch_size=lambda loss, shape: forecast.critical_batch_size(loss, learning_rate_schedule=shape),
            doubts=forecast.doubts,
        )
    except UnreachableGoalError as error:
        if wanted.prior is None:
            raise
        size, rate = wanted.prior
        near = f"near the task's prior, {rate:.3g} at batch size {size}"
        if isinstance(wanted.goal, ReachLoss):
            raise UnreachableGoalError(
                f"{error}. Rates {near}, were considered: leave it out to consider all"
            ) from None
    plan = _made(forecast, replace(wanted, prior=None))
    return replace(
        plan, reasons=(f"No rate {near}, is predicted to be stable, so others were considered.", *plan.reasons)
    )


def _as_far_as_seen(plan: Plan, overfits_below: float | None) -> Plan:
    """A plan whose losses are not resolved where only training batches, seen before, were as low."""
    if overfits_below is None or plan.loss.value >= overfits_below:
        return plan

    def seen(point: Alternative) -> Alternative:
        loss = point.loss
        if loss.value >= overfits_below:
            return point
        return replace(point, loss=Estimate(loss.value, loss.low, max(loss.high, overfits_below), False))

    points = tuple(seen(point) for point in plan.alternatives)
    return replace(plan, best=seen(plan.best), alternatives=points)


def _doubt_of_warmup(horizon: int, warmup_examples: int | None) -> str | None:
    """That the task's warm-up was cut; None where it was not."""
    within = warmup_within(horizon, warmup_examples)
    if warmup_examples is None or within == warmup_examples:
        return None
    return (
        f"The task's warm-up of {warmup_examples:,} examples is longer than a fifth of this run of {horizon:,}, so its "
        f"rate rises over {within:,} examples instead: give the task a shorter warm-up, or plan a longer run."
    )
