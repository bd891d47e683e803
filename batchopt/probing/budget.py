"""How the budget of a probe is shared out, and which batch sizes it affords."""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchopt.errors import BudgetError
from batchopt.probing.learning_rate_range import STEP_COST, STEPS
from batchopt.step_cost import StepCost

SHARES = {
    "step time": 0.03,
    "learning-rate range": 0.06,
    "learning-rate search": 0.10,
    "short runs, large batch": 0.18,
    "short runs, small batch": 0.18,
    "cooldowns of short runs": 0.07,
    "long runs": 0.18,
    "cooldowns of long runs": 0.13,
    "noise scales": 0.03,
}
"""Share of the budget that each part may spend. A cooldown's follows from its length and its run's share. Of 198 plans
from 33 probes 4 were refused and 2 never arrived (`benchmarks/README.md`, with the figures without noise scales); more
examples for these would not help, as a reading differs from what the law needs by a factor of two whatever its own
error."""

FIRST_STEPS = 10
"""Steps of a run of the learning-rate search, for a probe of `SMALLEST_PROBE` examples."""
SMALLEST_PROBE = 1_500
USUAL = 64
"""Batch size whose examples a budget of seconds is counted in."""
FREE = 1.5
"""Where steps cost much beside their examples, a step of the search costs about this multiple of an empty one at least:
its batch then has half as many examples as an empty step counts for. They cost little and make a short run say more."""
MOST_LARGER = 16
"""Where examples seem to cost nothing, batches are at most so many times as large as if they counted alone: the time of
a step was measured at small batches, and memory has an end."""
GROWTH = 0.2
"""Its steps grow with this power of the budget, its batch size with the rest."""
LEAST_STEPS = 5
"""A run of fewer steps tells nothing about its learning rate."""
SMALLER = 8
"""The small batch size is the large one over this. With a large one twice as large, of half the steps, 15 of 168 plans
never arrived on 30 probes of ten problems, and 5 with this: a few dozen steps say little of the rate for long runs."""
SEARCH_FACTOR = 4.0
"""Neighbouring learning rates of the search: from below the highest, which is two decades too high for Adam."""
GIVEN_FACTOR = 3.0
"""Likewise around a rate that is given, and beyond the outermost."""
RATES = 4
"""Learning rates of the search to begin with."""
EXTRA_RATES = 2
"""Runs that are set aside for rates beyond those."""
EXTRA_GIVEN_RATES = 1
"""Likewise around a rate that is given."""
RATES_AFTER_WRONG = 2
"""Where that rate was wrong, all rates are searched too. Both searches together may cost so many runs more than one:
the shares leave room for them."""
FINE_FACTOR = 3.0
"""Neighbouring learning rates of the short runs."""
FINE_RATES, EXTRA_FINE_RATES = 3, 1
"""Short runs of a batch size, and those set aside for rates beyond theirs."""
WARMUP = 0.3
"""Share of a short run over which runs warm up where the task does not say how: without, the high rates that are best
for long runs begin with a shock that a short run does not recover from. A tenth was two to eight steps at a
large batch of twice the size, where plans warm up over hundreds: on 30 probes of ten problems 21 of 168 plans then
never arrived, and 9 with three tenths, which were worse on the LSTM and the transformer (`benchmarks/README.md`)."""
SHORT_COOLDOWN = 0.25
"""Length of a cooldown off a short run, as a share of the run: the last fifth of what both see."""
LONG_COOLDOWNS = (0.1, 0.4)
"""Likewise off a long run, twice: one length says how far the loss falls, but not how fast noise is forgotten."""
COOLED_RATES, MOST_COOLED = 2, 3
"""Short runs of a batch size that are cooled down: the best and the next best, and at most. High rates are behind
before a decay and may end below after it: by losses before it, a perceptron's long run was at a third of the best."""
LEAST_COOLDOWN_STEPS = 4
"""A cooldown of fewer steps is left out: its rate would fall in jumps."""


