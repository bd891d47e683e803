"""The ways in which a training step can be read, each with what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch

from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.gradients import coupling_module, make_reader
from batchopt.probing.losses import Batch, Loss, batch_loss, rows_of
from batchopt.probing.reading import GradientReader, Reading
from batchopt.training.pace import Pace
from batchopt.training.rank_gradients import read_ranks
from batchopt.training.unit_gradients import (
    Pending,
    Step,
    add_gradients,
    moments_of_examples,
    read_halves,
    unflatten,
)

GIVEN_UP_AFTER = 3
"""Failures in a row; a last batch of an odd size may fail once in a while."""


class Way(ABC):
    """A way of taking the gradient of a step's batch in parts."""

    name: str
    method: str
    """In words."""
    variance: float
    """Variance of what a reading says, relative to that of single examples."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.failures = 0

    def is_possible(self, step: Step) -> bool:
        """Whether it can read the model in its present mode."""
        del step
        return self.failures < GIVEN_UP_AFTER

    @abstractmethod
    def read(self, step: Step, batch: Batch) -> tuple[Tensor, Pending]:
        """Add the batch's gradient to `.grad`; its loss, and what its parts say.

        Raises:
            Exception: anything; `.grad` is then as it was.
        """

    def saw_plain(self, step: Step) -> None:
        """A plain step has left its gradients."""
        del step


class Halves(Way):
    """Two halves of the batch, a forward and backward pass each."""

    name = "halves"
    method = "the two halves of a step's batch"
    variance = 2.0

    def read(self, step: Step, batch: Batch) -> tuple[Tensor, Pending]:
        """As `Way.read`."""
        return read_halves(step, batch)


class Examples(Way):
    """Norms of single examples, and the sum of their gradients."""

    name = "examples"
    method = "the examples of a step's batch"
    variance = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._reading: tuple[tuple[torch.dtype | None, int], _HeardLosses, GradientReader] | None = None
        self._unused: frozenset[int] = frozenset()

    def is_possible(self, step: Step) -> bool:
        """Not where BatchNorm couples examples, nor in float16, where single gradients underflow without scaling."""
        return super().is_possible(step) and step.scaler is None and coupling_module(step.model) is None

    def read(self, step: Step, batch: Batch) -> tuple[Tensor, Pending]:
        """As `Way.read`."""
        count = rows_of(batch)
        heard, reader = self._reader(step)
        heard.parts.clear()
        sums = reader.read(batch, count)
        moments = moments_of_examples(sums)
        value = heard.value(count)
        if value is None:
            with torch.no_grad():
                value = batch_loss(*step.losses(batch))
        parameters = step.parameters()
        used = [k not in self._unused for k in range(len(parameters))]
        add_gradients(parameters, unflatten(sums.total / sums.weights, parameters, used))
        return value, Pending.known(moments)

    def saw_plain(self, step: Step) -> None:
        """Note which parameters the loss does not depend on: their `.grad` stays None, as it would have."""
        self._unused = frozenset(k for k, parameter in enumerate(step.parameters()) if parameter.grad is None)

    def _reader(self, step: Step) -> tuple[_HeardLosses, GradientReader]:
        """A new one where the mixed precision or what is trained is another than before."""
        wanted = step.autocast, len(step.parameters())
        if self._reading is None or self._reading[0] != wanted:
            heard = _HeardLosses(step.loss)
            reader = make_reader(Reading(step.model, heard, step.device, step.autocast), group_size=None)
            self._reading = wanted, heard, reader
        return self._reading[1:]


class RankGradients(Way):
    """What each rank holds of the batch, before the mean over ranks is taken.

    Args:
        group: the ranks.
    """

    name = "ranks"
    method = "the ranks' parts of a step's batch"
    variance = 1.0

    def __init__(self, group: DefaultGroup) -> None:
        super().__init__()
        self._group = group

    def read(self, step: Step, batch: Batch) -> tuple[Tensor, Pending]:
        """As `Way.read`; it fails on all ranks where it fails on one."""
        return read_ranks(step, batch, self._group)


def ways_of(units: str, group: DefaultGroup | None) -> list[Way]:
    """The ways to try."""
    if group is not None:
        return [RankGradients(group)]
    ways: dict[str, list[type[Way]]] = {"halves": [Halves], "examples": [Examples], "auto": [Halves, Examples]}
    return [way() for way in ways[units]]


def choose(ways: Collection[Way], step: Step) -> Way | None:
    """The way that says most for its time, once all have been tried; None where none is left."""
    possible = [way for way in ways if way.is_possible(step)]
    untried = [way for way in possible if not way.pace.is_known]
    if untried:
        return min(untried, key=lambda way: way.pace.seen)
    return min(possible, key=lambda way: way.pace.cost * way.variance, default=None)


class _HeardLosses:
    """A loss that remembers what it returned, so that a reading need not evaluate it again."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self.parts: list[tuple[Tensor, Tensor | None]] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        result = self._loss(model, batch)
        losses, weights = result if isinstance(result, tuple) else (result, None)
        if isinstance(losses, Tensor):
            self.parts.append((_of_all(losses), None if weights is None else _of_all(weights)))
        return result

    def value(self, count: int) -> Tensor | None:
        """The loss of a batch of `count` examples; None where not all of them were heard exactly once."""
        if sum(len(losses) for losses, _ in self.parts) != count:
            return None
        weights = [weights for _, weights in self.parts if weights is not None]
        return batch_loss(torch.cat([losses for losses, _ in self.parts]), torch.cat(weights) if weights else None)


def _of_all(values: Tensor) -> Tensor:
    """The values of all examples, also where `torch.vmap` shows one of them."""
    plain = functorch.get_unwrapped(values) if functorch.is_batchedtensor(values) else values
    return plain.detach().flatten().float()
