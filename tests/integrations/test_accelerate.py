"""A loop of one's own with Accelerate, by the real package."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.loader import scheduled_loader
from batchopt.training.multipliers import scale_learning_rate

accelerate = pytest.importorskip("accelerate")

SCHEDULE = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32)), examples=620)


def test_model_and_optimizer_are_prepared_and_the_loader_is_not() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / SCHEDULE.steps)
    model, optimizer, decay = accelerator.prepare(model, optimizer, decay)
    loader = scheduled_loader(
        (torch.ones(100, 1),), SCHEDULE, rank=accelerator.process_index, ranks=accelerator.num_processes
    )
    sizes, gradients = [], []
    for (x,), weights in loader:
        optimizer.zero_grad()
        accelerator.backward((weights * model(x)[:, 0]).sum())
        sizes.append(len(x))
        gradients.append(float(next(model.parameters()).grad))
        optimizer.step()
        decay.step()
    assert sizes == [size for _, size in SCHEDULE.batches()]
    assert gradients == pytest.approx([1.0] * SCHEDULE.steps)
    assert decay.get_last_lr() == pytest.approx([0.0])


def test_warm_up_and_decay_are_those_of_the_schedule() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    schedule = replace(
        SCHEDULE, learning_rate_schedule=LearningRateSchedule.of("linear", examples=620, warmup_examples=100)
    )
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scale_learning_rate(optimizer, schedule)
    model, optimizer = accelerator.prepare(model, optimizer)
    for (x,), weights in scheduled_loader((torch.ones(100, 1),), schedule, rank=0, ranks=1):
        optimizer.zero_grad()
        accelerator.backward((weights * model(x)[:, 0]).sum())
        optimizer.step()
    moved = sum(0.1 * schedule.multiplier_of(seen, size) for seen, size in schedule.batches())
    assert float(next(model.parameters())) == pytest.approx(-moved, rel=1e-5)
