"""The two parameters that the search understands: batch size and learning rate, as Optuna distributions see them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from batchopt._checks import check_count
from batchopt.errors import EvidenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPONENT_PREFIX = "log2_"
LARGEST_EXPONENT = 60
RATES_PER_OCTAVE = 3
MOST_RATES = 36
SMALLEST_SHARE = 1e-6
"""A learning rate whose range begins at zero is searched from this share of its upper end."""
MILESTONES_PER_OCTAVE = 2
MILESTONE_OCTAVES = 8


@dataclass(frozen=True, slots=True)
class Log2:
    """Says that a parameter holds the exponent of the batch size: batch = 2**value.

    A parameter whose name begins with `log2_` says so by itself.

    Example:
        >>> Log2("size_exponent").name
        'size_exponent'
    """

    name: str

    def __post_init__(self) -> None:
        check_name("Log2's name", self.name)


def milestones(max_examples: int) -> list[int]:
    """Numbers of examples at which every trial reports, whatever its batch size.

    Optuna's own pruners compare reports at equal steps only, so trials report at the first step that reaches a
    milestone and pass the milestone as `step`. Two milestones for every doubling, over a factor of 256.

    Args:
        max_examples: where a trial ends at the latest.

    Example:
        >>> milestones(1000)[-4:]
        [354, 500, 707, 1000]
    """
    check_count("max_examples", max_examples)
    back = range(MILESTONE_OCTAVES * MILESTONES_PER_OCTAVE, -1, -1)
    return sorted({max(1, round(max_examples * 2.0 ** (-k / MILESTONES_PER_OCTAVE))) for k in back})


def check_name(what: str, name: object) -> None:
    """Raise unless `name` can name a parameter."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be the name of a parameter (str), got {name!r}")
    if not name:
        raise ValueError(f"{what} must not be empty")


def holds_exponent(parameter: str | Log2) -> bool:
    """Whether a batch-size parameter holds log2 of the batch size."""
    return isinstance(parameter, Log2) or parameter.startswith(EXPONENT_PREFIX)


def to_batch_size(value: Any, *, exponent: bool) -> int:
    """The batch size that a parameter's value stands for.

    Raises:
        EvidenceError: it stands for none.
    """
    # What was enqueued is not converted before the objective sees it: 64.0 and NumPy's 64 are as good as 64.
    whole = not isinstance(value, bool) and isinstance(value, numbers.Real) and float(value).is_integer()
    if exponent and whole and 0 <= value <= LARGEST_EXPONENT:
        return int(2 ** int(value))
    if not exponent and whole and 1 <= value <= 2**LARGEST_EXPONENT:
        return int(value)
    rule = f"a whole exponent from 0 to {LARGEST_EXPONENT}" if exponent else "a whole number of examples, 1 or more"
    remedy = "; suggest it with suggest_int, not suggest_float" if isinstance(value, float) and not whole else ""
    raise EvidenceError(f"the batch-size parameter must hold {rule}, got {value!r}{remedy}")


