"""What a training step costs at each batch size.

Notation
    a    cost per step that does not depend on the batch
    b    cost per example
    t(B) = a + b B + sum_i k_i max(0, B - K_i): a knee K_i is a batch size from which an example costs k_i more
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchopt._checks import check_count, check_finite, check_increasing, check_non_negative
from batchopt._codec import Record


@dataclass(frozen=True, slots=True)
class Knee(Record):
    """From `batch_size` on, every further example of a step costs `per_example` more (less, if negative)."""

    SCHEMA: ClassVar[str] = "batchopt.knee/1"

    batch_size: float
    per_example: float

    def __post_init__(self) -> None:
        check_non_negative("batch_size", self.batch_size)
        check_finite("per_example", self.per_example)


@dataclass(frozen=True, slots=True)
class StepCost(Record):
    """The cost of a training step as a function of its batch size.

    Attributes:
        per_step: cost of a step whatever its batch size, in `unit`.
        per_example: further cost of each example, in `unit`.
        knees: batch sizes at which the cost per example changes, rising.
        largest_batch_size: largest batch that fits in memory; None where it was not looked for.
        unit: what the cost is counted in ("seconds" when measured).

    Example:
        >>> cost = StepCost(per_step=64.0, per_example=1.0, unit="examples' time")
        >>> cost(64), cost.of_run(batch_size=64, steps=10)
        (128.0, 1280.0)
    """

    SCHEMA: ClassVar[str] = "batchopt.step_cost/1"

    per_step: float
    per_example: float
    knees: tuple[Knee, ...] = ()
    largest_batch_size: int | None = None
    unit: str = "seconds"

    def __post_init__(self) -> None:
        check_non_negative("per_step", self.per_step)
        check_non_negative("per_example", self.per_example)
        if self.per_step + self.per_example <= 0:
            raise ValueError("per_step and per_example must not both be zero: then every batch size costs the same")
        check_increasing("knees' batch sizes", [knee.batch_size for knee in self.knees])
        if self.largest_batch_size is not None:
            check_count("largest_batch_size", self.largest_batch_size)

    def __call__(self, batch_size: float) -> float:
        """Cost of one step at `batch_size`, in `unit`."""
        extra = sum(knee.per_example * max(0.0, batch_size - knee.batch_size) for knee in self.knees)
        return self.per_step + self.per_example * batch_size + extra

    def of_run(self, *, batch_size: float, steps: float) -> float:
        """Cost of `steps` steps at `batch_size`, in `unit`."""
        return steps * self(batch_size)
