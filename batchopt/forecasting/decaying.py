"""What a search starts from where the learning rate of its trials decays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._codec import Record
from batchopt.forecasting.posterior import LossPosterior
from batchopt.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class DecayingForecast(Record):
    """The part of a forecast that such a search needs, small enough to be kept in a study.

    Attributes:
        law: of the loss, without what it misses.
        step_cost: measured seconds per step, if known.
    """

    SCHEMA: ClassVar[str] = "batchopt.decaying_forecast/3"

    law: LossPosterior
    step_cost: StepCost | None
