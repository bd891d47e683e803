"""Learning-rate schedules: which share of the peak rate a run takes, over the examples that it has seen.

Shapes, over the progress p of a run of known horizon, after a warm-up that rises linearly from zero:
    constant    1
    linear      falls to zero
    cosine      (1 + cos(pi p)) / 2
    wsd         warm-up, stable, decay: 1, then linear to zero over the last fifth of the horizon
    f           a function of p, with the warm-up multiplied on

Two things go by the name of learning_rate_schedule. What tasks, forecasts and plans are given, and what a plan says
that it chose, is a *shape*: one of these names or functions, whatever the length of the run. What a `Schedule` and a
run of a probe hold is a `LearningRateSchedule`: a shape made for one run, with its warm-up, as points over examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from batchopt._checks import check_count, check_increasing, check_non_negative
from batchopt._codec import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ShapeName = Literal["constant", "linear", "cosine", "wsd"]
Shape = ShapeName | Callable[[float], float]
SHAPES: tuple[ShapeName, ...] = ("constant", "linear", "cosine", "wsd")
WARMUP = 0.05
"""Share of its horizon over which a run warms up where the task says nothing: as long as is usual, and the loss at the
end hardly depends on it."""
COOLDOWN = 0.2
"""Share of the horizon over which a wsd rate falls: between 10 and 20 % nothing is lost (Hägele et al. 2024)."""
COSINE_POINTS = 65
"""Points of a cosine: lines between them are within 2e-4 of it."""
PEAK = 1.5
"""A function of progress whose largest value is further than this factor from 1 gives something else than shares."""
FUNCTION_POINTS = 257
"""Points at which a function of progress is read."""


@dataclass(frozen=True, slots=True)
class LearningRateSchedule(Record):
    """Multiplier of the peak learning rate over examples seen: linear between points, held before and beyond them.

    A step takes the multiplier in the middle of its examples.

    Attributes:
        examples: of the points, rising, from 0.
        multipliers: at the points, zero or more, and above zero at one of them at least.

    Example:
        >>> schedule = LearningRateSchedule.of("wsd", examples=1_000, warmup_examples=100)
        >>> schedule.examples, schedule.multipliers
        ((0, 100, 800, 1000), (0.0, 1.0, 1.0, 0.0))
        >>> schedule(900), schedule.mean(800, 1_000)
        (0.5, 0.5)
    """

    SCHEMA: ClassVar[str] = "batchopt.learning_rate_schedule/1"

    examples: tuple[int, ...]
    multipliers: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.multipliers) or not self.examples:
            raise ValueError(
                f"a learning-rate schedule needs as many multipliers as examples and one at least, got "
                f"{len(self.multipliers)} and {len(self.examples)}"
            )
        check_increasing("a learning-rate schedule's examples", self.examples)
        if self.examples[0] != 0:
            raise ValueError(f"a learning-rate schedule must begin at 0 examples, got {self.examples[0]}")
        for multiplier in self.multipliers:
            check_non_negative("every learning-rate multiplier", multiplier)
        if not any(self.multipliers):
            raise ValueError("a learning-rate schedule must be above zero somewhere, got zero at every point")

    @classmethod
    def of(
        cls, shape: Shape, *, examples: int, warmup_examples: int = 0, cooldown: float = COOLDOWN
    ) -> LearningRateSchedule:
        """The schedule of a run.

        Args:
            shape: "constant", "linear", "cosine", "wsd", or a function from progress (0 to 1) to a multiplier.
            examples: the horizon, examples of the whole run.
            warmup_examples: over which the rate rises.
            cooldown: share of the horizon over which a wsd rate falls.

        Raises:
            ValueError: an unknown name; a horizon that ends before the decay can begin; a function that gives what is
                no multiplier, or zero everywhere.
            TypeError: the function is none of progress alone.
        """
        check_count("examples", examples)
        check_count("warmup_examples", warmup_examples, least=0)
        check_shape(shape)
        if shape == "wsd" and not 0.0 < cooldown <= 1.0:
            raise ValueError(f"cooldown must be a share of the horizon, above 0 and at most 1, got {cooldown!r}")
        stable_end = round((1.0 - cooldown) * examples) if shape == "wsd" else examples
        if warmup_examples >= stable_end and warmup_examples:
            raise ValueError(
                f"the warm-up must end before the rate decays, got {warmup_examples} examples of warm-up in a run of "
                f"{examples}: warm up over fewer, or train longer"
            )
        if callable(shape):
            return cls._of_function(shape, examples, warmup_examples)
        if shape == "cosine":
            after = np.linspace(0.0, 1.0, min(COSINE_POINTS, 1 + examples - warmup_examples))
            falls = {
                warmup_examples + round(p * (examples - warmup_examples)): 0.5 * (1.0 + math.cos(math.pi * p))
                for p in after.tolist()
            }
        else:
            falls = {warmup_examples: 1.0, stable_end: 1.0, examples: 0.0}
            if shape == "linear":
                falls = {warmup_examples: 1.0, examples: 0.0}
            elif shape == "constant":
                falls = {warmup_examples: 1.0}
        points = ({0: 0.0} if warmup_examples else {}) | falls
        return cls(tuple(points), tuple(points.values()))

    @classmethod
    def _of_function(cls, shape: Callable[[float], float], examples: int, warmup: int) -> LearningRateSchedule:
        at = sorted({0, warmup, *np.linspace(0, examples, FUNCTION_POINTS).round().astype(int).tolist()})
        ramps = [min(1.0, n / warmup) if warmup else 1.0 for n in at]
        values = [multiplier_at(shape, n / examples) for n in at]
        if any(values) and not 1.0 / PEAK <= max(values) <= PEAK:
            raise ValueError(
                f"learning_rate_schedule must give the share of the peak rate, at most 1, and its largest value is "
                f"{max(values):.4g}: divide it by that"
            )
        return cls(tuple(at), tuple(ramp * value for ramp, value in zip(ramps, values, strict=True)))

    @property
    def warmup_examples(self) -> int:
        """Over which the rate rises from zero at first; 0 where it does not."""
        if self.multipliers[0] > 0.0:
            return 0
        pairs = zip(self.examples, self.multipliers, self.multipliers[1:], strict=False)
        return next((n for n, here, coming in pairs if coming <= here), self.examples[-1])

    @property
    def decays(self) -> bool:
        """Whether the rate ends below its peak."""
        return self.multipliers[-1] < max(self.multipliers)

    def __call__(self, examples: float) -> float:
        """The multiplier after so many examples."""
        return float(np.interp(examples, self.examples, self.multipliers))

    def mean(self, begin: float, end: float) -> float:
        """The mean multiplier between two numbers of examples."""
        return float(self.means(np.array([begin, end], dtype=np.float64))[0])

    def means(self, edges: Floats) -> Floats:
        """Mean multipliers between neighbouring numbers of examples, rising, (k + 1,): (k,)."""
        at = np.asarray(edges, dtype=np.float64)
        areas = self._areas(at)
        return np.asarray((areas[1:] - areas[:-1]) / (at[1:] - at[:-1]))

    def _areas(self, until: Floats) -> Floats:
        """The integral from 0 examples on."""
        at, values, total = _integral_of(self.examples, self.multipliers)
        left = np.maximum(at.searchsorted(until, side="right") - 1, 0)
        here = np.interp(until, at, values)
        return np.asarray(total[left] + 0.5 * (until - at[left]) * (values[left] + here))


@lru_cache(maxsize=256)
def _integral_of(examples: tuple[int, ...], multipliers: tuple[float, ...]) -> tuple[Floats, Floats, Floats]:
    """Points, multipliers and the integral up to each point; a plan asks for those of one schedule many times."""
    at, values = np.array(examples, dtype=np.float64), np.array(multipliers, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(0.5 * np.diff(at) * (values[1:] + values[:-1]))])
    return at, values, total


def check_shape(shape: object, *, name: str = "learning_rate_schedule") -> None:
    """Raise unless it is the name of a shape, or a function.

    Raises:
        ValueError: an unknown name.
        TypeError: the schedule of one run, which is called with examples and not with progress.
    """
    if isinstance(shape, LearningRateSchedule):
        names = ", ".join(map(repr, SHAPES))
        raise TypeError(
            f"{name} must be one of {names}, or a function of progress from 0 to 1, got a LearningRateSchedule, which "
            "is of one run's examples: name the shape that it was made of"
        )
    if not callable(shape) and shape not in SHAPES:
        names = ", ".join(map(repr, SHAPES))
        raise ValueError(f"{name} must be one of {names}, or a function of progress from 0 to 1, got {shape!r}")


@lru_cache(maxsize=8)
def function_of(multipliers: tuple[float, ...]) -> Callable[[float], float]:
    """The function of progress with given values at even progress; the same function for the same values."""
    at = np.linspace(0.0, 1.0, len(multipliers))
    return lambda progress: float(np.interp(progress, at, multipliers))


def multiplier_at(shape: Callable[[float], float], progress: float) -> float:
    """What a function of progress gives, checked.

    Raises:
        TypeError: it can't be called with progress alone, or gives no number.
        ValueError: it gives what is negative or not finite.
    """
    rule = "learning_rate_schedule must be a function of progress (0 to 1) that gives zero or more"
    try:
        value = shape(progress)
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{rule}, and at progress {progress:g} it failed: {error}") from error
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{rule}, got {number!r} at progress {progress:g}")
    return number
