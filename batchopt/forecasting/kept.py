"""What a study keeps of a forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._codec import Record
from batchopt.forecasting.posterior import LossPosterior
from batchopt.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class KeptForecast(Record):
    """The part of a forecast that a search needs, small enough to be kept in a study.

    Attributes:
        law: of the loss, without what it misses.
        step_cost: measured seconds per step, if known.
        batch_size_limit: largest batch size that fits or was planned for.
        warmup_examples: the task's; None where it has none.
        task_schedule: the task's own learning-rate schedule, a name or multipliers at even progress; None if it has
            none.
    """

    SCHEMA: ClassVar[str] = "batchopt.kept_forecast/1"

    law: LossPosterior
    step_cost: StepCost | None
    batch_size_limit: int
    warmup_examples: int | None
    task_schedule: str | tuple[float, ...] | None
