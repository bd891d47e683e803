"""How the budget of a probe is shared out, and which batch sizes it affords."""

from __future__ import annotations

import math

from batchopt.errors import BudgetError
from batchopt.step_cost import StepCost

SHARES = {
    "step time": 0.04,
    "learning-rate range": 0.03,
    "short runs, small batch": 0.22,
    "short runs, large batch": 0.16,
    "reference run": 0.27,
    "noise scales": 0.14,
    "later branches": 0.14,
}
"""Share of the budget that each part may spend."""

REFERENCE_STEPS = 250
"""The reference batch size is chosen so that the reference run takes at least this many steps."""
FIRST_RUNG_STEPS = 28
"""Least steps of a first-rung run: enough for four evaluations after initialisation."""
RATE_FACTOR = 3.0
"""Neighbouring learning rates of the short runs, where none is given."""
RATES = 3
"""Learning rates that are tried at each batch size to begin with."""
EXTRA_RUNS = 2
"""Runs of the first rung that are set aside for rates beyond those."""
RUNGS = (1.0, 2.0, 4.0)
"""What a short run may spend in each rung of successive halving, in units of the first."""


def examples_within(seconds: float, cost: StepCost) -> int:
    """Examples that a time holds, a fifth of it left for what is not steps."""
    return int(0.8 * seconds / (cost(64) / 64))


def two_batch_sizes(budget: int, *, evaluation: float, bounds: tuple[int, int], population: int) -> tuple[int, int]:
    """The batch sizes of the short runs, a factor of 8 apart where the bounds allow it.

    The larger is as large as leaves the reference run and each first-rung run enough steps.

    Args:
        budget: examples of the whole probe.
        evaluation: what one evaluation costs, in examples.
        bounds: smallest and largest batch size.
        population: examples in the data set.

    Raises:
        BudgetError: the bounds leave only one batch size, or the budget no run of four evaluations.
    """
    low, high = bounds
    evaluations = 4 * evaluation
    by_reference = SHARES["reference run"] * budget / REFERENCE_STEPS
    by_rung = (run_share("large") * budget - evaluations) / FIRST_RUNG_STEPS
    ceiling = max(low, min(high, population // 2))
    large = min(max(_power_of_two(min(by_reference, by_rung)), 8 * low), ceiling)
    small = max(low, large // 8)
    if small >= large:
        raise BudgetError(
            f"two batch sizes are needed to see a trade-off, and the bounds {low} to {high} leave only {large}"
        )
    least = max(
        (evaluations + FIRST_RUNG_STEPS * size) / run_share(name) for name, size in (("small", small), ("large", large))
    )
    if budget < least:
        raise BudgetError(
            f"the budget must be at least {math.ceil(least)} examples "
            f"for short runs at batch sizes {small} and {large}, got {budget}: "
            "raise it, lower the batch sizes, or give a smaller eval_data"
        )
    return small, large


def _power_of_two(value: float) -> int:
    return int(2 ** math.floor(math.log2(max(1.0, value))))


def run_share(which: str) -> float:
    """Share of the budget of one first-rung run at the "small" or the "large" batch size."""
    rungs = (RATES + EXTRA_RUNS) * RUNGS[0] + 2 * RUNGS[1] + (RUNGS[2] if which == "small" else 0.0)
    return SHARES[f"short runs, {which} batch"] / rungs
