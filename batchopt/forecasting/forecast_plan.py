"""From a forecast to a plan: what the plan chooses from, unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchopt.forecasting.horizons import warmup_within
from batchopt.forecasting.planner import Wanted, make_plan
from batchopt.forecasting.probe_readings import FURTHER
from batchopt.forecasting.read_outs import hyperbola_to
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast

AUTOMATIC: tuple[Shape, ...] = ("wsd", "linear", "cosine")
"""What a plan chooses from: a constant rate is never cheaper than the best of these."""


def plan_for(
    forecast: Forecast,
    goal: ReachLoss | LowestLoss,
    *,
    shape: Shape | None,
    batch_sizes: tuple[int, int] | None,
    multiple_of: int,
    step_cost: StepCost | None,
) -> Plan:
    """The plan of `Forecast.plan`, which documents the arguments; `shape` is None where the plan is to choose."""
    if not isinstance(goal, ReachLoss | LowestLoss):
        raise TypeError(f"goal must be a batchopt.ReachLoss or batchopt.LowestLoss, got {goal!r}")
    smallest = max(1, round(forecast.law.batch_sizes[0] / FURTHER))
    wanted = Wanted(
        goal=goal,
        shapes=AUTOMATIC if shape is None else (shape,),
        bounds=batch_sizes or (smallest, forecast.batch_size_limit),
        multiple_of=multiple_of,
        measured=step_cost or forecast.step_cost,
        warmup_examples=forecast.warmup_examples,
    )
    law, warmup = forecast.law, forecast.warmup_examples
    plan = make_plan(
        law,
        wanted,
        hyperbola=lambda loss, shape: hyperbola_to(law, loss, shape, warmup_examples=warmup),
        critical_batch_size=lambda loss, shape: forecast.critical_batch_size(loss, learning_rate_schedule=shape),
        doubts=forecast.doubts,
    )
    plan = replace(plan, parameters=forecast.parameters, population=forecast.population)
    cut = _doubt_of_warmup(plan.schedule.examples, warmup)
    return plan if cut is None else replace(plan, reasons=(cut, *plan.reasons))


def _doubt_of_warmup(horizon: int, warmup_examples: int | None) -> str | None:
    """That the task's warm-up was cut; None where it was not."""
    within = warmup_within(horizon, warmup_examples)
    if warmup_examples is None or within == warmup_examples:
        return None
    return (
        f"The task's warm-up of {warmup_examples:,} examples is longer than a fifth of this run of {horizon:,}, so its "
        f"rate rises over {within:,} examples instead: give the task a shorter warm-up, or plan a longer run."
    )
