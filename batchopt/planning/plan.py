"""The plan: which batch size, learning rate and horizon to use, what that will cost, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from batchopt._codec import Record, Upgrade, gained
from batchopt._wording import seconds as time_in_words
from batchopt.planning.goal import BestMetric, LossGoal, ReachLoss, ReachMetric
from batchopt.planning.wording import goal_in_words
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

FIRST_REASON = "The learning rate "
"""How the first reason begins that is no doubt."""


@dataclass(frozen=True, slots=True)
class Alternative(Record):
    """One point of the trade-off: a batch size with its best peak learning rate, and what one run of it is to take.

    Attributes:
        batch_size: examples per step.
        learning_rate: best peak rate at that batch size.
        horizon: examples of the run's schedule.
        loss: at the end of the schedule.
        steps: to the goal's loss, for "wsd" of a run that decides by itself when to decay (`AdaptiveSchedule`); of the
            whole run for `LowestLoss`.
        examples: likewise; may exceed the horizon in part of the interval.
        seconds: likewise; None without a measured step cost.
        cost: likewise, in the goal's unit.
    """

    SCHEMA: ClassVar[str] = "batchopt.alternative/2"

    batch_size: int
    learning_rate: float
    horizon: int
    loss: Estimate
    steps: Estimate
    examples: Estimate
    seconds: Estimate | None
    cost: Estimate


@dataclass(frozen=True, slots=True)
class LossBand(Record):
    """Predicted losses along a run, with 90 % intervals of a single run.

    Attributes:
        examples: rising, (k,).
        losses: in the middle, (k,).
        low, high: ends of the intervals, (k,).
    """

    SCHEMA: ClassVar[str] = "batchopt.loss_band/1"

    examples: tuple[int, ...]
    losses: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plan(Record):
    """What to run. The numbers are of the best *constant* batch size; `schedule` may vary it and has its own cost.

    All intervals are of a single run: they hold what the forecast does not know and how runs differ by their seed.

    Attributes:
        goal: what was asked.
        price: the cost of a step that the goal stood for.
        best: the chosen point of the trade-off.
        alternatives: every batch size that was considered, rising, the best among them.
        learning_rate_schedule: the shape: "constant", "linear", "cosine", "wsd", or "function". Made for the run, with
            its warm-up, it is `schedule.learning_rate_schedule`.
        predicted: losses along the best constant plan's run.
        critical_batch_size: of the goal's loss, under that schedule; None where the forecast shows no trade-off there.
        schedule: batch size over examples seen, peak learning rate, warm-up and decay.
        schedule_cost: predicted cost of the schedule, in the goal's unit.
        reasons: why, in sentences; a doubt comes first.
        expected_regret: by which share the plan costs more than the best setting would, on average over what is
            believed: what a perfect forecast would save. None for `LowestLoss`.
        asked: the goal in a metric, for which `goal` stands; None where a loss was asked for.
        metrics: predicted at the end of the best constant plan's schedule, by name.
        parameters: trainable parameters of the model that was probed; None without a probe.
        population: examples in its data set; None without a probe, and for a stream.
    """

    SCHEMA: ClassVar[str] = "batchopt.plan/4"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {
        "batchopt.plan/2": gained("expected_regret", "asked", "metrics", "parameters", "population"),
        "batchopt.plan/3": gained("asked", "metrics", "parameters", "population"),
    }
    REMEDY_OF_OLDER: ClassVar[str] = "it is of constant learning rates: probe, forecast and plan again"

    goal: LossGoal
    price: StepCost
    best: Alternative
    alternatives: tuple[Alternative, ...]
    learning_rate_schedule: str
    predicted: LossBand
    critical_batch_size: Estimate | None
    schedule: Schedule
    schedule_cost: Estimate
    reasons: tuple[str, ...]
    expected_regret: float | None = None
    asked: ReachMetric | BestMetric | None = None
    metrics: dict[str, Estimate] = field(default_factory=dict, hash=False)
    parameters: int | None = None
    population: int | None = None

    def __str__(self) -> str:
        """What was asked, what to run, what that is predicted to take, and why."""
        rate = f"peak learning rate {self.learning_rate:.3g}, {self.learning_rate_schedule}"
        metrics = "".join(f", {name} {estimate}" for name, estimate in self.metrics.items())
        whole = f"{self.horizon:,} examples, {math.ceil(self.horizon / self.batch_size):,} steps"
        time = "" if self.seconds is None else f", {time_in_words(self.seconds.value)}"
        until = f", {self.steps} steps{time} until the goal" if isinstance(self.goal, ReachLoss) else time
        ends = f"a loss of {self.loss} at the end{metrics}{until}"
        first = f"Batch size {self.batch_size}, {rate} over {whole}: {ends}"
        if len(self.schedule.segments) > 1:
            sizes = " to ".join(str(segment.batch_size) for segment in self.schedule.segments)
            first += f". The schedule raises the batch size, {sizes}: {self.schedule.steps:,} steps"
        return "\n".join([f"For {self.goal_in_words}:", first, *self.reasons])

    @property
    def goal_in_words(self) -> str:
        """What was asked, in part of a sentence: a metric's goal with the loss that stands for it."""
        loss = self.goal.loss if isinstance(self.asked, ReachMetric) and isinstance(self.goal, ReachLoss) else None
        return goal_in_words(self.asked or self.goal, loss=loss, population=self.population)

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons not to trust it, which come first."""
        first = next((k for k, reason in enumerate(self.reasons) if reason.startswith(FIRST_REASON)), 0)
        return self.reasons[:first]

    @property
    def batch_size(self) -> int:
        """Batch size of the best constant plan, in examples."""
        return self.best.batch_size

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the best constant plan."""
        return self.best.learning_rate

    @property
    def horizon(self) -> int:
        """Examples over which the best constant plan warms up, trains and decays."""
        return self.best.horizon

    @property
    def loss(self) -> Estimate:
        """Predicted loss at the end of the best constant plan's schedule."""
        return self.best.loss

    @property
    def steps(self) -> Estimate:
        """Predicted steps of the best constant plan, to the goal's loss or over the whole budget."""
        return self.best.steps

    @property
    def examples(self) -> Estimate:
        """Predicted examples of the best constant plan, likewise."""
        return self.best.examples

    @property
    def seconds(self) -> Estimate | None:
        """Predicted seconds of the best constant plan; None without a measured step cost."""
        return self.best.seconds

    @property
    def cost(self) -> Estimate:
        """Predicted cost of the best constant plan, in the goal's unit."""
        return self.best.cost
