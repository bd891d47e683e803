"""Which steps to read, so that reading stays within a share of the time of training.

Notation
    cost     time that a reading adds to its step / time of a plain step
    k        a reading every k-th step takes a share cost / k of the time of training
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

REMEMBERED = 63
"""Costs of this many readings are kept."""
TRIALS = 4
"""Readings after which a cost is believed; the first of them allocates, chooses kernels and compiles, and is not."""
HOPELESS = 3.0
"""A way of reading that costs more steps than this is tried no further."""
LONGEST = 10_000


class Pace:
    """What a way of reading costs.

    Args:
        costs: of readings before.
        seen: how many there were.
    """

    def __init__(self, costs: Iterable[float] = (), *, seen: int = 0) -> None:
        self.costs: deque[float] = deque(costs, maxlen=REMEMBERED)
        self.seen = seen

    def took(self, *, extra: float, plain: float) -> None:
        """A reading added `extra` seconds to a step that takes `plain` seconds without."""
        self.seen += 1
        if self.seen > 1 and plain > 0:
            self.costs.append(extra / plain)

    @property
    def is_known(self) -> bool:
        """Whether the cost is believed."""
        return self.seen >= TRIALS or (len(self.costs) > 0 and min(self.costs) > HOPELESS)

    @property
    def cost(self) -> float:
        """Cost of a reading in steps: a standard error above the median, since single times scatter; infinite if none.

        The standard error is by the median absolute deviation, which a pause of the machine does not move.
        """
        if not self.costs:
            return math.inf
        middle = statistics.median(self.costs)
        deviation = 1.4826 * statistics.median(abs(cost - middle) for cost in self.costs)
        return max(0.0, middle + 1.2533 * deviation / math.sqrt(len(self.costs)))


def interval(cost: float, share: float, *, least: int) -> int:
    """Steps from one reading to the next, so that they take no more than `share` of the time."""
    return LONGEST if cost >= LONGEST * share else max(least, math.ceil(cost / share))
