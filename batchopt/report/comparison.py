"""A prediction beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._checks import check_non_negative
from batchopt._codec import Record
from batchopt.uncertainty import Estimate


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """A predicted quantity and its measurement.

    Attributes:
        name: the quantity ("steps", "examples", "seconds").
        predicted: the prediction with its 90 % interval.
        measured: what the run took.

    Example:
        >>> steps = Comparison("steps", Estimate(800.0, 600.0, 1100.0, resolved=True), measured=1000.0)
        >>> steps.error_ratio, steps.inside
        (1.25, True)
    """

    SCHEMA: ClassVar[str] = "batchopt.comparison/1"

    name: str
    predicted: Estimate
    measured: float

    def __post_init__(self) -> None:
        check_non_negative("measured", self.measured)
        if self.predicted.value <= 0:
            raise ValueError(f"predicted must be a positive quantity, got {self.predicted.value!r}")

    @property
    def error_ratio(self) -> float:
        """Measured over predicted: 1 is a perfect prediction, 2 took twice what was said."""
        return self.measured / self.predicted.value

    @property
    def inside(self) -> bool:
        """Whether the measurement lies in the 90 % interval."""
        return self.predicted.low <= self.measured <= self.predicted.high
