"""How the budget of a probe is shared out, and which batch sizes it affords."""

from __future__ import annotations

import math

from batchopt.errors import BudgetError
from batchopt.step_cost import StepCost

SHARES = {
    "step time": 0.03,
    "learning-rate range": 0.05,
    "short runs, large batch": 0.26,
    "short runs, small batch": 0.26,
    "long runs": 0.28,
    "noise scales": 0.12,
}
"""Share of the budget that each part may spend."""

FIRST_RUNG_STEPS = 10
"""Steps of a first-rung run at the large batch, for a probe of `SMALLEST_PROBE` examples."""
SMALLEST_PROBE = 1_500
GROWTH = 0.2
"""The steps of a first-rung run grow with this power of the budget, its batch size with the rest: the critical batch
size grows with the root of training, or somewhat faster."""
LEAST_STEPS = 6
"""A first-rung run of fewer steps tells nothing about its learning rate."""
BATCH_RATIO = 8
"""The large batch size over the small one."""
RATE_FACTOR = 3.0
"""Neighbouring learning rates of the short runs."""
SEARCH_FACTOR = 4.0
"""Neighbouring learning rates where none is known: from below the highest, which is two decades too high for Adam."""
RATES = 4
"""Learning rates that are tried at the large batch size to begin with; one less at the small one."""
EXTRA_RUNS = 2
"""Runs of the first rung that are set aside for rates beyond those."""
RUNGS = (1.0, 1.0, 2.0)
"""What a short run may spend in each rung of successive halving, in units of the first: it doubles every time."""


def examples_within(seconds: float, cost: StepCost) -> int:
    """Examples that a time holds, a fifth of it left for what is not steps."""
    return int(0.8 * seconds / (cost(64) / 64))


def two_batch_sizes(budget: int, *, bounds: tuple[int, int], population: int) -> tuple[int, int]:
    """The batch sizes of the short runs, a factor of 8 apart where the bounds allow it.

    Args:
        budget: examples of the whole probe.
        bounds: smallest and largest batch size.
        population: examples in the data set.

    Raises:
        BudgetError: the bounds leave only one batch size, or the budget no run of `LEAST_STEPS` steps.
    """
    low, high = bounds
    unit = run_share("large") * budget
    steps = FIRST_RUNG_STEPS * max(1.0, budget / SMALLEST_PROBE) ** GROWTH
    ceiling = max(low, min(high, population // 2))
    large = min(max(_power_of_two(unit / steps), 4 * low), ceiling)
    small = max(low, large // BATCH_RATIO)
    if small >= large:
        raise BudgetError(
            f"two batch sizes are needed to see a trade-off, and the bounds {low} to {high} leave only {large}"
        )
    least = LEAST_STEPS * large / run_share("large")
    if budget < least:
        raise BudgetError(
            f"the budget must be at least {math.ceil(least)} examples "
            f"for short runs at batch sizes {small} and {large}, got {budget}: raise it, or lower the batch sizes"
        )
    return small, large


def _power_of_two(value: float) -> int:
    """The nearest one."""
    return int(2 ** round(math.log2(max(1.0, value))))


def run_share(which: str) -> float:
    """Share of the budget of one first-rung run at the "small" or the "large" batch size."""
    rungs = (RATES + EXTRA_RUNS) * RUNGS[0] + 2 * RUNGS[1] + RUNGS[2]
    return SHARES[f"short runs, {which} batch"] / rungs
