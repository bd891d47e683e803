"""Losses at the ends of runs over a grid of batch sizes, peak learning rates and horizons, and what they say of a goal.

A loss is reached at the end of a decay, so the examples to it are the horizon of the run that ends there. Under a
constant rate the end is any point of the run, and the same holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.posterior import LossPosterior
from batchopt.learning_rate_schedule import WARMUP, LearningRateSchedule, Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LOWER_OCTAVES, HIGHER_OCTAVES = 2.0, 1.0
"""Peak rates are considered so far below and above those that were run (over the root of the batch)."""
RATE_STEP = 0.5
"""Octaves between them: at the best rate a loss is flat over more than that."""
LEAST_STEPS = 16
"""Of a run: a decay of fewer than three steps is mostly rounding."""
SHORTER, LONGER = 128.0, 1024.0
"""Horizons are considered from this share of the longest run up to this multiple of it. The longest run of a
probe of a tenth of a training is a seventieth of that: of 30 such probes 94 of 164 plans were refused with 64, and 74
with 1,024."""
LONGEST_WARMUP = 5
"""A warm-up takes one of so many parts of a run at most, so that every shape has room for its stable part and decay."""
FINE_RATIO = 2.0**0.25
"""Neighbouring horizons where one setting is looked at."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Losses at the ends of runs.

    Attributes:
        batch_sizes: (b,).
        learning_rates: peak rates of each batch size, (b, r).
        horizons: examples, rising, (h,).
        log_losses: (1 + draws, b, r, h); inf where a run diverges or takes too few steps.
    """

    batch_sizes: Floats
    learning_rates: Floats
    horizons: Floats
    log_losses: Floats

    def examples_to(self, loss: float) -> Floats:
        """The shortest horizon at whose end the loss is reached, interpolated, (1 + draws, b, r); inf where none is."""
        return first_crossing(self.log_losses, np.log(self.horizons), math.log(loss))

    def is_reached_at_once(self, loss: float) -> NDArray[np.bool_]:
        """Whether the shortest run that is considered ends at the loss, so that how much less it takes is not known."""
        below = self.log_losses <= math.log(loss)
        first = np.argmax(np.isfinite(self.log_losses), axis=-1)[..., None]
        return np.asarray(np.take_along_axis(below, first, axis=-1)[..., 0])


def first_crossing(log_losses: Floats, log_examples: Floats, target: float) -> Floats:
    """Examples at which curves first fall to a log loss, interpolated between points; inf where they don't.

    Args:
        log_losses: (..., h).
        log_examples: rising, (h,).
        target: log loss.
    """
    below = log_losses <= target
    first = np.argmax(below, axis=-1)[..., None]
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(log_losses, at, axis=-1)[..., 0] for at in (first, before))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(first[..., 0] > 0, (high - target) / np.maximum(high - low, 1e-12), 1.0)
    # Before the first horizon at which the run is a run at all there is nothing to interpolate with.
    part = np.where(np.isfinite(high), np.clip(part, 0.0, 1.0), 1.0)
    at = log_examples[before[..., 0]] + part * (log_examples[first[..., 0]] - log_examples[before[..., 0]])
    return np.where(below.any(axis=-1), np.exp(at), np.inf)


def rates_for(posterior: LossPosterior, batch_sizes: Sequence[float] | Floats) -> Floats:
    """Peak rates to consider for each batch size, rising, (b, r)."""
    low, high = (math.log2(rate) for rate in posterior.learning_rates)
    octaves = np.arange(low - LOWER_OCTAVES, high + HIGHER_OCTAVES + 0.5 * RATE_STEP, RATE_STEP)
    return np.asarray(np.sqrt(np.asarray(batch_sizes, float))[:, None] * np.exp2(octaves))


def horizons_for(posterior: LossPosterior) -> Floats:
    """Horizons to consider, a factor of two apart, (h,)."""
    low, high = posterior.longest / SHORTER, posterior.longest * LONGER
    return np.asarray(low * 2.0 ** np.arange(1 + round(math.log2(high / low))))


def ends_of(
    posterior: LossPosterior,
    shape: Shape,
    batch_sizes: Sequence[float] | Floats,
    learning_rates: Floats,
    horizons: Floats,
    *,
    warmup_examples: int | None = None,
) -> Ends:
    """Losses at the ends of runs of one shape.

    Args:
        posterior: what is believed.
        shape: of the learning-rate schedule.
        batch_sizes: (b,).
        learning_rates: peak rates, (b, r).
        horizons: (h,).
        warmup_examples: of every run; None for a share of its horizon.
    """
    sizes, rates = np.asarray(batch_sizes, float), np.asarray(learning_rates, float)
    found = np.full((1 + posterior.draws, *rates.shape, len(horizons)), np.inf)
    schedules = [schedule_of(shape, horizon, warmup_examples) for horizon in horizons]
    flat = np.repeat(sizes, rates.shape[1]), rates.ravel()
    hopeless = np.all(posterior.is_unstable(*flat), axis=0, keepdims=True).reshape(rates.shape)
    wanted = [
        (i, j, k)
        for i, size in enumerate(sizes)
        for j in range(rates.shape[1])
        for k, horizon in enumerate(horizons)
        if horizon >= LEAST_STEPS * size and not hopeless[i, j]
    ]
    if wanted:
        i, j, k = np.array(wanted).T
        found[:, i, j, k] = posterior.losses_at_end(
            sizes[i], rates[i, j], [schedules[each] for each in k], np.asarray(horizons)[k]
        )
    return Ends(sizes, rates, np.asarray(horizons, float), found)


def schedule_of(shape: Shape, examples: float, warmup_examples: int | None) -> LearningRateSchedule:
    """The schedule of a run, whose warm-up is cut to a fifth of it where it would be longer."""
    horizon = max(2, round(examples))
    warmup = warmup_within(horizon, warmup_examples)
    return LearningRateSchedule.of(shape, examples=horizon, warmup_examples=warmup)


def warmup_within(horizon: int, warmup_examples: int | None) -> int:
    """Examples over which a run of so many warms up: a share of it, or as asked for, but at most a fifth."""
    return round(WARMUP * horizon) if warmup_examples is None else min(warmup_examples, horizon // LONGEST_WARMUP)
