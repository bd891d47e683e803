"""What a training gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from batchopt._checks import check_increasing
from batchopt._codec import Record
from batchopt._wording import seconds as time_in_words
from batchopt.errors import NonFiniteLossError
from batchopt.evidence import LossCurve
from batchopt.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Measured(Record):
    """What a training has measured so far.

    Attributes:
        curve: losses at the evaluations.
        clock: wall-clock seconds of the steps up to each evaluation, the evaluations themselves left out.
        evaluation_seconds: wall-clock seconds of all evaluations.
    """

    SCHEMA: ClassVar[str] = "batchopt.training_measured/1"

    curve: LossCurve
    clock: tuple[float, ...]
    evaluation_seconds: float

    def __post_init__(self) -> None:
        if len(self.clock) != len(self.curve.examples):
            raise ValueError(f"one time per evaluation is needed, got {len(self.clock)} of {len(self.curve.examples)}")
        check_increasing("clock", self.clock)

    @property
    def examples(self) -> int:
        """Examples at the last evaluation; -1 before the first."""
        return self.curve.examples[-1] if self.curve.examples else -1

    def after(
        self,
        examples: int,
        loss: float,
        metrics: Mapping[str, float] | None = None,
        *,
        seconds: float,
        evaluation_seconds: float,
    ) -> Measured:
        """With one more evaluation."""
        return Measured(
            curve=self.curve.after(examples, loss, metrics),
            clock=(*self.clock, seconds),
            evaluation_seconds=self.evaluation_seconds + evaluation_seconds,
        )

    def until(self, examples: int) -> Measured:
        """Without the evaluations after a number of examples, whose seconds stay spent."""
        curve = self.curve.until(examples)
        return Measured(curve, self.clock[: len(curve.examples)], self.evaluation_seconds)


NOTHING_YET = Measured(LossCurve((), ()), (), 0.0)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A training that has ended.

    Attributes:
        model: as the last step left it.
        schedule: what was followed, with the learning rate that was used.
        measured: losses and times at the evaluations.
        steps: optimizer steps of the run, those that it went back on left out.
        examples: examples that the run was trained on, likewise.
        seconds: wall-clock seconds of all steps, evaluations left out.
        reached: examples at which the wanted loss was reached; None if it was not, or none was wanted.
        outcome: "reached" (the wanted loss; the run stopped there), "finished" (the schedule's end) or "diverged" (the
            curve holds what was finite).
        resumed_at: examples at which a checkpoint was gone on from; None if the training began here.
        gone_back: examples of decays that missed the loss, and of runs that diverged, which the run went back on.
        steps_gone_back: likewise, in steps.
    """

    model: nn.Module
    schedule: Schedule
    measured: Measured
    steps: int
    examples: int
    seconds: float
    reached: float | None
    outcome: Literal["reached", "finished", "diverged"]
    resumed_at: int | None = None
    gone_back: int = 0
    steps_gone_back: int = 0

    def __str__(self) -> str:
        """What was trained, and to what loss and metrics."""
        found = "".join(f", {name} {values[-1]:.4g}" for name, values in self.curve.metrics.items() if values)
        loss = f": a loss of {self.curve.losses[-1]:.4g}{found} at the end" if self.curve.losses else ""
        return (
            f"Trained on {self.examples:,} examples in {self.steps:,} steps and {time_in_words(self.seconds)} "
            f"({self.outcome}){loss}"
        )

    @property
    def curve(self) -> LossCurve:
        """Losses at the evaluations."""
        return self.measured.curve

    @property
    def evaluation_seconds(self) -> float:
        """Wall-clock seconds of the evaluations."""
        return self.measured.evaluation_seconds

    @property
    def steps_reached(self) -> float | None:
        """Steps at which the wanted loss was reached; None as `reached`."""
        return None if self.reached is None else self.steps_at(self.reached)

    @property
    def seconds_reached(self) -> float | None:
        """Seconds of steps after which the wanted loss was reached; None as `reached`."""
        return None if self.reached is None else self.seconds_at(self.reached)

    def steps_at(self, examples: float) -> float:
        """Steps that the schedule takes to a number of examples."""
        return self.schedule.steps_to(examples)

    def seconds_at(self, examples: float) -> float:
        """Seconds of steps to a number of examples, interpolated between the evaluations.

        Raises:
            ValueError: the run was not as long as that.
        """
        if not 0 <= examples <= self.examples:
            raise ValueError(f"examples must be from 0 to the {self.examples} of the run, got {examples!r}")
        known = [*self.curve.examples, self.examples]
        return float(np.interp(examples, known, [*self.measured.clock, self.seconds]))


class TrainingDivergedError(NonFiniteLossError):
    """The loss of a training became NaN or infinite.

    Attributes:
        result: the training up to there, its outcome "diverged".
    """

    def __init__(self, message: str, result: TrainingResult) -> None:
        super().__init__(message)
        self.result = result
