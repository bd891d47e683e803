"""What `batchopt doctor` finds out about a task, and what its checks share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn

from batchopt.probing.data import available, fetch, order_of
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.state import OwnRandomness
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

State = Literal["ok", "warning", "error", "skipped"]
LOOKED_AT = 256
"""Examples that are looked at where looking at all of them would take long."""
USUAL_BATCH = 64
"""Batch size of what is timed and compared."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        state: whether it is well.
        words: what was found.
        remedy: what to do; empty where there is nothing to.
    """

    check: str
    state: State
    words: str
    remedy: str = ""


@dataclass
class Subject:
    """A task under examination, with what one check has made and another one needs."""

    task: TrainingTask
    seed: int
    cost: StepCost | None = None
    classes: int | None = None

    @cached_property
    def model(self) -> nn.Module:
        """A model of the task, in training mode."""
        with OwnRandomness(self.seed, device=self.task.torch_device, host=True).active():
            return self.task.make_model().train()

    @property
    def acts(self) -> bool:
        """Whether the model makes its own data."""
        return isinstance(self.task.data, Rollouts)

    @property
    def batch_size(self) -> int:
        """The usual one, or what half of the data allow."""
        return max(1, min(USUAL_BATCH, available(self.task.data) // 2))

    @property
    def learning_rate(self) -> float:
        """Of the task's prior, or a small one with which few models diverge at once."""
        return 1e-3 if self.task.prior is None else self.task.prior[1]

    def batch(self, count: int) -> Any:
        """A batch of the task's first `count` examples by the seed."""
        return fetch(self.task, order_of(self.task.data, seed=self.seed, start=0, count=count))
