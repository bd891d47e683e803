"""How the learning rate of a study's trials decays, and over which horizon."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from batchopt._codec import Record
from batchopt.forecasting.decayed_law import Ends
from batchopt.forecasting.horizons import schedule_of
from batchopt.learning_rate_schedule import WARMUP, LearningRateSchedule, Shape, ShapeName, multiplier_at
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss

if TYPE_CHECKING:
    from batchopt.step_cost import StepCost

SHORTER, LONGER = 16.0, 8.0
"""Ends are predicted from this part of the shortest horizon to this multiple of the longest: a trial whose pace is so
far from the law's is out of the running."""
POINTS = 65
"""At which a function of progress is kept: lines between them are within 2e-4 of a cosine."""


@dataclass(frozen=True, slots=True)
class Decay(Record):
    """The learning-rate schedule of every trial.

    Attributes:
        schedule: the name of a shape, or multipliers at even progress.
        horizon: of every trial, in examples, or the name of the parameter or user attribute that holds it; None where
            it is the goal's budget.
        warmup_examples: of every trial, 0 for none; None for 5 % of its horizon. Cut to a fifth of shorter horizons.
    """

    SCHEMA: ClassVar[str] = "batchopt.trial_decay/1"

    schedule: str | tuple[float, ...]
    horizon: int | str | None
    warmup_examples: int | None = None

    @property
    def told(self) -> str:
        """What is read, in a sentence."""
        shape = f"by {self.schedule!r}" if isinstance(self.schedule, str) else "by a function of progress"
        over = "the goal's budget" if self.horizon is None else f"the examples that {self.horizon!r} holds"
        if isinstance(self.horizon, int):
            over = f"{self.horizon:,} examples"
        warmup = f"of {WARMUP:.0%} of that" if self.warmup_examples is None else f"of {self.warmup_examples:,} examples"
        rise = "without a warm-up" if self.warmup_examples == 0 else f"after a warm-up {warmup}"
        return f"The learning rate of trials is taken to decay {shape} over {over}, {rise}."

    def over(self, horizon: float) -> LearningRateSchedule:
        """The schedule of a trial of so many examples."""
        return schedule_of(self.ends([horizon]).shape, horizon, self.warmup_examples)

    def ends(self, horizons: Iterable[float]) -> Ends:
        """What is predicted in a study of such horizons."""
        every = sorted(horizons)
        return Ends(self.schedule, self.warmup_examples, (every[0] / SHORTER, every[-1] * LONGER))

    def held_by(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> float | None:
        """The horizon that a trial has, in examples; None where it is the budget, or not there, or no number."""
        if self.horizon is None or isinstance(self.horizon, int):
            return self.horizon
        value = params.get(self.horizon, attributes.get(self.horizon))
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        return None if wrong or not 1 <= value < math.inf else float(value)


def decay_of(
    shape: Shape | tuple[float, ...], horizon: int | str | None, goal: LossGoal, warmup: int | None
) -> Decay | None:
    """The schedule of a study; None where the rate does not decay.

    Raises:
        ValueError: a loss is to be reached, and nothing says over which horizon the rate decays; or there is a horizon
            and no decay.
    """
    schedule = kept_shape(shape)
    if not decays(schedule):
        if horizon is not None:
            raise ValueError(
                f"horizon must be left out where the trials' learning rate does not decay, got {horizon!r}: say how it "
                'decays, learning_rate_schedule="wsd" for example, or leave horizon out'
            )
        return None
    if horizon is None and isinstance(goal, ReachLoss):
        told = schedule if isinstance(schedule, str) else "a function of progress"
        raise ValueError(
            f"horizon must be given where the trials' learning rate decays ({told}) and a loss is to be reached, got "
            "None: give its examples, or the name of the parameter or user attribute that holds them; for trials that "
            'keep their rate, learning_rate_schedule="constant"'
        )
    return Decay(schedule, horizon, warmup)


def decays(shape: Shape | tuple[float, ...]) -> bool:
    """Whether a learning rate of this shape ends below its peak."""
    schedule = kept_shape(shape)
    return schedule != "constant" if isinstance(schedule, str) else schedule[-1] < max(schedule)


def kept_shape(shape: Shape | tuple[float, ...]) -> ShapeName | tuple[float, ...]:
    """A shape as a study keeps it: a function by its values at even progress."""
    if not callable(shape):
        return shape
    return tuple(round(multiplier_at(shape, p), 6) for p in np.linspace(0.0, 1.0, POINTS).tolist())


def is_kept(shape: object) -> bool:
    """Whether a shape is a function's values, as a study keeps them."""
    return (
        isinstance(shape, tuple)
        and len(shape) > 1
        and all(isinstance(value, int | float) and 0 <= value < math.inf for value in shape)
        and any(shape)
    )


def taken_shape(shape: Shape | tuple[float, ...]) -> ShapeName | tuple[float, ...]:
    """A shape as a study takes it: one that does not decay is constant after the warm-up."""
    return kept_shape(shape) if decays(shape) else "constant"


def budget(goal: LowestLoss, price: StepCost, batch_size: float) -> float:
    """Examples of a trial that spends the goal's budget."""
    return max(1.0, math.floor(goal.within / price(batch_size))) * batch_size


def horizons_in(
    decay: Decay,
    held: Iterable[float | None],
    goal: LossGoal,
    price: StepCost | None,
    batch_sizes: Sequence[float],
) -> list[float]:
    """The horizons that a study is about, as far as they are known."""
    if isinstance(decay.horizon, int):
        return [float(decay.horizon)]
    if decay.horizon is None:
        known = isinstance(goal, LowestLoss) and price is not None
        return [budget(goal, price, size) for size in (min(batch_sizes), max(batch_sizes))] if known else []  # type: ignore[arg-type]
    return [horizon for horizon in held if horizon is not None]
