"""What each rank of a data-parallel training reads."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.loader import scheduled_loader
from batchopt.training.monitor import NoiseScaleMonitor

STEPS = 40
SIZE = 6


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def fails_on_the_second(model: Any, batch: Any) -> Tensor:
    if not isinstance(model, DistributedDataParallel) and torch.distributed.get_rank() == 1:
        raise OSError("the disk is gone")
    return loss(model, batch)


def draw(seed: int, rank: int, count: int) -> tuple[Tensor, Tensor]:
    """A rank's part of a step's batch; all of it for one that is alone."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * SIZE, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(2 * SIZE, generator=generator, dtype=torch.float64) > 0).long()
    share = slice(None) if count == 1 else slice(rank * SIZE, (rank + 1) * SIZE)
    return x[share], y[share]


class Partly(nn.Module):
    """Has a parameter that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def make(count: int) -> nn.Module:
    model = Partly()
    return DistributedDataParallel(model, find_unused_parameters=True) if count > 1 else model


def summary(monitor: NoiseScaleMonitor, model: nn.Module) -> dict[str, Any]:
    reading = monitor.reading
    return {
        "signal": None if reading is None else reading.signal,
        "noise": None if reading is None else reading.noise,
        "group_size": None if reading is None else reading.group_size,
        "failure": monitor.failure,
        "idle": [parameter.grad is None for parameter in model.parameters()],
        "weights": [parameter.sum().item() for parameter in model.parameters()],
    }


def whole_batches(of: Any, rank: int, count: int) -> dict[str, Any]:
    model = make(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = NoiseScaleMonitor(model, of, every=3, units="halves")
    monitor._is_norm_due = lambda: False  # type: ignore[method-assign]  # as in a training of several ranks
    for step in range(STEPS):
        optimizer.zero_grad()
        monitor.backward(draw(step, rank, count))
        optimizer.step()
    return summary(monitor, model)


def by_overhead(rank: int, count: int) -> dict[str, Any]:
    model = make(count)
    monitor = NoiseScaleMonitor(model, loss, overhead=0.3)
    due = []
    for step in range(STEPS):
        model.zero_grad()
        monitor.backward(draw(step, rank, count))
        due.append(monitor._next)
    return {"due": due}


def accumulated(rank: int, count: int, of_rank: int) -> dict[str, Any]:
    model = make(count)
    monitor = NoiseScaleMonitor(model, every=3)
    for step in range(STEPS):
        model.zero_grad()
        for part in range(3):
            synced = count == 1 or part == 2
            if count == 1 and part == 2:
                continue
            with contextlib.nullcontext() if synced else model.no_sync():  # type: ignore[operator]
                (loss(model, draw(10 * step + part, of_rank, 2)).mean() / 3).backward()
            monitor.micro_batch(SIZE)
        monitor._is_norm_due = lambda: False  # type: ignore[method-assign]
        monitor.step()
    return summary(monitor, model)


def added_up_by_hand(rank: int, count: int, weight: float) -> dict[str, Any]:
    """The loop adds the gradients up itself; one that is alone reads the same parts as micro-batches."""
    model = make(1)
    monitor = NoiseScaleMonitor(model, every=3, across_processes=True)
    for step in range(STEPS):
        model.zero_grad()
        for part in [rank] if count > 1 else [0, 1]:
            (weight * loss(model, draw(step, part, 2)).mean() / 2).backward()
            monitor.micro_batch(SIZE, weight=weight * SIZE)
        for parameter in model.parameters():
            if parameter.grad is not None and count > 1:
                torch.distributed.all_reduce(parameter.grad)
        # The losses were divided by the examples, not by their weight.
        monitor.step(2 * SIZE, weight=2 * SIZE * weight, divisor=2 * SIZE)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 / weight * parameter.grad
    return summary(monitor, model)


def by_schedule(rank: int, count: int) -> dict[str, Any]:
    """A training by a schedule whose last batch does not divide: the loss of every global batch, and the weights."""
    schedule = Schedule((Segment(0, 4), Segment(30, 8)), examples=117)
    data = draw(99, 0, 1)
    data = (data[0].repeat(5, 1) + torch.arange(60, dtype=torch.float64)[:, None] / 60, data[1].repeat(5))
    model = make(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch, weights in scheduled_loader(data, schedule, seed=3, rank=rank, ranks=count):
        optimizer.zero_grad()
        mean = (weights * loss(model, batch)).sum()
        mean.backward()
        optimizer.step()
        whole = mean.detach() / count
        if count > 1:
            torch.distributed.all_reduce(whole)
        losses.append(float(whole))
    return {"losses": losses, "weights": [parameter.sum().item() for parameter in model.parameters()]}


def answers(folder: Path) -> dict[str, Any]:
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {"whole": whole_batches(loss, rank, count)}
    found["accumulated"] = [accumulated(rank, count, of) for of in ([rank] if count > 1 else [0, 1])]
    if count > 1:
        found["overhead"] = by_overhead(rank, count)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found["one fails"] = whole_batches(fails_on_the_second, rank, count)
        found["warnings"] = sum("no longer read" in str(warning.message) for warning in caught)
    found["by hand"] = [added_up_by_hand(rank, count, weight) for weight in (1.0, 0.25)]
    if count > 1:
        broken = OSError("the disk is gone")
        with (
            patch("batchopt.training.monitor.read_whole", side_effect=broken) if rank == 1 else contextlib.nullcontext()
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found["norm fails"] = added_up_by_hand(rank, count, 1.0)
            found["norm warnings"] = sum("no longer read" in str(warning.message) for warning in caught)
    found["scheduled"] = by_schedule(rank, count)
    return found
