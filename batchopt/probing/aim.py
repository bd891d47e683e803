"""What a probe still needs where it knows its goal: runs as long as the planned one, if they cost less than they save.

Once the short runs have cooled down, the forecast that they allow plans for the goal. No later run need be longer than
the planned one. And if every draw of the posterior had its own best setting, its cost would be the least that any
knowledge could make it: what the plan costs beyond that, on average over draws, is what a perfect forecast would save
(the expected value of perfect information: Raiffa and Schlaifer 1961), and more than further runs can be expected to.
A probe ends where these cost more. What the goal spends least of is taken to fall by the same share as what the
probe's budget counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchopt._codec import Record
from batchopt._wording import number
from batchopt.errors import BatchoptError
from batchopt.evidence import ProbeReport
from batchopt.planning.goal import Goal
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast


@dataclass(frozen=True, slots=True)
class Aim(Record):
    """What is known of the planned run in the middle of a probe.

    Attributes:
        horizon: examples of the planned run; infinite where there is no plan yet.
        saved: what a perfect forecast would save of its cost, in the budget's examples; infinite where none is known.
        words: both, in a sentence.
    """

    SCHEMA: ClassVar[str] = "batchopt.aim/1"

    horizon: float
    saved: float
    words: str


def aim_of(report: ProbeReport, goal: Goal, price: StepCost) -> Aim:
    """What a probe knows of the planned run.

    Args:
        report: of the probe so far.
        goal: of the plan.
        price: what a step counts for in the probe's budget, in examples.
    """
    from batchopt.forecasting.forecast import Forecast  # at the top every worker of a probe would load it

    try:
        return aim_by(Forecast.fit(report), goal, price)
    except BatchoptError as error:
        return _no_plan(error)


def aim_by(forecast: Forecast, goal: Goal, price: StepCost) -> Aim:
    """The same by a forecast from the probe so far."""
    try:
        plan = forecast.plan(goal)
    except BatchoptError as error:
        return _no_plan(error)
    planned = (
        f"By the short runs the goal takes batch size {plan.batch_size} at {plan.learning_rate:.3g} and "
        f"{plan.horizon:,} examples"
    )
    saved = _saved(plan, price)
    if math.isinf(saved):
        return Aim(plan.horizon, saved, f"{planned}.")
    counted = number(plan.steps.value * price(plan.batch_size))
    return Aim(
        plan.horizon,
        saved,
        f"{planned}, which count for about {counted}; a perfect forecast would save {number(saved)} of that.",
    )


def _no_plan(error: Exception) -> Aim:
    return Aim(math.inf, math.inf, f"There is no plan for the goal from the short runs yet ({error}).")


def _saved(plan: Plan, price: StepCost) -> float:
    if plan.expected_regret is None:
        return math.inf
    cost = plan.steps.value * price(plan.batch_size)
    return cost * plan.expected_regret / (1.0 + plan.expected_regret)