def to_learning_rate(value: Any) -> float:
    """The learning rate that a parameter's value is.

    Raises:
        EvidenceError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise EvidenceError(f"the learning-rate parameter must hold a positive number, got {value!r}")
    return float(value)


@dataclass(frozen=True, slots=True)
class Axis:
    """Candidates of one parameter.

    Attributes:
        values: as Optuna holds them, rising in size.
        sizes: what they stand for: batch sizes or learning rates.
        spacing: distance of neighbours in log size that a jitter may fill; 0 where only the values are allowed.
    """

    values: tuple[Any, ...]
    sizes: tuple[float, ...]
    spacing: float = 0.0

    @property
    def array(self) -> NDArray[np.float64]:
        """The sizes as an array, (k,)."""
        return np.array(self.sizes)

    def nearest(self, size: float) -> int:
        """Index of the candidate nearest in log size."""
        return int(np.argmin(np.abs(np.log(self.array) - math.log(size))))

    @classmethod
    def only(cls, value: Any, size: float) -> Axis:
        """One candidate, of a parameter that is already chosen."""
        return cls((value,), (float(size),))

    def up_to(self, largest: float | None) -> Axis:
        """The candidates of at most `largest`; the smallest one where none is."""
        if largest is None or self.sizes[-1] <= largest:
            return self
        kept = max(1, sum(1 for size in self.sizes if size <= largest))
        return Axis(self.values[:kept], self.sizes[:kept], self.spacing)

    def jittered(self, index: int, rng: np.random.Generator) -> tuple[Any, float]:
        """The candidate, moved by up to half the way to its neighbours where the parameter is continuous."""
        if self.spacing == 0.0:
            return self.values[index], self.sizes[index]
        moved = self.sizes[index] * math.exp(float(rng.uniform(-0.5, 0.5)) * self.spacing)
        size = float(np.clip(moved, self.sizes[0], self.sizes[-1]))
        return size, size


@dataclass(frozen=True, slots=True)
class Space:
    """Candidates of both parameters."""

    batch_sizes: Axis
    learning_rates: Axis


@lru_cache(maxsize=256)
def batch_size_axis(distribution: BaseDistribution, *, exponent: bool) -> Axis:
    """Candidates of a batch-size parameter: its ends, powers of two and one and a half times them.

    Raises:
        EvidenceError: the distribution is neither of whole numbers nor a choice among them.
    """
    values: Sequence[Any]
    if isinstance(distribution, CategoricalDistribution):
        values = distribution.choices
    elif isinstance(distribution, IntDistribution):
        values = _exponents(distribution) if exponent else _counts(distribution)
    else:
        raise EvidenceError(
            "the batch-size parameter must come from suggest_int or from suggest_categorical over whole numbers, "
            f"got {distribution}"
        )
    return _rising([(value, float(to_batch_size(value, exponent=exponent))) for value in values])


@lru_cache(maxsize=256)
def learning_rate_axis(distribution: BaseDistribution) -> Axis:
    """Candidates of a learning-rate parameter, evenly spaced in its logarithm.

    Raises:
        EvidenceError: the distribution is not one of positive numbers.
    """
    if isinstance(distribution, CategoricalDistribution):
        return _rising([(value, to_learning_rate(value)) for value in distribution.choices])
    if not isinstance(distribution, FloatDistribution) or distribution.low < 0 or distribution.high <= 0:
        raise EvidenceError(f"the learning-rate parameter must be a positive float, got {distribution}")
    low = max(distribution.low, SMALLEST_SHARE * distribution.high)
    count = min(MOST_RATES, 1 + math.ceil(RATES_PER_OCTAVE * math.log2(distribution.high / low)))
    rates = np.geomspace(low, distribution.high, max(1, count))
    rates[0], rates[-1] = low, distribution.high
    if distribution.step is not None:
        whole = {round((rate - distribution.low) / distribution.step) for rate in rates}
        snapped = [float(distribution.low + k * distribution.step) for k in sorted(whole)]
        return _rising([(rate, rate) for rate in snapped if 0 < rate <= distribution.high])
    spacing = math.log(distribution.high / low) / max(1, count - 1)
    return Axis(tuple(map(float, rates)), tuple(map(float, rates)), spacing)


def _exponents(distribution: IntDistribution) -> list[int]:
    return list(range(distribution.low, distribution.high + 1, distribution.step))


def _counts(distribution: IntDistribution) -> list[int]:
    low, high, step = distribution.low, distribution.high, distribution.step
    powers = [2**k for k in range(high.bit_length())] if high > 0 else []
    wanted = [low, high, *powers, *(3 * power // 2 for power in powers[1:])]
    on_grid = {low + round((size - low) / step) * step for size in wanted if low <= size <= high}
    return sorted(size for size in on_grid if max(low, 1) <= size <= high)


def _rising(pairs: Sequence[tuple[Any, float]]) -> Axis:
    ordered = sorted(pairs, key=lambda pair: pair[1])
    return Axis(tuple(value for value, _ in ordered), tuple(size for _, size in ordered))
