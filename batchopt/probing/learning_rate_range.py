"""The range of learning rates worth trying: a run whose rate rises every step until its loss blows up (Smith 2015)."""

from __future__ import annotations

import math
import time

from batchopt.errors import BudgetError, NonFiniteLossError
from batchopt.evidence import Spending
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask

LOWEST, HIGHEST = 1e-6, 1e2
STEPS = 64
SMOOTHING = 0.7
BLOW_UP = 1.5
"""The smoothed loss counts as blown up at this many times the first batches' loss."""


def find_learning_rate_range(
    task: TrainingTask, *, budget: float, seed: int, largest_batch: int
) -> tuple[float, Spending]:
    """The lowest learning rate at which a rising rate blows the loss up (or 100 if none does), and what it cost.

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
    smoothed, first, top = math.nan, math.nan, HIGHEST
    for k in range(STEPS):
        run.learning_rate = LOWEST * ratio**k
        try:
            loss = run.step(batch_size)
        except NonFiniteLossError:
            top = run.learning_rate
            break
        smoothed = loss if math.isnan(smoothed) else SMOOTHING * smoothed + (1.0 - SMOOTHING) * loss
        first = smoothed if k < 5 else first
        if smoothed > BLOW_UP * first:
            top = run.learning_rate
            break
    spent = float(run.steps * batch_size)
    return top, Spending("learning-rate range", spent, run.steps, time.perf_counter() - began)
