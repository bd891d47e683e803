"""What a training step costs at each batch size.

Notation
    a    cost per step that does not depend on the batch
    b    cost per example
    t(B) = a + b B + sum_i k_i max(0, B - K_i): a knee K_i is a batch size from which an example costs k_i more
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchopt._checks import check_count, check_finite, check_increasing, check_non_negative
from batchopt._codec import Record, Upgrade, gained
from batchopt._wording import number
from batchopt._wording import seconds as time_in_words
from batchopt.uncertainty import Estimate, t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


LARGEST_SOUGHT = 2**30
"""Where examples cost nothing, no batch is too large; the search for the largest ends here."""


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
        scatter: factor, at least 1, by which a cost may come out higher or lower, at 90 %: of measured seconds, by how
            much other timings on the same machine differed.

    Example:
        >>> cost = StepCost(per_step=64.0, per_example=1.0, unit="examples' time")
        >>> cost(64), cost.of_run(batch_size=64, steps=10)
        (128.0, 1280.0)
    """

    SCHEMA: ClassVar[str] = "batchopt.step_cost/2"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.step_cost/1": gained("scatter")}

    per_step: float
    per_example: float
    knees: tuple[Knee, ...] = ()
    largest_batch_size: int | None = None
    unit: str = "seconds"
    scatter: float = 1.0

    def __post_init__(self) -> None:
        check_non_negative("per_step", self.per_step)
        check_non_negative("per_example", self.per_example)
        if self.per_step + self.per_example <= 0:
            raise ValueError("per_step and per_example must not both be zero: then every batch size costs the same")
        check_increasing("knees' batch sizes", [knee.batch_size for knee in self.knees])
        if self.largest_batch_size is not None:
            check_count("largest_batch_size", self.largest_batch_size)
        if not 1.0 <= self.scatter < math.inf:
            raise ValueError(f"scatter must be finite and at least 1, got {self.scatter!r}")

    def __call__(self, batch_size: float) -> float:
        """Cost of one step at `batch_size`, in `unit`."""
        extra = sum(knee.per_example * max(0.0, batch_size - knee.batch_size) for knee in self.knees)
        return self.per_step + self.per_example * batch_size + extra

    def largest_within(self, cost: float) -> int:
        """The largest batch size of which a step costs no more than `cost`, by bisection; 0 where none does."""
        low, high = 0, 1
        while self(high) <= cost and high < LARGEST_SOUGHT:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle) <= cost else (low, middle)
        return low

    def scaled(self, factor: float, unit: str) -> StepCost:
        """The same in another unit, of which there are `factor` to one of this."""
        knees = tuple(Knee(knee.batch_size, factor * knee.per_example) for knee in self.knees)
        per_step, per_example = factor * self.per_step, factor * self.per_example
        return StepCost(per_step, per_example, knees, self.largest_batch_size, unit, self.scatter)

    def of_run(self, *, batch_size: float, steps: float) -> float:
        """Cost of `steps` steps at `batch_size`, in `unit`."""
        return steps * self(batch_size)

    def of_steps(self, steps: Estimate, *, batch_size: float) -> Estimate:
        """Cost of an uncertain number of steps, with what the cost of a step itself scatters by."""
        return steps.scaled(self(batch_size)).widened(self.scatter)

    def in_words(self) -> str:
        """What a step takes (or costs), in the numbers that `__call__` gives.

        Example:
            >>> StepCost(2e-3, 1e-5).in_words()
            '2 ms plus 10 µs an example'
            >>> StepCost(2e-3, 1e-5, knees=(Knee(100, 9e-5),)).in_words()
            '2.01 ms at a batch of 1 and 3 ms at 100; beyond, every further example takes 100 µs'
        """
        if not self.knees:
            if not self.per_example:
                return f"{self._amount(self.per_step)} at any batch size"
            return f"{self._amount(self.per_step)} plus {self._amount(self.per_example)} an example"
        slope, words = self.per_example, f"{self._amount(self(1))} at a batch of 1"
        takes = "takes" if self.unit == "seconds" else "costs"
        for knee in self.knees:
            slope += knee.per_example
            words += f" and {self._amount(self(knee.batch_size))} at {knee.batch_size:g}"
        return f"{words}; beyond, every further example {takes} {self._amount(slope)}"

    def _amount(self, value: float) -> str:
        return time_in_words(value) if self.unit == "seconds" else f"{number(value)} {self.unit}"

    def retimed(self, timings: Sequence[tuple[float, float]]) -> StepCost:
        """The same after other timings: of both, the slower holds, and `scatter` is how far all of them are from it.

        A machine that is busy at times, or warms up, gives what a step takes to a few tens of per cent at best. Its
        first timings are of a moment; those of whole runs say what a run takes.

        Args:
            timings: (batch size, seconds of a step), each of other steps.
        """
        if not timings:
            return self
        ratios = np.array([1.0, *(seconds / self(batch_size) for batch_size, seconds in timings)])
        slower = max(1.0, float(np.median(ratios[1:])))
        off = float(np.sqrt(np.sum(np.log(ratios / slower) ** 2) / len(timings)))
        return replace(self.scaled(slower, self.unit), scatter=math.exp(t_quantile(len(timings)) * off))


