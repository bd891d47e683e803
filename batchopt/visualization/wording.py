"""Counts and intervals as people read them."""

from __future__ import annotations

import math

from batchopt._wording import number, seconds
from batchopt.uncertainty import Estimate

__all__ = ["count", "interval", "number", "seconds"]


def count(value: int) -> str:
    """A whole number in full, such as a batch size: 4,096."""
    return f"{value:,}"


def interval(estimate: Estimate) -> str:
    """An estimate with its interval; one-sided where an end is infinite.

    Example:
        >>> interval(Estimate(1200.0, 900.0, 1600.0, resolved=True))
        '1,200 (900 to 1,600)'
        >>> interval(Estimate(1200.0, 900.0, float("inf"), resolved=False))
        'more than 900 (unresolved)'
    """
    low, high = estimate.low, estimate.high
    if not math.isfinite(high):
        return f"more than {number(low)} (unresolved)" if math.isfinite(low) and low > 0 else "unresolved"
    if low == high or (estimate.resolved and number(low) == number(high)):
        return number(estimate.value)
    doubt = "" if estimate.resolved else ", unresolved"
    if not math.isfinite(low):
        return f"less than {number(high)} (unresolved)"
    return f"{number(estimate.value)} ({number(low)} to {number(high)}{doubt})"
