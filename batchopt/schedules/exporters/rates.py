"""What exporters share about warm-up and decay: the shapes that a consumer knows, its units, and points for a loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName
from batchopt.schedules.schedule import Schedule
from batchopt.schedules.shapes import KnownShape, shape_of

TOLD = 0.005
"""A curve over steps is told to be another where it is further than this share of the peak from the schedule's."""
READINGS = 129
"""Of a curve in each stretch of one batch size, where it is compared."""


def known_shape(schedule: Schedule, consumer: str, kinds: tuple[ShapeName, ...]) -> KnownShape | None:
    """The shape of a schedule's warm-up and decay; None where it leaves them to the training.

    Raises:
        ValueError: the consumer has no such shape.
    """
    if schedule.learning_rate_schedule is None:
        return None
    shape = shape_of(schedule.learning_rate_schedule)
    if shape is None or shape.name not in kinds:
        got = "another curve" if shape is None else f"{shape.name!r}"
        raise ValueError(
            f"{consumer} knows the learning rates {', '.join(map(repr, kinds))}, with a linear warm-up from zero, got "
            f"{got}: make learning_rate_schedule of one of them, or leave it out and give {consumer} your own"
        )
    return shape


def check_ends_with_run(shape: KnownShape, schedule: Schedule, consumer: str) -> None:
    """Raise ValueError where a decay ends before the run does."""
    if shape.name != "constant" and shape.end_examples != schedule.examples:
        raise ValueError(
            f"{consumer}'s decay ends with the run, got one that ends at {shape.end_examples} of {schedule.examples} "
            "examples: end the run there"
        )


def in_steps(shape: KnownShape, schedule: Schedule) -> KnownShape:
    """A shape whose lengths are whole steps of the schedule, in place of examples."""
    warmup = _steps_to(schedule, shape.warmup_examples)
    if shape.name == "constant":
        return KnownShape("constant", warmup, warmup, 0)
    end = max(warmup + 1, _steps_to(schedule, shape.end_examples))
    if shape.name != "wsd":
        return KnownShape(shape.name, warmup, end, end - warmup)
    stable = min(_steps_to(schedule, shape.end_examples - shape.decay_examples), end - 1)
    return KnownShape("wsd" if stable > warmup else "linear", warmup, end, end - max(stable, warmup))


def step_notes(schedule: Schedule, steps: KnownShape, consumer: str) -> list[str]:
    """How far a consumer that counts steps is from the schedule, where batch sizes change."""
    own = schedule.learning_rate_schedule
    if own is None:
        return []
    theirs, step, gap = steps.schedule(), 0, 0.0
    for segment, seen, count in schedule.stretches():
        for share in np.linspace(0.0, 1.0, READINGS).tolist():
            gap = max(gap, abs(own(seen + share * count * segment.batch_size) - theirs(step + share * count)))
        step += count
    if gap <= TOLD or len({segment.batch_size for segment in schedule.segments}) == 1:
        return []
    return [
        f"{consumer} counts warm-up and decay in steps: since the batch size changes, its rate is up to {gap:.1%} of "
        "the peak from the schedule's"
    ]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps in which examples grow evenly, at one multiplier of a segment."""

    examples: tuple[float, float]
    steps: tuple[int, int]
    multiplier: float


def stretches_of(schedule: Schedule) -> list[Stretch]:
    """The stretches of a schedule; its last step, where that is cut short, is one of its own."""
    found, step = [], 0
    for segment, seen, count in schedule.stretches():
        size, multiplier = segment.batch_size, segment.learning_rate_multiplier
        whole = min(count, (schedule.examples - seen) // size)
        if whole:
            found.append(Stretch((seen, seen + whole * size), (step, step + whole), multiplier))
        if whole < count:
            found.append(Stretch((seen + whole * size, schedule.examples), (step + whole, step + count), multiplier))
        step += count
    return found


def rate_points(rates: LearningRateSchedule, stretches: Iterable[Stretch]) -> list[tuple[float, float]]:
    """(step, share of the first stage's peak rate), straight lines between: to be read in the middle of a step."""
    points: list[tuple[float, float]] = []
    first = None
    for stretch in stretches:
        first = stretch.multiplier if first is None else first
        begin, end = stretch.examples
        within = [begin, *(n for n in rates.examples if begin < n < end), end]
        for n in within:
            step = float(np.interp(n, stretch.examples, stretch.steps))
            point = (round(step, 3), round(stretch.multiplier / first * rates(n), 6))
            if not points or point != points[-1]:
                points.append(point)
    return points


RATE_FUNCTION = """\
LEARNING_RATES = {points}  # (step, share of lr), straight lines between

def learning_rate_multiplier_at(step):
    middle = step + 0.5
    left, right = [pair for pair in zip(LEARNING_RATES, LEARNING_RATES[1:]) if pair[0][0] <= middle][-1]
    share = min(1.0, (middle - left[0]) / (right[0] - left[0]))
    return left[1] + share * (right[1] - left[1])
"""


def rate_function(points: list[tuple[float, float]]) -> str:
    """Python: the function of the step that `rate_points` describe."""
    return RATE_FUNCTION.format(points=points)


def _steps_to(schedule: Schedule, examples: int) -> int:
    return round(schedule.steps_to(examples))
