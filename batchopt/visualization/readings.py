"""Estimates as points of a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.uncertainty import Estimate


class Reading(NamedTuple):
    """An estimate and where it stands.

    Attributes:
        x: position along the figure's horizontal axis.
        value: best guess.
        low: lower end of the 90 % interval; may be -inf.
        high: upper end; may be inf.
        resolved: whether the evidence supports `value`.
    """

    x: float
    value: float
    low: float
    high: float
    resolved: bool

    @classmethod
    def of(cls, x: float, estimate: Estimate) -> Reading:
        """The reading of an estimate at `x`."""
        return cls(x, estimate.value, estimate.low, estimate.high, estimate.resolved)

    @property
    def one_sided(self) -> bool:
        """Whether the reading is only a lower bound."""
        return not math.isfinite(self.high)

    @property
    def estimate(self) -> Estimate:
        """The estimate alone."""
        return Estimate(self.value, self.low, self.high, self.resolved)


def read_out(estimate: Callable[[float], Estimate], places: Iterable[float]) -> tuple[Reading, ...]:
    """Readings at each place that the forecast reaches; those beyond it are left out."""
    readings = []
    for place in places:
        try:
            readings.append(Reading.of(place, estimate(place)))
        except (UnreachableGoalError, EvidenceError, ValueError):
            continue
    return tuple(readings)


def spaced(high: float, low: float, *, points: int) -> tuple[float, ...]:
    """Positive numbers from `high` to `low` at equal ratios."""
    if points == 1 or high == low:
        return (high,)
    ratio = (low / high) ** (1.0 / (points - 1))
    return tuple(high * ratio**i for i in range(points))


def ends(readings: Sequence[Reading], *, reach: float = 20.0) -> tuple[float, ...]:
    """Positive values and interval ends that an axis should show.

    An end further than a factor `reach` from every value is left to run off the figure: an interval of six decades
    would press everything else flat.
    """
    values = [r.value for r in readings if r.value > 0 and not r.one_sided]
    values += [r.low for r in readings if r.one_sided and math.isfinite(r.low) and r.low > 0]
    if not values:
        return ()
    lowest, highest = min(values) / reach, max(values) * reach
    bounds = [end for r in readings for end in (r.low, r.high) if math.isfinite(end) and end > 0]
    return (*values, *(min(max(end, lowest), highest) for end in bounds))
