"""What the user wants from training.

All goals price a run by one formula, a cost per step of a + b B: time, money, examples, steps and any exchange rate
between them are choices of a and b.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from batchopt._checks import check_finite, check_one_of, check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.step_cost import StepCost

Unit = Literal["seconds", "examples", "steps"]
BALANCED = "balanced units"
"""Unit of a cost by "balanced": one is S_min steps, or E_min examples."""
Least = Literal["seconds", "examples", "steps", "balanced"] | StepCost | tuple[Literal["steps"], Literal["examples"]]
BudgetUnit = Literal["seconds", "hours", "examples", "epochs", "steps"]

_UNITS = ("seconds", "examples", "steps")
_BUDGET_UNITS = ("seconds", "hours", "examples", "epochs", "steps")
_OTHER_PRICES = "any other cost of a step is a StepCost(per_step=..., per_example=...)"


@dataclass(frozen=True, slots=True)
class ReachLoss(Record):
    """Reach a loss at the least cost. It counts as reached at the end of the learning rate's decay.

    Attributes:
        loss: the loss to reach, as the probe measures it.
        least: what to spend least of: "seconds" (by the measured step cost), "examples", "steps", "balanced"
            (steps / S_min + examples / E_min), any `StepCost`, or ("steps", "examples") for a study of two objectives.

    Example:
        >>> ReachLoss(0.25).price(StepCost(per_step=2e-3, per_example=1e-5)).per_step
        0.002
        >>> ReachLoss(0.25, least="steps").price()(512)
        1.0
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.reach_loss/1"

    loss: float
    least: Least = "seconds"

    def __post_init__(self) -> None:
        check_positive("loss", self.loss)
        _check_least(self.least)

    def price(
        self, measured: StepCost | None = None, *, steps_min: float | None = None, examples_min: float | None = None
    ) -> StepCost:
        """The cost of a step under this goal.

        Args:
            measured: measured seconds per step; needed for least="seconds".
            steps_min: fewest steps to the loss (S_min); needed for "balanced".
            examples_min: fewest examples to the loss (E_min); needed for "balanced".

        Raises:
            EvidenceError: what is needed is missing, or the goal has two objectives and so no single price.
        """
        if self.least == "balanced":
            if steps_min is None or examples_min is None:
                raise EvidenceError("least='balanced' needs S_min and E_min of the loss, and neither is known yet")
            return StepCost(1.0 / steps_min, 1.0 / examples_min, unit=BALANCED)
        if isinstance(self.least, tuple):
            raise EvidenceError(
                "least=('steps', 'examples') has two objectives and no single cost; plan for 'balanced'"
            )
        return _price(self.least, measured)


@dataclass(frozen=True, slots=True)
class LowestLoss(Record):
    """Reach the lowest loss within a budget, which gives every batch size its horizon.

    Attributes:
        within: the budget.
        of: what the budget is counted in: "seconds" or "hours" (by the measured step cost), "examples", "epochs"
            (passes over the data set), "steps" or any `StepCost`. A plan's goal is in seconds and examples.

    Example:
        >>> LowestLoss(3_600.0).price(StepCost(per_step=2e-3, per_example=1e-5)).per_example
        1e-05
        >>> LowestLoss(1e6, of="examples").price()(512)
        512.0
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.lowest_loss/1"

    within: float
    of: BudgetUnit | StepCost = "seconds"

    def __post_init__(self) -> None:
        _check_budget(self.within, self.of)

    def price(self, measured: StepCost | None = None) -> StepCost:
        """The cost of a step under this goal, as `ReachLoss.price`.

        Raises:
            EvidenceError: also where the budget is in epochs, since how long one is only a forecast or a task knows.
        """
        return _price(self.of, measured)

    def resolved(self, population: int | None) -> LowestLoss:
        """The same budget in examples where it is in epochs, in seconds where it is in hours.

        Args:
            population: examples of an epoch; None where there are no epochs.

        Raises:
            EvidenceError: the budget is in epochs, and there are none.
        """
        if self.of == "hours":
            return replace(self, within=3_600.0 * self.within, of="seconds")
        if self.of != "epochs":
            return self
        if population is None:
            raise EvidenceError(
                "a budget in epochs needs the size of the data set, and there is none (a stream, roll-outs, or runs "
                'that were logged): give it in examples, of="examples"'
            )
        return replace(self, within=self.within * population, of="examples")


@dataclass(frozen=True, slots=True)
class ReachMetric(Record):
    """Reach a value of a metric at the least cost: an accuracy, say. It counts at the end of the decay, as a loss does.

    Whether larger or smaller values are better is seen from how the metric goes with the loss.

    Attributes:
        metric: its name among the task's `metrics`.
        value: to reach; of an accuracy as a share, 0.93.
        least: as for `ReachLoss`.
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.reach_metric/1"

    metric: str
    value: float
    least: Least = "seconds"

    def __post_init__(self) -> None:
        check_finite("value", self.value)
        _check_least(self.least)


@dataclass(frozen=True, slots=True)
class BestMetric(Record):
    """Reach the best value of a metric within a budget.

    Attributes:
        metric: its name among the task's `metrics`.
        within: the budget.
        of: what the budget is counted in, as for `LowestLoss`.
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.best_metric/1"

    metric: str
    within: float
    of: BudgetUnit | StepCost = "seconds"

    def __post_init__(self) -> None:
        _check_budget(self.within, self.of)


LossGoal = ReachLoss | LowestLoss
MetricGoal = ReachMetric | BestMetric
Goal = LossGoal | MetricGoal


def check_goal(goal: object, metrics: Collection[str] | None = None) -> None:
    """Raise TypeError unless `goal` is one, and ValueError where its metric is none of a task's."""
    if not isinstance(goal, Goal):
        names = ", ".join(f"batchopt.{kind.__name__}" for kind in get_args(Goal))
        raise TypeError(f"goal must be one of {names}, got {goal!r}")
    if metrics is not None and isinstance(goal, MetricGoal) and goal.metric not in metrics:
        known = ", ".join(map(repr, metrics)) or "none"
        raise ValueError(
            f"the goal's metric must be one of the task's ({known}), got {goal.metric!r}: give the task "
            f"metrics={{{goal.metric!r}: ...}}"
        )


def _check_least(least: object) -> None:
    if not isinstance(least, StepCost) and least != ("steps", "examples"):
        remedy = f"{_OTHER_PRICES}, and ('steps', 'examples') is for a study of two objectives"
        check_one_of("least", least, (*_UNITS, "balanced"), remedy=remedy)


def _check_budget(within: float, of: object) -> None:
    check_positive("within", within)
    if not isinstance(of, StepCost):
        check_one_of("of", of, _BUDGET_UNITS, remedy=_OTHER_PRICES)


def _price(unit: object, measured: StepCost | None) -> StepCost:
    if isinstance(unit, StepCost):
        return unit
    if unit == "examples":
        return StepCost(0.0, 1.0, unit="examples")
    if unit == "steps":
        return StepCost(1.0, 0.0, unit="steps")
    if unit == "epochs":
        raise EvidenceError('a budget in epochs needs the size of the data set: give it in examples, of="examples"')
    if measured is None:
        raise EvidenceError(
            "least seconds need a measured step cost and there is none: "
            "probe the task, or pass a StepCost as the goal's unit (--per-step and --per-example)"
        )
    return measured.scaled(1.0 / 3_600.0, "hours") if unit == "hours" else measured
