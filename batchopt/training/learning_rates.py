"""Schedulers of torch as functions of progress, so that they end with the run, whatever its batch sizes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from batchopt._checks import check_count


def learning_rate_by_progress(
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler], *, steps: int
) -> Callable[[float], float]:
    """A scheduler of torch.optim as a `TrainingTask(learning_rate_schedule=...)`.

    A scheduler counts steps, and under a schedule of batch sizes a step is no fixed share of the run. This runs it
    once on an optimizer of its own, with a learning rate of 1, and reads it by the share of the run's examples that
    were seen: the middle of step i of `steps` at a share of (i + 1/2) / steps. What it does to momentum (OneCycleLR) is
    not followed.

    Args:
        scheduler: optimizer -> scheduler. Rates that it holds as such (`max_lr` of OneCycleLR, `eta_min`) are shares of
            the training's rate.
        steps: that the scheduler is written for; more than the run takes give a finer curve.

    Returns:
        Progress from 0 to 1 -> multiplier of the learning rate.

    Raises:
        TypeError: the scheduler waits for what a run has not measured (ReduceLROnPlateau).
        ValueError: a multiplier is negative or not finite.

    Example:
        >>> half = learning_rate_by_progress(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.5, 100), steps=100)
        >>> half(0.0), half(0.5), half(1.0)
        (1.0, 0.7525, 0.505)
    """
    check_count("steps", steps)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = scheduler(optimizer)
    if isinstance(made, ReduceLROnPlateau) or not isinstance(made, LRScheduler):
        raise TypeError(f"scheduler must make an LRScheduler that only counts steps, got {type(made).__name__}")
    multipliers = [float(optimizer.param_groups[0]["lr"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optimizer that was not stepped
        for _ in range(steps - 1):  # the last step of a run is taken by what the scheduler says before it
            made.step()
            multipliers.append(float(optimizer.param_groups[0]["lr"]))
    for step, multiplier in enumerate(multipliers):
        if not (math.isfinite(multiplier) and multiplier >= 0):
            raise ValueError(f"every multiplier must be zero or more, got {multiplier!r} at step {step}")
    progress = (np.arange(steps) + 0.5) / steps  # a step takes the rate in its middle

    def multiplier_at(share: float) -> float:
        return round(float(np.interp(share, progress, multipliers)), 12)

    return multiplier_at
