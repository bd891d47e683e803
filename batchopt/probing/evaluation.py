"""When to evaluate a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

RATIO = 1.2
"""Evaluations of a run are this factor apart in examples."""


def evaluation_points(*, first: int, ratio: float = RATIO) -> Iterator[int]:
    """Examples at which to evaluate a run, without end: 0, then geometric from `first`, whole and rising.

    Example:
        >>> points = evaluation_points(first=10, ratio=1.5)
        >>> [next(points) for _ in range(5)]
        [0, 10, 15, 23, 34]
    """
    yield 0
    last, k = 0, 0
    while True:
        point = math.ceil(first * ratio**k)
        k += 1
        if point > last:
            yield point
            last = point
