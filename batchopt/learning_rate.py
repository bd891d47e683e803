"""How the best learning rate depends on the batch size (McCandlish et al. 2018, appendix A.3; eq. 2.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._checks import check_non_negative, check_positive
from batchopt._codec import Record


@dataclass(frozen=True, slots=True)
class LearningRateRule(Record):
    """Best learning rate = largest / (1 + turning_point / B)^alpha.

    A prior, not a law: alpha is 1 for SGD and between 0.5 and 1 for Adam in the paper, 0.16 to 1.7 in later reports.
    Search the learning rate around it.

    Attributes:
        largest: the best rate of an infinitely large batch.
        turning_point: batch size from which on a larger batch hardly allows a larger rate, in examples.
        alpha: exponent; 0 keeps the rate, 1 is linear scaling at small batches, 0.5 the square root.

    Example:
        >>> rule = LearningRateRule(largest=1.0, turning_point=300.0, alpha=1.0)
        >>> rule(300.0)
        0.5
        >>> rule.rescaled(0.5, from_batch=300.0, to_batch=900.0)
        0.75
    """

    SCHEMA: ClassVar[str] = "batchopt.learning_rate/1"

    largest: float
    turning_point: float
    alpha: float

    def __post_init__(self) -> None:
        check_positive("largest", self.largest)
        check_positive("turning_point", self.turning_point)
        check_non_negative("alpha", self.alpha)

    def __call__(self, batch_size: float) -> float:
        """Best learning rate at a batch size."""
        check_positive("batch_size", batch_size)
        return float(self.largest / (1.0 + self.turning_point / batch_size) ** self.alpha)

    def rescaled(self, learning_rate: float, *, from_batch: float, to_batch: float) -> float:
        """A learning rate that is as far from the best at another batch size as it was at this one."""
        check_positive("learning_rate", learning_rate)
        return learning_rate * self(to_batch) / self(from_batch)
