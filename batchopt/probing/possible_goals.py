"""Goals that no run can reach, or that need no training: what one evaluation of an untrained model tells of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchopt.errors import UnreachableGoalError
from batchopt.planning.goal import Goal, ReachLoss, ReachMetric
from batchopt.probing.data import evaluation_examples
from batchopt.probing.evaluation import evaluated
from batchopt.probing.losses import Batch
from batchopt.probing.set_metric import SetMetric
from batchopt.probing.sharding import is_sharded
from batchopt.probing.task import TrainingTask

WHOLE = 1e-3
"""A share times the examples that it is of is a whole number but for so much, which is rounding."""
PER_CENT = 100.0


def check_possible(task: TrainingTask, model: nn.Module, goal: Goal) -> str | None:
    """Raise UnreachableGoalError where a goal makes no sense for a task.

    A loss must lie below the one before any training. A metric that is 0 or 1 for every example is a share of them, and
    so is one of a whole set that is a whole number of examples over their number: its goal must lie between 0 and 1, by
    one example at least.
    Of other metrics no bounds are known. A sharded model is not looked at.

    Args:
        task: that is to be probed.
        model: of the task, before any training; it is left as it is.
        goal: whose metric, if it has one, is among the task's.

    Returns:
        A doubt about the goal, in a sentence; None where there is none.
    """
    if not isinstance(goal, ReachLoss | ReachMetric) or is_sharded(model.parameters()):
        return None
    if isinstance(goal, ReachLoss):
        loss = evaluated(task, model).loss
        if goal.loss >= loss:
            raise UnreachableGoalError(
                f"the goal's loss must lie below {loss:.4g}, the loss before any training, got {goal.loss:g}: "
                "ask for less"
            )
        return None
    return _check_metric(task, model, goal)


def _check_metric(task: TrainingTask, model: nn.Module, goal: ReachMetric) -> str | None:
    value, seen, is_weighted = _seen_of(task, model, goal.metric)
    examples, name, wanted = evaluation_examples(task), goal.metric, goal.value
    remedy = f"ask for {wanted / PER_CENT:g}" if 1.0 < wanted < PER_CENT else "give a share, as 0.93"
    why = _why_a_share(seen, value, examples)
    if why is None:
        is_odd = 0.0 <= value <= 1.0 < wanted
        told = f"{name} is {value:.3g} before any training, and {wanted:g} is asked for"
        return f"{told}: if it is a share and no percentage, {remedy}." if is_odd else None
    if not 0.0 < wanted < 1.0:
        raise UnreachableGoalError(f"{name} must lie between 0 and 1, since {why}, got {wanted:g}: {remedy}")
    if not is_weighted and min(wanted, 1.0 - wanted) * examples < 1.0 - WHOLE:
        raise UnreachableGoalError(
            f"{name} {wanted:g} cannot be told from {round(wanted)} on the {examples:,} examples that are evaluated: "
            f"ask for {'less' if wanted > 0.5 else 'more'}, or evaluate more examples"
        )
    return None


class _Seen(NamedTuple):
    """A metric before any training: its value, and those of single examples, batch by batch; none of one of a set."""

    value: float
    each: list[Tensor]
    is_weighted: bool


def _seen_of(task: TrainingTask, model: nn.Module, name: str) -> _Seen:
    metric, each, weights = task.metrics[name], list[Tensor](), list[object]()

    def watched(model: Any, batch: Batch) -> Any:
        found = metric(model, batch)  # type: ignore[operator]
        values, *weight = found if isinstance(found, tuple) else (found,)
        each.extend([values.detach().cpu()] if isinstance(values, Tensor) else [])
        weights.extend(weight)
        return found

    looked_at = metric if isinstance(metric, SetMetric) else watched
    value = evaluated(replace(task, metrics={name: looked_at}), model).metrics[name]
    return _Seen(value, each, bool(weights))


def _why_a_share(seen: list[Tensor], value: float, examples: int) -> str | None:
    """How it is known that a metric is a share of examples; None where it is not known.

    A percentage of n examples is k / n too, but only with k a multiple of 100.
    """
    if seen:
        values = torch.cat(seen)
        both = bool(values.any()) and not bool(values.all())
        if values.dtype == torch.bool or (both and bool(((values == 0) | (values == 1)).all())):
            return f"it is 0 or 1 for each of the {examples:,} examples that are evaluated"
        return None
    count = value * examples
    if not math.isfinite(count) or not 1 <= round(count) <= examples or abs(count - round(count)) > WHOLE:
        return None
    if round(count) % PER_CENT == 0:
        return None
    return f"it is {round(count):,} of the {examples:,} examples that are evaluated before any training"
