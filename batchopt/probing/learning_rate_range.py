"""The range of learning rates worth trying: a run whose rate rises every step until its loss rises (Smith 2015)."""

from __future__ import annotations

import math
import time

from batchopt.errors import BudgetError, NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask

LOWEST, HIGHEST = 1e-6, 1e2
STEPS = 56
SMOOTHING = 0.7
TOO_HIGH = 1.2
"""The rate is too high where the smoothed loss is this many times the lowest before it."""


def find_learning_rate_range(
    task: TrainingTask, *, budget: float, seed: int, largest_batch: int
) -> tuple[float, Spending]:
    """The lowest learning rate at which a rising rate makes the loss rise (or 100 if none does), and what it cost.

    An upper bound: the best constant rate lies below it, by up to two decades for Adam.

    Args:
        task: what to train.
        budget: examples that may be spent.
        seed: of initialisation and data order.
        largest_batch: batch size, unless the budget asks for a smaller one.

    Raises:
        BudgetError: the budget does not hold one example a step.
    """
    batch_size = min(largest_batch, int(budget // STEPS))
    if batch_size < 1:
        raise BudgetError(f"the learning-rate range takes {STEPS} steps, and {budget:.0f} examples are left for it")
    began = time.perf_counter()
    run = TrainingRun(task, learning_rate=LOWEST, seed=seed)
    ratio = (HIGHEST / LOWEST) ** (1.0 / (STEPS - 1))
    smoothed, lowest, top = math.nan, math.inf, HIGHEST
    for k in range(STEPS):
        run.learning_rate = LOWEST * ratio**k
        try:
            loss = run.step(batch_size)
        except NonFiniteLossError:
            top = run.learning_rate
            break
        smoothed = loss if k == 0 else SMOOTHING * smoothed + (1.0 - SMOOTHING) * loss
        # The first steps move nothing: what the loss does there is the scatter of batches.
        if k >= STEPS // 4 and smoothed > TOO_HIGH * lowest:
            top = run.learning_rate
            break
        lowest = min(lowest, smoothed) if k >= STEPS // 8 else math.inf
    spent = float(run.steps * batch_size)
    return top, Spending("learning-rate range", spent, run.steps, time.perf_counter() - began)
