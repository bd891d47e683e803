"""A schedule's learning rate, warm-up and decay included, in a training that somebody else steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.shares import check_start


def scale_learning_rate(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | AdaptiveSchedule,
    *,
    start_examples: int = 0,
    examples_seen: Callable[[], int] | None = None,
) -> tuple[RemovableHandle, RemovableHandle]:
    """Let every step of an optimizer take its learning rate times the schedule's, warm-up and decay included.

    For loops of one's own, and frameworks: call it once, before training. The rate is multiplied for the step only, so
    that whatever sets it, warm-up or a scheduler, goes on from its own. It counts the optimizer's steps, one for every
    batch of the schedule: where a scaler leaves some out (float16), give `examples_seen`. A schedule that has a
    `learning_rate_schedule` holds warm-up and decay: beside one, leave your own at a constant rate.

    Args:
        optimizer: of torch, before a framework wraps it.
        schedule: that the batches follow.
        start_examples: examples that were seen when the first step is taken.
        examples_seen: gives those seen when a step begins, in place of counting.

    Returns:
        Two handles whose `remove()` ends it.

    Raises:
        TypeError: the schedule is something else.
        ValueError: a start beyond the end of the run.

    Example:
        >>> from batchopt.schedules.schedule import Segment
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([parameter], lr=0.1)
        >>> _ = scale_learning_rate(optimizer, Schedule((Segment(0, 2, 1.0), Segment(2, 4, 2.0)), examples=6))
        >>> for _ in range(2):
        ...     parameter.grad = torch.ones(1)
        ...     optimizer.step()
        >>> round(parameter.item(), 6), optimizer.param_groups[0]["lr"]
        (-0.3, 0.1)
    """
    check_schedule(schedule, AdaptiveSchedule)
    check_start(schedule, start_examples)
    hooks = _Hooks(schedule, start_examples, examples_seen)
    return optimizer.register_step_pre_hook(hooks.multiply), optimizer.register_step_post_hook(hooks.restore)


class _Hooks:
    def __init__(
        self, schedule: Schedule | AdaptiveSchedule, seen: int, examples_seen: Callable[[], int] | None
    ) -> None:
        self._schedule, self._seen, self._given = schedule, seen, examples_seen
        self._rates: list[Any] = []

    def multiply(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._given is not None:
            self._seen = self._given()
        now = self._schedule.schedule if isinstance(self._schedule, AdaptiveSchedule) else self._schedule
        seen = min(self._seen, now.examples - 1)
        size = min(now(seen), now.examples - seen)
        multiplier = now.multiplier_of(seen, size)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * multiplier
        self._seen += size

    def restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate


def warn_of_rate(schedule: Schedule, rates: Iterable[float], remedy: str) -> None:
    """Warn where none of a training's base rates is the one that the schedule was planned for."""
    planned, given = schedule.learning_rate, sorted(set(rates))
    if planned is not None and not any(math.isclose(planned, rate, rel_tol=1e-6) for rate in given):
        told = ", ".join(f"{rate:.4g}" for rate in given)
        warnings.warn(
            f"the schedule was planned for a learning rate of {planned:.4g}, and the training has {told}: {remedy}, "
            "unless that is meant",
            UserWarning,
            stacklevel=3,
        )