def fit_step_cost(
    batch_sizes: Sequence[float], seconds: Sequence[float], *, largest_batch_size: int | None = None
) -> StepCost:
    """Fit t(B) = a + b B to measured step times, with relative errors, and one knee where it pays.

    A knee is looked for where there are at least five different batch sizes, and kept if it lowers the Bayesian
    information criterion; both slopes stay non-negative.

    Args:
        batch_sizes: at least two different ones, (k,).
        seconds: the time of one step at each, (k,).
        largest_batch_size: recorded as it is.

    Raises:
        ValueError: fewer than two batch sizes, or a time that is not positive.
    """
    sizes, times = np.asarray(batch_sizes, float), np.asarray(seconds, float)
    if len(sizes) != len(times) or len(np.unique(sizes)) < 2:
        raise ValueError(f"a step cost needs times at two different batch sizes at least, got sizes {sizes.tolist()}")
    if not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"every time must be positive and finite, got {times.tolist()}")
    straight, best = _fit(sizes, times, None)
    knee, score = None, _bic(best, 2, len(sizes))
    coefficients = straight
    places = np.unique(sizes)[1:-1]
    # Through four points or fewer a bent line passes too easily.
    for place in places if len(places) > 2 else ():
        bent, residual = _fit(sizes, times, float(place))
        # The best of many places is flattered by the choice, so its number is paid for as well.
        bent_score = _bic(residual, 4, len(sizes)) + 2.0 * math.log(len(places))
        if bent_score < score:
            knee, score, coefficients = float(place), bent_score, bent
    per_step, per_example = float(coefficients[0]), float(coefficients[1])
    knees = () if knee is None else (Knee(knee, float(coefficients[2] - coefficients[1])),)
    return StepCost(per_step, per_example, knees, largest_batch_size)


def _fit(sizes: Floats, times: Floats, knee: float | None) -> tuple[Floats, float]:
    """Non-negative (a, b before the knee, b after it) by least squares of the relative error, and the squares left."""
    from scipy import optimize  # at the top it would be a third of every command's start

    below = sizes if knee is None else np.minimum(sizes, knee)
    above = np.zeros_like(sizes) if knee is None else np.maximum(sizes - knee, 0.0)
    design = np.stack([np.ones_like(sizes), below, above], axis=1) / times[:, None]
    scale = design.max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    coefficients, residual = optimize.nnls(design / scale, np.ones_like(times))
    return coefficients / scale, float(residual) ** 2


def _bic(residual: float, parameters: int, points: int) -> float:
    # Timings are no better than 2 %, so a fit closer than that is not evidence for a knee.
    return points * math.log(max(residual / points, 4e-4)) + parameters * math.log(points)
