"""The schedule's multipliers on an optimizer that a loop of one's own steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from batchopt import LearningRateSchedule, Schedule, Segment, scale_learning_rate

SCHEDULE = Schedule((Segment(0, 8), Segment(100, 16, 1.5), Segment(300, 32, 0.5)), examples=620)


def steps(
    make: Any = None, *, start: int = 0, count: int | None = None, fused: bool = False, **given: Any
) -> tuple[list[float], list[float]]:
    """How far each step of a gradient of 1 went, and the rate that is shown after it."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
    scheduler: LRScheduler | None = None if make is None else make(optimizer)
    hooks = scale_learning_rate(optimizer, SCHEDULE, start_examples=start, **given)
    moved, shown = [], []
    for _ in range(sum(1 for _ in SCHEDULE.batches(start)) if count is None else count):
        before = parameter.item()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        moved.append(before - parameter.item())
        shown.append(optimizer.param_groups[0]["lr"])
    for hook in hooks:
        hook.remove()
    before = parameter.item()
    optimizer.step()
    assert before - parameter.item() == pytest.approx(optimizer.param_groups[0]["lr"])
    return moved, shown


def expected(rate: Any, start: int = 0) -> list[float]:
    return [
        rate(i) * SCHEDULE.segment_at(seen).learning_rate_multiplier
        for i, (seen, _) in enumerate(SCHEDULE.batches(start))
    ]


@pytest.mark.parametrize("start", [0, 104, 600])
def test_every_step_is_multiplied_and_the_rate_is_left_as_it_was(start: int) -> None:
    moved, shown = steps(start=start)
    assert moved == pytest.approx(expected(lambda _: 0.1, start))
    assert set(shown) == {0.1}


def test_schedulers_of_both_kinds_go_on_from_their_own_rate() -> None:
    moved, _ = steps(lambda optimizer: StepLR(optimizer, 1, 0.9))
    assert moved == pytest.approx(expected(lambda i: 0.1 * 0.9**i))
    moved, _ = steps(lambda optimizer: LambdaLR(optimizer, lambda i: 1 / (1 + i)))
    assert moved == pytest.approx(expected(lambda i: 0.1 / (1 + i)))


def test_examples_that_are_given_are_not_counted() -> None:
    moved, _ = steps(examples_seen=lambda: 200, count=5)
    assert moved == pytest.approx([0.15] * 5)


@pytest.mark.parametrize("start", [0, 104])
def test_warm_up_and_decay_are_taken_in_the_middle_of_a_step(start: int) -> None:
    rates = LearningRateSchedule.of("linear", examples=620, warmup_examples=60)
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    falling = replace(SCHEDULE, learning_rate_schedule=rates)
    scale_learning_rate(optimizer, falling, start_examples=start)
    for seen, size in SCHEDULE.batches(start):  # the last step is cut short to 12 examples
        before = parameter.item()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        middle = seen + size / 2
        curve = middle / 60 if middle < 60 else (620 - middle) / 560
        assert before - parameter.item() == pytest.approx(
            0.1 * SCHEDULE.segment_at(seen).learning_rate_multiplier * curve
        )
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_wrong_arguments() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match="schedule must be a batchopt"):
        scale_learning_rate(optimizer, "schedule.json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start_examples must be at most the schedule's 620"):
        scale_learning_rate(optimizer, SCHEDULE, start_examples=700)
