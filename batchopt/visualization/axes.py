"""Logarithmic axes with ticks that people can read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from batchopt.visualization.wording import count, number

MOST_TICKS = 12


class Span(NamedTuple):
    """What a logarithmic axis covers: positive, low below high."""

    low: float
    high: float

    @property
    def exponents(self) -> list[float]:
        """Both ends as powers of ten, as plotly wants them."""
        return [math.log10(self.low), math.log10(self.high)]

    def clip(self, value: float) -> float:
        """The nearest value on the axis; an infinite end comes to lie on its edge."""
        return min(max(value, self.low), self.high)


def span_of(values: Iterable[float], *, least: float = 1.5, margin: float = 0.06) -> Span:
    """The span that shows all positive finite values with a margin, at least a factor `least` wide; 1 to 10 if none."""
    shown = [value for value in values if math.isfinite(value) and value > 0]
    if not shown:
        return Span(1.0, 10.0)
    low, high = math.log(min(shown)), math.log(max(shown))
    missing = max(0.0, math.log(least) - (high - low)) / 2.0
    pad = missing + margin * max(high - low, math.log(least))
    return Span(math.exp(low - pad), math.exp(high + pad))


def powers_of_two(span: Span) -> tuple[float, ...]:
    """Powers of two on the axis, at most twelve, at an even stride."""
    first, last = math.ceil(math.log2(span.low)), math.floor(math.log2(span.high))
    stride = max(1, math.ceil((last - first + 1) / MOST_TICKS))
    return tuple(2.0**k for k in range(first, last + 1) if k % stride == 0)


def round_numbers(span: Span) -> tuple[float, ...]:
    """1, 2, 5 times powers of ten on the axis; powers of ten alone where it is long, equal steps where it is short."""
    decades = math.log10(span.high / span.low)
    if decades < 0.8:
        return _equal_steps(span)
    leading = (1.0, 2.0, 5.0) if decades <= 3.5 else (1.0,)
    first, last = math.floor(math.log10(span.low)), math.ceil(math.log10(span.high))
    stride = max(1, math.ceil((last - first + 1) / MOST_TICKS))
    powers = [k for k in range(first, last + 1) if k % stride == 0]
    ticks = [digit * 10.0**k for k in powers for digit in leading]
    return tuple(tick for tick in ticks if span.low <= tick <= span.high)


def log_axis(title: str, span: Span, *, powers: bool = False, falling: bool = False) -> dict[str, Any]:
    """A logarithmic plotly axis.

    Args:
        title: quantity and unit.
        span: what it covers.
        powers: ticks at powers of two, as suits batch sizes.
        falling: large values first, as a loss goes over training.
    """
    ticks = powers_of_two(span) if powers else round_numbers(span)
    label: Callable[[float], str] = _size if powers else number
    return {
        "title": {"text": title},
        "type": "log",
        "range": span.exponents[::-1] if falling else span.exponents,
        "tickvals": ticks,
        "ticktext": [label(tick) for tick in ticks],
    }


def _equal_steps(span: Span) -> tuple[float, ...]:
    rough = (span.high - span.low) / 6.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * unit for digit in (1.0, 2.0, 5.0, 10.0) if digit * unit >= rough)
    return tuple(k * step for k in range(math.ceil(span.low / step), math.floor(span.high / step) + 1))


def _size(tick: float) -> str:
    return count(round(tick)) if 1 <= tick < 1e6 else number(tick)
