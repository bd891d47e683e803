"""Two ways to do a step, timed in alternation: what the machine does besides slows both down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Step = Callable[[Any], Any]


def alternate(
    plain: Step, step: Step, batch: Any, *, seconds: float, pairs: tuple[int, int]
) -> list[tuple[float, float]]:
    """Seconds of neighbouring steps, plain and other, now the one first and now the other.

    Args:
        plain: takes the batch.
        step: the other one.
        batch: of tensors on one device.
        seconds: to take, of warming up as well as of timing.
        pairs: fewest and most.
    """
    begin = time.perf_counter()
    for _ in range(2):
        for warm_up in (plain, step):
            if time.perf_counter() - begin < seconds:
                warm_up(batch)
    fewest, most = pairs
    taken: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(taken) < fewest or (len(taken) < most and time.perf_counter() - begin < seconds):
        if len(taken) % 2:
            second = _seconds(step, batch)
            taken.append((_seconds(plain, batch), second))
        else:
            taken.append((_seconds(plain, batch), _seconds(step, batch)))
    return taken


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, middle and high."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _seconds(step: Step, batch: Any) -> float:
    device = next(leaf.device for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
    if device.type != "cuda":
        begin = time.perf_counter()
        step(batch)
        return time.perf_counter() - begin
    torch.cuda.synchronize(device)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    step(batch)
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3
