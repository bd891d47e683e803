"""The plan: which batch size and learning rate to use, what that will cost, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._codec import Record
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate


@dataclass(frozen=True, slots=True)
class Alternative(Record):
    """One point of the trade-off: a batch size with its best learning rate and what it is predicted to take.

    Attributes:
        batch_size: examples per step.
        learning_rate: best constant learning rate at that batch size.
        loss: loss at the end (the goal's own loss for `ReachLoss`).
        steps: predicted steps.
        examples: predicted examples.
        seconds: predicted seconds; None without a measured step cost.
        cost: predicted cost in the goal's unit.
    """

    SCHEMA: ClassVar[str] = "batchopt.alternative/1"

    batch_size: int
    learning_rate: float
    loss: Estimate
    steps: Estimate
    examples: Estimate
    seconds: Estimate | None
    cost: Estimate


@dataclass(frozen=True, slots=True)
class Plan(Record):
    """What to run. The numbers are of the best *constant* plan; `schedule` may vary and has its own cost.

    Attributes:
        goal: what was asked.
        price: the cost of a step that the goal stood for.
        best: the chosen point of the trade-off.
        alternatives: every batch size that was considered, rising, the best among them.
        critical_batch_size: of the goal's loss.
        schedule: the batch size over examples seen, with its learning rates.
        schedule_cost: predicted cost of the schedule, in the goal's unit.
        reasons: why, in sentences; a doubt comes first.
    """

    SCHEMA: ClassVar[str] = "batchopt.plan/1"

    goal: ReachLoss | LowestLoss
    price: StepCost
    best: Alternative
    alternatives: tuple[Alternative, ...]
    critical_batch_size: Estimate
    schedule: Schedule
    schedule_cost: Estimate
    reasons: tuple[str, ...]

    @property
    def batch_size(self) -> int:
        """Batch size of the best constant plan, in examples."""
        return self.best.batch_size

    @property
    def learning_rate(self) -> float:
        """Learning rate of the best constant plan."""
        return self.best.learning_rate

    @property
    def steps(self) -> Estimate:
        """Predicted steps of the best constant plan."""
        return self.best.steps

    @property
    def examples(self) -> Estimate:
        """Predicted examples of the best constant plan."""
        return self.best.examples

    @property
    def seconds(self) -> Estimate | None:
        """Predicted seconds of the best constant plan; None without a measured step cost."""
        return self.best.seconds

    @property
    def cost(self) -> Estimate:
        """Predicted cost of the best constant plan, in the goal's unit."""
        return self.best.cost
