"""What exporters share: where stages begin, what divides, who rescales the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from batchopt._checks import check_count
from batchopt.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one batch size and one learning rate.

    Attributes:
        step: its first step, from 0.
        seen: examples seen when that step begins.
        start_examples: threshold that the schedule states.
        batch_size: examples per step.
        multiplier: of the base learning rate.
    """

    step: int
    seen: int
    start_examples: int
    batch_size: int
    multiplier: float


def stages_of(schedule: Schedule, *, sizes_only: bool = False) -> list[Stage]:
    """The stages in which a step begins; neighbours that are alike are one.

    Args:
        schedule: the schedule.
        sizes_only: count neighbours of one batch size as alike, whatever their learning rates.
    """
    stages: list[Stage] = []
    step = 0
    for segment, seen, steps in schedule.stretches():
        alike = stages and stages[-1].batch_size == segment.batch_size
        if not (alike and (sizes_only or stages[-1].multiplier == segment.learning_rate_multiplier)):
            stages.append(
                Stage(step, seen, segment.start_examples, segment.batch_size, segment.learning_rate_multiplier)
            )
        step += steps
    return stages


def check_divisible(schedule: Schedule, share: int, what: str) -> None:
    """Raise ValueError where a batch size is no multiple of a share."""
    for segment in schedule.segments:
        if segment.batch_size % share:
            raise ValueError(
                f"every batch size must be a multiple of {what} = {share}, "
                f"got {segment.batch_size}: plan with multiple_of={share}"
            )


def share_of(
    schedule: Schedule, micro_batch: int, data_parallel: int, *, what: str = "micro_batch x data_parallel"
) -> int:
    """Examples of one pass over all ranks; ValueError where a batch size is no multiple of it."""
    check_count("micro_batch", micro_batch)
    check_count("data_parallel", data_parallel)
    check_divisible(schedule, micro_batch * data_parallel, what)
    return micro_batch * data_parallel


def first_rate(schedule: Schedule) -> float | None:
    """The learning rate of the first stage; None where the schedule leaves it to the loop."""
    if schedule.learning_rate is None:
        return None
    return schedule.learning_rate * schedule.segments[0].learning_rate_multiplier


def rate_notes(schedule: Schedule, consumer: str, remedy: str) -> list[str]:
    """What becomes of the multipliers in a consumer that does not rescale the learning rate."""
    first, *later = [segment.learning_rate_multiplier for segment in schedule.segments]
    if any(multiplier != first for multiplier in later):
        shown = ", ".join(f"{multiplier / first:.3g}" for multiplier in (first, *later))
        return [f"{consumer} does not rescale the learning rate: the factors {shown} of the stages are lost; {remedy}"]
    if schedule.learning_rate is None and first != 1.0:
        return [f"multiply your own learning rate by {first:.6g}"]
    return []


@dataclass(frozen=True, slots=True)
class Ramp:
    """A batch size that grows by equal increments after equal numbers of examples.

    Attributes:
        start: first batch size.
        increment: of the batch size.
        samples: examples until the last batch size.
        end: last batch size.
    """

    start: int
    increment: int
    samples: int
    end: int

    def batch_size(self, seen: int) -> int:
        """As Megatron counts it: the last size after `samples`, before that an increment for every equal part."""
        if seen > self.samples:
            return self.end
        each = self.samples / ((self.end - self.start) / self.increment)
        return self.start + int(seen / each) * self.increment

    def steps(self, examples: int) -> int:
        """Steps of a run of so many examples."""
        seen = steps = 0
        while seen < examples:
            seen, steps = seen + self.batch_size(seen), steps + 1
        return steps


def ramp_of(schedule: Schedule, consumer: str) -> Ramp | None:
    """The ramp from the first to the last batch size that ends where the last stage begins; None for one size.

    Raises:
        ValueError: a batch size is smaller than the one before.
    """
    stages = stages_of(schedule, sizes_only=True)
    sizes = [stage.batch_size for stage in stages]
    if len(sizes) == 1:
        return None
    for before, after in pairwise(sizes):
        if after < before:
            raise ValueError(
                f"{consumer} knows only batch sizes that grow, got {after} after {before}: "
                "plan without a falling batch size, or export to a consumer of steps"
            )
    increment = math.gcd(*(after - before for before, after in pairwise(sizes)))
    return Ramp(sizes[0], increment, stages[-1].start_examples, sizes[-1])


def ramp_notes(schedule: Schedule, ramp: Ramp) -> list[str]:
    """What a ramp does otherwise than the schedule: how many examples are trained at another batch size, and steps."""
    seen = differ = 0
    while seen < schedule.examples:
        size = ramp.batch_size(seen)
        differ += min(size, schedule.examples - seen) if size != schedule(seen) else 0
        seen += size
    if not differ:
        return []
    return [
        f"a linear ramp is not the schedule: {differ / schedule.examples:.0%} of the examples are trained at another "
        f"batch size, in {ramp.steps(schedule.examples):,} steps instead of {schedule.steps:,}"
    ]


def listed(values: Sequence[object]) -> str:
    """Values with commas between them."""
    return ", ".join(map(str, values))
