"""Which known shape a learning-rate schedule has, and how it is carried over to a run of another length.

Notation
    w    examples of the warm-up
    D    examples at which the decay ends
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batchopt._checks import check_count
from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName

SAME = 1e-3
"""Multipliers that differ by no more are taken to be the same: lines between the points of a cosine differ by 2e-4."""
WIDEST = 1.0 / 32
"""Between points that are further apart than this share of the decay, lines are no cosine (they differ by 1e-3)."""


@dataclass(frozen=True, slots=True)
class KnownShape:
    """A learning-rate schedule as consumers describe it: it rises linearly from zero, and falls to zero or not at all.

    Attributes:
        name: of the shape after the warm-up.
        warmup_examples: over which the rate rises; 0 for none.
        end_examples: at which the decay ends; the warm-up's end where nothing decays.
        decay_examples: over which the rate falls, up to the end; 0 where nothing decays.
    """

    name: ShapeName
    warmup_examples: int
    end_examples: int
    decay_examples: int

    def schedule(self) -> LearningRateSchedule:
        """The schedule that has this shape."""
        if self.name == "constant":
            points = {0: 0.0} if self.warmup_examples else {}
            points |= {self.warmup_examples: 1.0}
            return LearningRateSchedule(tuple(points), tuple(points.values()))
        return LearningRateSchedule.of(
            self.name,
            examples=self.end_examples,
            warmup_examples=self.warmup_examples,
            cooldown=self.decay_examples / self.end_examples,
        )


def shape_of(schedule: LearningRateSchedule) -> KnownShape | None:
    """The known shape of a schedule; None for any other curve.

    Example:
        >>> shape_of(LearningRateSchedule.of("wsd", examples=1_000, warmup_examples=100))
        KnownShape(name='wsd', warmup_examples=100, end_examples=1000, decay_examples=200)
        >>> shape_of(LearningRateSchedule((0, 10), (1.0, 0.1))) is None
        True
    """
    examples, multipliers = schedule.examples, schedule.multipliers
    warms_up = len(examples) > 1 and multipliers[:2] == (0.0, 1.0)
    after, values = examples[warms_up:], multipliers[warms_up:]
    warmup, end = after[0] if warms_up else 0, after[-1]
    if values[0] != 1.0:
        return None
    if all(value == 1.0 for value in values):
        return KnownShape("constant", warmup, warmup, 0)
    if values[-1] != 0.0:
        return None
    stable = after[max(i for i, value in enumerate(values) if value == 1.0)]
    if all(_near(schedule(n), (end - n) / (end - stable)) for n in after if n >= stable):
        return KnownShape("linear" if stable == warmup else "wsd", warmup, end, end - stable)
    return KnownShape("cosine", warmup, end, end - warmup) if _is_cosine(after, values) else None


def ending_at(schedule: LearningRateSchedule, examples: int, *, before: int) -> LearningRateSchedule:
    """A schedule of a run of `before` examples, for one of `examples`.

    The warm-up, up to the first of the highest points, stays as it is, and what comes after it is stretched to the new
    end. Where the run ends within the warm-up, this is cut off there.

    Example:
        >>> ending_at(LearningRateSchedule.of("linear", examples=100, warmup_examples=20), 180, before=100).examples
        (0, 20, 180)
    """
    check_count("examples", examples)
    check_count("before", before)
    highest = schedule.multipliers.index(max(schedule.multipliers))
    warmup = schedule.examples[highest]
    if examples <= warmup or before <= warmup:
        return _cut(schedule, examples)
    stretch = (examples - warmup) / (before - warmup)
    moved = [n if n <= warmup else warmup + round(stretch * (n - warmup)) for n in schedule.examples]
    points = dict(zip(moved, schedule.multipliers, strict=True))  # of points that fall together the last stays
    points[warmup] = schedule.multipliers[highest]
    return LearningRateSchedule(tuple(points), tuple(points.values()))


def _cut(schedule: LearningRateSchedule, examples: int) -> LearningRateSchedule:
    kept = {n: m for n, m in zip(schedule.examples, schedule.multipliers, strict=True) if n < examples}
    kept[examples] = schedule(examples)
    return LearningRateSchedule(tuple(kept), tuple(kept.values()))


def _is_cosine(after: tuple[int, ...], values: tuple[float, ...]) -> bool:
    """Whether points from the peak to zero lie on half a cosine, close enough to each other to show it."""
    start, length = after[0], after[-1] - after[0]
    # A point of a cosine lies at a whole number of examples, half of one away at most; its slope is pi / 2 at most.
    rounding = math.pi / 4 / length if length > 1.0 / WIDEST else 0.0
    wanted = 0.5 * (1.0 + np.cos(np.pi * (np.array(after) - start) / length))
    dense = np.diff(after).max() <= max(1.0, WIDEST * length)
    return bool(dense and np.max(np.abs(wanted - values)) <= SAME + rounding)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= SAME
