"""Goals in words."""

from __future__ import annotations

from batchopt._wording import number
from batchopt._wording import seconds as time_in_words
from batchopt.planning.goal import BestMetric, BudgetUnit, Goal, Least, LowestLoss, ReachMetric
from batchopt.step_cost import StepCost


def goal_in_words(goal: Goal, *, loss: float | None = None, population: int | None = None) -> str:
    """What is wanted, in part of a sentence.

    Args:
        goal: what it is.
        loss: that goes with a metric's value, if it is known.
        population: examples of an epoch, if there are such.

    Example:
        >>> goal_in_words(ReachMetric("accuracy", 0.93), loss=0.25)
        'accuracy 0.93 (a loss of 0.25) in the fewest seconds'
        >>> goal_in_words(LowestLoss(20_000, "examples"), population=2_000)
        'the lowest loss within 20,000 examples (10 epochs)'
    """
    if isinstance(goal, LowestLoss | BestMetric):
        what = f"the best {goal.metric}" if isinstance(goal, BestMetric) else "the lowest loss"
        return f"{what} within {amount_in_words(goal.within, goal.of, population)}"
    if not isinstance(goal, ReachMetric):
        return f"a loss of {goal.loss:g} {_least(goal.least)}"
    at = "" if loss is None else f" (a loss of {loss:.3g})"
    return f"{goal.metric} {goal.value:g}{at} {_least(goal.least)}"


def amount_in_words(within: float, of: BudgetUnit | StepCost, population: int | None = None) -> str:
    """A budget."""
    if of == "seconds":
        return time_in_words(within)
    amount = f"{within:,.0f}" if float(within).is_integer() else f"{within:,.6g}"
    if isinstance(of, StepCost):
        return f"{amount} {of.unit}"
    epochs = f" ({number(within / population)} epochs)" if of == "examples" and population else ""
    return f"{amount} {of}{epochs}"


def _least(least: Least) -> str:
    if isinstance(least, StepCost):
        return f"at the least cost, counted in {least.unit}"
    if least == "balanced":
        return "in the fewest steps and examples, balanced"
    return f"in the fewest {' and '.join(least) if isinstance(least, tuple) else least}"
