"""Numbers and times as people read them: three digits, thousands separated, large counts shortened."""

from __future__ import annotations

import math

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