def examples_within(seconds: float, cost: StepCost, price: StepCost) -> int:
    """What steps of the usual batch size count for within a time, in examples; a fifth is left for what is not steps.

    Args:
        seconds: the time.
        cost: of steps, in seconds.
        price: what they count for.
    """
    return int(0.8 * seconds * price(USUAL) / cost(USUAL))


def price_of(per_step: float) -> StepCost:
    """What steps count for, in examples, where each counts for so many beside its own."""
    return StepCost(per_step=per_step, per_example=1.0, unit="examples")


def price_in_examples(cost: StepCost) -> StepCost:
    """What steps take, in examples of the usual batch size."""
    return cost.scaled(USUAL / cost(USUAL), "examples")


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The batch sizes that a probe runs: of the short runs, and of the learning-rate search.

    The search is at the large one, but where the bounds let that be no smaller than the budget affords.
    """

    small: int
    search: int
    large: int


def choose_batch_sizes(budget: int, price: StepCost, *, bounds: tuple[int, int], population: int) -> BatchSizes:
    """The batch sizes of a probe: small and large a factor of 8 apart where the bounds allow it.

    Args:
        budget: examples of the whole probe.
        price: what a step counts for at each batch size, in examples.
        bounds: smallest and largest batch size.
        population: examples in the data set.

    Raises:
        BudgetError: the bounds leave only one batch size, or the budget no run of `LEAST_STEPS` steps, or no range of
            learning rates.
    """
    if budget < 1:
        raise BudgetError("the budget holds no step: give the probe more time")
    low, high = bounds
    steps = FIRST_STEPS * max(1.0, budget / SMALLEST_PROBE) ** GROWTH
    ceiling = max(low, min(high, population // 2))
    wanted = max(search_budget(budget) / steps, FREE * price.per_step)
    search = min(max(_power_of_two(price, wanted, most=max(1.0, MOST_LARGER * wanted)), low), ceiling)
    large = min(max(search, 2 * low), ceiling)
    sizes = BatchSizes(small=max(low, large // SMALLER), search=search, large=large)
    if sizes.small >= large:
        raise BudgetError(
            f"two batch sizes are needed to see a trade-off, and the bounds {low} to {high} leave only {large}"
        )
    least = max(
        LEAST_STEPS * price(search) * budget / search_budget(budget),
        STEPS * STEP_COST * price(1) / SHARES["learning-rate range"],
    )
    if budget < least:
        raise BudgetError(
            f"the budget must be at least {math.ceil(least)} examples "
            f"for runs at batch sizes {sizes.small} to {large}, got {budget}: raise it, or lower the batch sizes"
        )
    return sizes


def _power_of_two(price: StepCost, wanted: float, *, most: float) -> int:
    """The power of two with the price nearest to what is wanted, in logarithms; of equal ones the largest."""
    sizes = [1 << k for k in range(math.floor(math.log2(most)) + 1)]
    return min(sizes, key=lambda size: (abs(math.log(price(size) / wanted)), -size))


def search_budget(budget: int) -> float:
    """Examples of one run of the learning-rate search."""
    return SHARES["learning-rate search"] * budget / (RATES + EXTRA_RATES)


def short_run_budget(budget: int) -> float:
    """Examples of one short run."""
    return SHARES["short runs, large batch"] * budget / (FINE_RATES + EXTRA_FINE_RATES)


def warmup_within(budget: float, price: StepCost, sizes: BatchSizes) -> int:
    """Examples over which runs warm up: a share of a short run, by the geometric mean of both batch sizes' lengths.

    These differ where steps cost something beside their examples; then at most half of the shorter run.
    """
    lengths = [budget / price(size) * size for size in (sizes.small, sizes.large)]
    return round(min(WARMUP * math.sqrt(math.prod(lengths)), 0.5 * min(lengths)))
