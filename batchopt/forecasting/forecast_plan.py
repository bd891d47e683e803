"""From a forecast to a plan: which batch sizes and shape it considers, unless others are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.horizons import warmup_within
from batchopt.forecasting.metric_curve import curve_of
from batchopt.forecasting.metric_goals import in_metrics, loss_goal
from batchopt.forecasting.overfitting import band_held_back, held_back
from batchopt.forecasting.planner import Wanted, make_plan
from batchopt.forecasting.probe_readings import FURTHER
from batchopt.forecasting.read_outs import hyperbola_to
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import Goal, ReachLoss, ReachMetric, check_goal
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast


def plan_for(
    forecast: Forecast,
    goal: Goal,
    *,
    shape: Shape,
    batch_sizes: tuple[int, int] | None,
    multiple_of: int,
    step_cost: StepCost | None,
) -> Plan:
    """The plan of `Forecast.plan`, which documents the arguments."""
    check_goal(goal)
    smallest = max(1, round(forecast.law.batch_sizes[0] / FURTHER))
    wanted = Wanted(
        goal=loss_goal(forecast, goal),
        shape=shape,
        bounds=batch_sizes or (smallest, forecast.batch_size_limit),
        multiple_of=multiple_of,
        measured=step_cost or forecast.step_cost,
        warmup_examples=forecast.warmup_examples,
        prior=forecast.prior,
    )
    warmup = forecast.warmup_examples
    if isinstance(goal, ReachLoss):
        _check_not_below_turn(forecast, goal.loss)
    try:
        plan = _made(forecast, wanted)
    except UnreachableGoalError as error:
        if not isinstance(goal, ReachMetric):
            raise
        loss = curve_of(forecast.metrics, goal.metric, forecast.doubts).loss_at(goal.value)
        raise UnreachableGoalError(f"{goal.metric} {goal.value:g} goes with a loss of {loss}, and {error}") from None
    plan = replace(plan, parameters=forecast.parameters, population=forecast.population)
    cut = _doubt_of_warmup(plan.schedule.examples, warmup)
    plan = plan if cut is None else replace(plan, reasons=(cut, *plan.reasons))
    plan = replace(plan, predicted=band_held_back(plan.predicted, forecast))
    return in_metrics(forecast, goal, plan, shape)


def _made(forecast: Forecast, wanted: Wanted) -> Plan:
    """The plan for a goal in the loss.

    Raises:
        UnreachableGoalError: as `Forecast.plan`.
    """
    law, warmup = forecast.law, forecast.warmup_examples
    return make_plan(
        law,
        wanted,
        hyperbola=lambda loss, shape: hyperbola_to(law, loss, shape, warmup_examples=warmup),
        critical_batch_size=lambda loss, shape: forecast.critical_batch_size(loss, learning_rate_schedule=shape),
        held_back=lambda loss, horizon: held_back(loss, forecast, horizon),
        doubts=forecast.doubts,
    )


def _check_not_below_turn(forecast: Forecast, loss: float) -> None:
    """Raise UnreachableGoalError for a loss below the lowest that was evaluated where that turned up."""
    lowest, turn = forecast.overfits_below, forecast.turned_up
    if turn is not None and lowest is not None and loss < lowest:
        raise UnreachableGoalError(
            f"loss {loss:.4g} is below the lowest that was evaluated, {lowest:.4g}, and the evaluated loss turned up "
            f"after {turn.examples:,} examples while the losses of training batches went on falling: ask for a loss "
            "above that, regularise, or train on more data, and probe again"
        )


def _doubt_of_warmup(horizon: int, warmup_examples: int | None) -> str | None:
    """That the task's warm-up was cut; None where it was not."""
    within = warmup_within(horizon, warmup_examples)
    if warmup_examples is None or within == warmup_examples:
        return None
    return (
        f"The task's warm-up of {warmup_examples:,} examples is longer than a fifth of this run of {horizon:,}, so its "
        f"rate rises over {within:,} examples instead: give the task a shorter warm-up, or plan a longer run."
    )
