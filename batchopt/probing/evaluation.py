"""When and how to evaluate a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from batchopt._checks import check_count
from batchopt.probing.data import EVALUATION_SEED, evaluation_batches
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.sharding import reshard
from batchopt.probing.state import OwnRandomness, evaluating
from batchopt.probing.task import TrainingTask

HOPELESS = 3.0
"""A loss this many times the initial one counts as diverged."""
RATIO = 1.2
"""Evaluations of a run are this factor apart in examples."""


def evaluation_points(examples: int, *, first: int, ratio: float = RATIO) -> list[int]:
    """Numbers of examples at which to evaluate a run: 0, then geometric from `first`, and the end of the run.

    A loss falls over the logarithm of examples, so points that are evenly spaced there see every stretch of the curve
    equally well for a number of evaluations that grows with the logarithm of the run only.

    Args:
        examples: of the whole run; always the last point.
        first: the first point after 0. Below some ten steps the loss of a run says little.
        ratio: of neighbouring points. The last gap is between half and one and a half of that, in logarithms: a point
            close to the end would cost an evaluation and tell nothing.

    Returns:
        Whole numbers that rise strictly.

    Raises:
        ValueError: `ratio` does not exceed 1.

    Example:
        >>> evaluation_points(40, first=10, ratio=1.5)
        [0, 10, 15, 23, 40]
    """
    check_count("examples", examples)
    check_count("first", first)
    if not ratio > 1.0:
        raise ValueError(f"ratio must exceed 1, got {ratio!r}")
    points, latest = [0], examples / math.sqrt(ratio)
    point, k = first, 0
    while point <= latest:
        if point > points[-1]:
            points.append(point)
        k += 1
        point = math.ceil(first * ratio**k)
    return [*points, examples]


def evaluated_loss(task: TrainingTask, model: nn.Module) -> float:
    """The (weighted) mean per-example loss of a model in evaluation mode, on the task's evaluation examples.

    May be NaN or infinite. Global random generators and the model's modes are as before.
    """
    fixed = OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True)
    total, weight = 0.0, 0.0
    if isinstance(task.data, Rollouts):
        with fixed.active():
            return task.data.evaluate(model, seed=EVALUATION_SEED)
    with fixed.active(), evaluating(model):
        for batch in evaluation_batches(task):
            losses, weights = task.losses(model, batch)
            weights = torch.ones_like(losses) if weights is None else weights
            total += (weights * losses).sum(dtype=torch.float64).item()
            weight += weights.sum(dtype=torch.float64).item()
    reshard(model)
    return total / weight if weight else math.nan
