"""Checks at the public door: each says the rule and the value it got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive finite number."""
    check_number(name, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_non_negative(name: str, value: float) -> None:
    """Raise unless `value` is a finite number, zero or more."""
    check_number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be zero or more and finite, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """Raise unless `value` is a finite number."""
    check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number (int), got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: float) -> None:
    """Raise unless `value` is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_one_of(name: str, value: object, allowed: Sequence[object], *, remedy: str = "") -> None:
    """Raise unless `value` is one of `allowed`; `remedy` says what else there is."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{remedy and ': '}{remedy}"
        )


def check_increasing(name: str, values: Sequence[float]) -> None:
    """Raise unless `values` rise strictly."""
    for left, right in pairwise(values):
        if not left < right:
            raise ValueError(f"{name} must rise strictly, got {left!r} before {right!r}")
