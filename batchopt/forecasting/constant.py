"""What a search starts from: the law of constant learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._codec import Record
from batchopt.forecasting.law import LawPosterior
from batchopt.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class ConstantForecast(Record):
    """The part of a forecast that a search needs, small enough to be kept in a study.

    Attributes:
        law: of constant learning rates.
        step_cost: measured seconds per step, if known.
        batch_size_limit: largest batch size that fits or was planned for.
    """

    SCHEMA: ClassVar[str] = "batchopt.constant_forecast/1"

    law: LawPosterior
    step_cost: StepCost | None
    batch_size_limit: int
