"""Numbers as people read them: three digits, thousands separated, large counts shortened."""

from __future__ import annotations

import math

from batchopt.uncertainty import Estimate

_SHORT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k"))


def number(value: float) -> str:
    """A number to three significant digits.

    Example:
        >>> [number(value) for value in (0.00002, 0.25, 1234.0, 56_789, 2_345_678)]
        ['2e-5', '0.25', '1,230', '56.8k', '2.35M']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")
    size = abs(rounded)
    for least, suffix in _SHORT:
        if size >= least:
            return f"{rounded / (1e3 if suffix == 'k' else least):.3g}{suffix}"
    if size >= 1e3:
        return f"{rounded:,.0f}"
    if size >= 1e-3:
        return f"{rounded:.3g}"
    mantissa, exponent = f"{rounded:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count(value: int) -> str:
    """A whole number in full, such as a batch size: 4,096."""
    return f"{value:,}"


def seconds(value: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> [seconds(value) for value in (2e-5, 0.002, 42.0, 600.0, 20_000.0)]
        ['20 µs', '2 ms', '42 s', '10 min', '5.56 h']
    """
    for least, unit, name in (
        (172_800.0, 86_400.0, "days"),
        (7_200.0, 3_600.0, "h"),
        (180.0, 60.0, "min"),
        (1.0, 1.0, "s"),
    ):
        if value >= least:
            return f"{number(value / unit)} {name}"
    return f"{number(1e3 * value)} ms" if value >= 1e-3 or value == 0 else f"{number(1e6 * value)} \u00b5s"


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
