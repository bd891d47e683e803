"""The range of learning rates worth trying: a run whose rate rises every step until its loss rises (Smith 2015).

Each batch is compared with its own loss at initialisation: batches of a few examples differ by more than a step changes
them, and while the rate is too low to move anything the difference is exactly zero.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from batchopt.errors import BudgetError, NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.probing.evaluation import check_untrained
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

LOWEST, HIGHEST = 1e-6, 1e2
STEPS = 27
STEP_COST = 4.0 / 3.0
"""Examples that one example of a step costs: a gradient, and a forward pass at initialisation."""
SMOOTHING = 0.5
UNDONE = 0.3
"""The rate is too high where this share of the smoothed progress is lost."""
RISEN = 0.05
"""Where there was less progress than this share of the loss, what must be lost is this share."""


def find_learning_rate_range(
    task: TrainingTask, *, budget: float, price: StepCost, seed: int, largest_batch: int
) -> tuple[float, Spending]:
    """The lowest learning rate at which a rising rate makes the loss rise (or 100 if none does), and what it cost.

    An upper bound: the best constant rate lies below it, by up to two decades for Adam.

    Args:
        task: what to train.
        budget: examples that may be spent.
        price: what a step counts for at each batch size, in examples.
        seed: of initialisation and data order.
        largest_batch: batch size, unless the budget asks for a smaller one.

    Raises:
        BudgetError: the budget does not hold one example a step.
    """
    batch_size = min(largest_batch, price.largest_within(budget / (STEPS * STEP_COST)))
    if batch_size < 1:
        needed = math.ceil(STEPS * STEP_COST * price(1))
        raise BudgetError(
            f"the learning-rate range takes {needed} examples, and {budget:.0f} are left for it: "
            "give the probe a larger budget"
        )
    began = time.perf_counter()
    task = replace(task, warmup_examples=0)
    start, run = (TrainingRun(task, learning_rate=LOWEST, seed=seed) for _ in range(2))
    ratio = (HIGHEST / LOWEST) ** (1.0 / (STEPS - 1))
    change = least = initial = 0.0
    top = HIGHEST
    for k in range(STEPS):
        run.learning_rate = LOWEST * ratio**k
        try:
            before = start.batch_loss(batch_size)
            latest = run.step(batch_size) - before
        except NonFiniteLossError:
            check_untrained(run, batch_size)
            top = run.learning_rate
            break
        initial += (abs(before) - initial) / (k + 1)
        change = SMOOTHING * change + (1.0 - SMOOTHING) * latest
        if change > least + max(UNDONE * -least, RISEN * initial):
            top = run.learning_rate
            break
        least = min(least, change)
    steps = STEP_COST * run.steps
    seconds = time.perf_counter() - began
    return top, Spending("learning-rate range", steps * batch_size, run.steps, seconds, steps * price(batch_size))
