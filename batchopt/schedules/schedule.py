"""A schedule: batch size, piecewise constant over examples seen, and learning rate.

The batch size of a step is the one in force at the number of examples seen when the step begins, so a switch happens
at the first step that begins at or after the segment's start; the last step takes what is left. The learning rate of a
step is the peak, times the multiplier of that segment, times warm-up and decay in the middle of the step's examples.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from batchopt._checks import check_count, check_increasing, check_non_negative, check_positive
from batchopt._codec import Record, Upgrade
from batchopt.errors import RecordError
from batchopt.learning_rate_schedule import LearningRateSchedule


@dataclass(frozen=True, slots=True)
class Segment(Record):
    """From `start_examples` on: steps of `batch_size` examples, the base learning rate times the multiplier."""

    SCHEMA: ClassVar[str] = "batchopt.segment/1"

    start_examples: int
    batch_size: int
    learning_rate_multiplier: float = 1.0

    def __post_init__(self) -> None:
        check_count("start_examples", self.start_examples, least=0)
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate_multiplier", self.learning_rate_multiplier)


def _of_first_version(fields: dict[str, Any]) -> dict[str, Any]:
    """The keys of a batchopt.schedule/1, which left warm-up and decay to the training."""
    if "learning_rate_schedule" in fields:
        raise RecordError("batchopt.schedule/1 has no learning_rate_schedule: write batchopt.schedule/2")
    return fields


@dataclass(frozen=True, slots=True)
class Schedule(Record):
    """Batch size and learning rate over a run of `examples` examples.

    `load` reads the file of a schedule, and the schedule in the file of a plan.

    Attributes:
        segments: rising in `start_examples`, the first at 0.
        examples: examples of the whole run.
        learning_rate: peak learning rate that the multipliers apply to; None leaves it to the user's own loop.
        learning_rate_schedule: warm-up and decay, multiplied with the segments' multipliers; None leaves them to the
            task or the user's own loop. Its last point lies within the run.

    Example:
        >>> schedule = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)
        >>> schedule(0), schedule(10_048), schedule.steps
        (64, 128, 743)
        >>> falling = LearningRateSchedule.of("linear", examples=200, warmup_examples=100)
        >>> schedule = Schedule((Segment(0, 50), Segment(100, 20, 1.5)), examples=200, learning_rate_schedule=falling)
        >>> [round(schedule.multiplier_of(seen, size), 3) for seen, size in schedule.batches()][:4]
        [0.25, 0.75, 1.35, 1.05]
    """

    SCHEMA: ClassVar[str] = "batchopt.schedule/2"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.schedule/1": _of_first_version}
    REMEDY_OF_OTHER: ClassVar[Mapping[str, str]] = {
        "batchopt.plan": "it is a plan: take batchopt.Plan.load(path).schedule"
    }
    HELD_BY: ClassVar[Mapping[str, str]] = {f"batchopt.plan/{version}": "schedule" for version in (2, 3, 4)}

    segments: tuple[Segment, ...]
    examples: int
    learning_rate: float | None = None
    learning_rate_schedule: LearningRateSchedule | None = None

    def __post_init__(self) -> None:
        check_count("examples", self.examples)
        if not self.segments or self.segments[0].start_examples != 0:
            raise ValueError("the first segment must start at 0 examples")
        starts = [segment.start_examples for segment in self.segments]
        check_increasing("segments' start_examples", starts)
        if starts[-1] >= self.examples:
            raise ValueError(
                f"every segment must start before the run ends, got {starts[-1]} of {self.examples} examples"
            )
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        rates = self.learning_rate_schedule
        if not isinstance(rates, LearningRateSchedule | None):
            raise TypeError(
                f"learning_rate_schedule must be a batchopt.LearningRateSchedule, got {rates!r}: make it for this run, "
                f"LearningRateSchedule.of(shape, examples={self.examples})"
            )
        if rates is not None and rates.examples[-1] > self.examples:
            raise ValueError(
                f"a learning-rate schedule must end within the run, got its last point at {rates.examples[-1]} of "
                f"{self.examples} examples: make it for this run, LearningRateSchedule.of(shape, "
                f"examples={self.examples}), or train longer"
            )

    @classmethod
    def constant(
        cls,
        batch_size: int,
        *,
        examples: int,
        learning_rate: float | None = None,
        learning_rate_schedule: LearningRateSchedule | None = None,
    ) -> Schedule:
        """One batch size for the whole run."""
        return cls((Segment(0, batch_size),), examples, learning_rate, learning_rate_schedule)

    def __call__(self, examples_seen: int) -> int:
        """Batch size of the step that begins at `examples_seen`, before the end of the run cuts it."""
        return self.segment_at(examples_seen).batch_size

    def segment_at(self, examples_seen: int) -> Segment:
        """The segment in force at `examples_seen`."""
        check_count("examples_seen", examples_seen, least=0)
        return self.segments[bisect_right(self.segments, examples_seen, key=lambda segment: segment.start_examples) - 1]

    def multiplier_of(self, examples_seen: int, batch_size: int) -> float:
        """What the peak learning rate is multiplied with, in a step of `batch_size` that begins at `examples_seen`."""
        multiplier = self.segment_at(examples_seen).learning_rate_multiplier
        if self.learning_rate_schedule is None:
            return multiplier
        return multiplier * self.learning_rate_schedule(examples_seen + 0.5 * batch_size)

    def batches(self, start_examples: int = 0) -> Iterator[tuple[int, int]]:
        """(examples seen, batch size) of every step from `start_examples` to the end of the run."""
        seen = start_examples
        while seen < self.examples:
            size = min(self(seen), self.examples - seen)
            yield seen, size
            seen += size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(steps for _, _, steps in self.stretches())

    def steps_to(self, examples: float) -> float:
        """Steps that the run takes to a number of examples, in parts of a step where it falls within one.

        Example:
            >>> Schedule((Segment(0, 10), Segment(95, 40)), examples=200).steps_to(120)
            10.5
        """
        check_non_negative("examples", examples)
        if examples > self.examples:
            raise ValueError(f"examples must be at most the schedule's {self.examples}, got {examples!r}")
        before = 0
        for segment, seen, steps in self.stretches():
            size = segment.batch_size
            if examples <= seen + steps * size:
                whole = min(int((examples - seen) // size), steps - 1)
                begin = seen + whole * size
                return before + whole + (examples - begin) / min(size, self.examples - begin)
            before += steps
        return float(before)

    def stretches(self) -> Iterator[tuple[Segment, int, int]]:
        """(segment, examples seen, steps) of each segment in which a step begins."""
        seen = 0
        ends = [segment.start_examples for segment in self.segments[1:]] + [self.examples]
        for segment, end in zip(self.segments, ends, strict=True):
            if seen < end:
                steps = -(-(end - seen) // segment.batch_size)
                yield segment, seen, steps
                seen += steps * segment.batch_size


def check_schedule(schedule: object, *others: type) -> None:
    """Raise TypeError unless it is a `Schedule`, or one of `others` where these are followed as well."""
    if isinstance(schedule, (Schedule, *others)):
        return
    remedy = ""
    if isinstance(schedule, str | os.PathLike):
        remedy = ": load it with batchopt.Schedule.load(path)"
    elif isinstance(getattr(schedule, "schedule", None), Schedule):
        remedy = ": give its .schedule"
    kinds = " or a ".join(f"batchopt.{kind.__name__}" for kind in (Schedule, *others))
    raise TypeError(f"schedule must be a {kinds}, got {type(schedule).__name__}{remedy}")
