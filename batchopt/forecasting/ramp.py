"""A batch size that rises once during a run, where that is worth it.

Early in a run the noise of small batches is soon forgotten, so a smaller batch there saves examples; late in it a
larger one takes the place of a longer decay. Under a decay little of either is left (published gains are 1 to 15 %), so
a ramp is taken only where its gain is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.horizons import LEAST_STEPS, first_crossing, schedule_of
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_law import Course
from batchopt.forecasting.schedule_points import course_along, edges_of
from batchopt.forecasting.single_run import SingleRun
from batchopt.learning_rate_schedule import LearningRateSchedule, Shape
from batchopt.planning.goal import LossGoal, LowestLoss
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_GAIN = 0.02
"""A ramp that is predicted to save less than this share of the cost is not worth its switch."""
FACTORS = (2, 4)
SHARES = (0.25, 0.5, 0.75)
"""The batch rises by one of these factors after one of these shares of the examples."""
LENGTHS = 2.0 ** np.arange(-0.75, 0.76, 0.25)
"""Horizons that are tried, over that of the constant batch size."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """A run whose batch size rises once.

    Attributes:
        segments: of its schedule.
        horizon: examples of the run.
        schedule: of its learning rate.
        relative_cost: over that of the constant batch size.
    """

    segments: tuple[Segment, ...]
    horizon: int
    schedule: LearningRateSchedule
    relative_cost: float


def cheapest_ramp(
    posterior: LossPosterior,
    shape: Shape,
    best: SingleRun,
    goal: LossGoal,
    price: StepCost,
    batch_sizes: Sequence[int],
    *,
    warmup_examples: int | None,
) -> Ramp | None:
    """The cheapest ramp to the goal's loss; None where none saves enough for certain."""
    if isinstance(goal, LowestLoss):
        return None  # a budget of any price is spent in whole: the gain would have to be one of loss
    ways = [
        way for way in _ways(best.batch_size, batch_sizes)
        if not posterior.is_unstable(way[:2], [best.learning_rate] * 2).any() and best.horizon >= LEAST_STEPS * way[1]
    ]  # fmt: skip
    if not ways:
        return None
    lengths = best.horizon * LENGTHS
    costs = _costs(posterior, shape, best, [(best.batch_size, best.batch_size, 0.5), *ways], lengths, goal.loss, price,
                   warmup_examples)  # fmt: skip
    # A draw in which one of the two does not arrive within the lengths tells nothing for the ramp.
    known = np.isfinite(costs[0]) & np.isfinite(costs[1:])
    gains = np.where(known, np.log(np.where(known, costs[0], 1.0) / np.where(known, costs[1:], 1.0)), 0.0)
    certain = (np.quantile(gains, 0.05, axis=1) > 0.0) & (gains[:, 0] > LEAST_GAIN)
    if not certain.any():
        return None
    mean = np.where(certain, gains.mean(axis=1), -np.inf)
    first, second, share = ways[int(np.argmax(mean))]
    relative = math.exp(-float(mean.max()))
    horizon = _horizon(best, first, second, share, relative, price)
    segments = (Segment(0, first), Segment(round(share * horizon), second))
    return Ramp(segments, horizon, schedule_of(shape, horizon, warmup_examples), relative)


def _ways(size: int, batch_sizes: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """(batch size before, after, share of the examples before)."""
    for factor in FACTORS:
        for share in SHARES:
            if size % factor == 0 and size // factor >= min(batch_sizes):
                yield size // factor, size, share
            if size * factor <= max(batch_sizes):
                yield size, size * factor, share


def _costs(
    posterior: LossPosterior,
    shape: Shape,
    best: SingleRun,
    ways: Sequence[tuple[int, int, float]],
    lengths: Floats,
    loss: float,
    price: StepCost,
    warmup_examples: int | None,
) -> Floats:
    """What each way costs to the loss, (ways, 1 + draws); inf where it is not reached within the lengths."""
    courses = [
        _course(way, best.learning_rate, schedule_of(shape, length, warmup_examples), length, delay=posterior.delay)
        for way in ways
        for length in lengths
    ]
    ends = np.stack([found[:, -1] for found in posterior.losses_along(courses)], axis=1)
    ends = ends.reshape(len(ends), len(ways), len(lengths))
    needed = first_crossing(ends, np.log(lengths), math.log(loss)).T
    per_example = [[share * price(a) / a + (1.0 - share) * price(b) / b] for a, b, share in ways]
    return np.asarray(needed * np.array(per_example))


def _course(
    way: tuple[int, int, float], learning_rate: float, rates: LearningRateSchedule, horizon: float, *, delay: float
) -> Course:
    first, second, share = way
    end = max(rates.examples[-1], math.ceil(horizon))
    schedule = Schedule((Segment(0, first), Segment(max(1, round(share * horizon)), second)), end, None, rates)
    edges = edges_of(1.0, rates, np.array([float(schedule.segments[1].start_examples), horizon]))
    return course_along(schedule, learning_rate, edges, delay=delay)


def _horizon(best: SingleRun, first: int, second: int, share: float, relative: float, price: StepCost) -> int:
    """Examples that cost `relative` of the constant run, by whole batches."""
    per_example = share * price(first) / first + (1.0 - share) * price(second) / second
    examples = relative * best.horizon * price(best.batch_size) / best.batch_size / per_example
    return max(LEAST_STEPS, math.ceil(examples / second)) * second
