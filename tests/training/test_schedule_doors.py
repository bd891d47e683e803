"""What is given in place of a schedule is refused at every door, with what to give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from visualization.samples import plan_of

from batchopt.probing.task import TrainingTask
from batchopt.training.loader import ScheduledBatchSampler, scheduled_loader
from batchopt.training.train import train

PLAN: Any = plan_of()
TASK = TrainingTask(
    model=lambda: torch.nn.Linear(1, 1),
    data=(torch.ones(8, 1),),
    loss=lambda model, batch: model(batch[0])[:, 0].square(),
    optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    device="cpu",
)


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


@pytest.mark.parametrize(
    "door",
    [
        lambda schedule: train(TASK, schedule),
        lambda schedule: ScheduledBatchSampler(10, schedule),
        lambda schedule: scheduled_loader((torch.arange(10),), schedule),
    ],
)
def test_a_plan_or_a_file_s_name_is_no_schedule(door: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"Schedule or a batchopt\.AdaptiveSchedule, got Plan: give its \.schedule"):
        door(PLAN)
    with pytest.raises(TypeError, match=r"got str: load it with batchopt\.Schedule\.load\(path\)"):
        door("schedule.json")


def test_nor_for_a_stream() -> None:
    with pytest.raises(TypeError, match=r"must be a batchopt\.Schedule, got Plan: give its \.schedule"):
        scheduled_loader(Numbers(), PLAN)
