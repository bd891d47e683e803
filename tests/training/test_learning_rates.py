"""Schedulers of torch, read by progress."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from batchopt import Schedule, Segment, TrainingTask, learning_rate_by_progress, train
from batchopt.probing.run import TrainingRun

STEPS = 200


def warm_up_and_cosine(optimizer: Optimizer) -> LRScheduler:
    parts = [LinearLR(optimizer, 0.1, 1.0, 20), CosineAnnealingLR(optimizer, STEPS - 20)]
    return SequentialLR(optimizer, parts, milestones=[20])


def stable_then_decay(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: min(1.0, 5.0 * (1.0 - step / STEPS)))


@pytest.mark.parametrize(
    "make",
    [
        warm_up_and_cosine,
        stable_then_decay,
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, STEPS // 4),
        lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=STEPS, anneal_strategy="linear"),
    ],
)
def test_at_a_constant_batch_size_it_is_torchs_own(make: Callable[[Optimizer], LRScheduler]) -> None:
    multiplier = learning_rate_by_progress(make, steps=STEPS)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    for step in range(STEPS):
        assert multiplier((step + 0.5) / STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        last = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()
    assert multiplier(1.0) == pytest.approx(last, abs=1e-9)


def test_the_decay_ends_with_the_run_whatever_its_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    take = TrainingRun.step

    def seen(run: TrainingRun, *args: object, **given: object) -> float:
        value = take(run, *args, **given)  # type: ignore[arg-type]
        rates.append(float(run.optimizer.param_groups[0]["lr"]))
        return value

    monkeypatch.setattr(TrainingRun, "step", seen)
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    task = TrainingTask(
        model=lambda: nn.Linear(3, 1),
        data=(x, x.sum(1)),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square() + 1.0,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        learning_rate_schedule=learning_rate_by_progress(lambda o: CosineAnnealingLR(o, 4_096), steps=4_096),
        device="cpu",
    )
    for segments in ((Segment(0, 8),), (Segment(0, 8), Segment(2_000, 32), Segment(3_000, 64))):
        rates.clear()
        schedule = Schedule(segments, 4_096, 0.1)
        train(task, schedule)
        steps = list(schedule.batches())
        wanted = [0.05 * (1.0 + math.cos(math.pi * (seen + 0.5 * size) / 4_096)) for seen, size in steps]
        assert rates == pytest.approx(wanted, abs=2.5e-5)  # half a step of 4,096
        assert rates[-1] < 1e-4


def test_schedulers_that_cannot_be_read() -> None:
    with pytest.raises(TypeError, match="that only counts steps, got ReduceLROnPlateau"):
        learning_rate_by_progress(ReduceLROnPlateau, steps=10)
    with pytest.raises(TypeError, match="got float"):
        learning_rate_by_progress(lambda _: 0.1, steps=10)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"must be zero or more, got -0\.1\d* at step 4"):
        learning_rate_by_progress(lambda o: LambdaLR(o, lambda step: 1.0 - 0.3 * step), steps=10)
