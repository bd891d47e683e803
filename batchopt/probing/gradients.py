"""Gradients of a batch's examples, or of small groups where a model couples the examples of a batch.

New ways of reading implement `GradientReader` and are chosen in `make_reader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchopt.errors import TaskError
from batchopt.probing.kinds.hessian import CurvatureReader
from batchopt.probing.losses import Batch, Loss, batch_loss, rows_of
from batchopt.probing.moments import GradientSums, sum_gradients
from batchopt.probing.per_example import FIRST_CHUNK, PerExampleGradients
from batchopt.probing.reading import GradientReader, Reading, rows
from batchopt.probing.state import preserved
from batchopt.probing.task import unwrapped, whole_parameters


class GroupGradients:
    """One unit per `group_size` examples: one backward pass of the group's (weighted) mean loss.

    Args:
        reading: what to read.
        group_size: examples of a unit.
        reason: why groups are read, in words.
    """

    def __init__(self, reading: Reading, *, group_size: int, reason: str) -> None:
        self._reading = reading
        self._reason = reason
        self.group_size = self.drawn = self.cost = group_size

    @property
    def method(self) -> str:
        """How gradients are taken, in words."""
        return f"mean gradients of groups of {self.group_size} examples ({self._reason})"

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the groups of a batch."""
        if count < self.group_size:
            raise TaskError(f"a batch must hold at least one group of {self.group_size} examples, got {count} examples")
        begins = range(0, count - self.group_size + 1, self.group_size)
        return reduce(add, (self._unit(rows(batch, count, begin, begin + self.group_size)) for begin in begins))

    def _unit(self, batch: Batch) -> GradientSums:
        losses, weights = self._reading.losses(batch)
        mean = self._reading.gradients(batch_loss(losses, weights))
        gradients = self._reading.in_metric({name: gradient[None] for name, gradient in mean.items()})
        return sum_gradients(gradients, None if weights is None else weights.sum()[None])


def make_reader(
    reading: Reading, *, group_size: int | None, default_group: int = 32, curved: bool = False
) -> GradientReader:
    """The reader for a model.

    Args:
        reading: what to read.
        group_size: examples per unit; None reads single examples where the model allows it.
        default_group: group size where the model does not allow it, or curvature is measured.
        curved: whether every gradient is multiplied with a Hessian.

    Raises:
        ValueError: single examples were asked for and the model couples the examples of a batch.
    """
    coupling = coupling_module(reading.model)
    if coupling is not None and group_size == 1:
        raise ValueError(
            f"group_size must be at least 2 with {coupling} in training mode, got 1: a batch of one has no variance"
        )
    if curved:
        return CurvatureReader(reading, group_size=group_size or default_group)
    if coupling is not None:
        reason = f"{coupling} in training mode couples the examples of a batch"
        return GroupGradients(reading, group_size=group_size or default_group, reason=reason)
    if group_size is not None and group_size > 1:
        return GroupGradients(reading, group_size=group_size, reason="as asked")
    return PerExampleGradients(reading)


def coupling_module(model: nn.Module) -> str | None:
    """Type and name of the first BatchNorm layer that normalises by the batch; None if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return f"{type(module).__name__} {name!r}"
    return None


def per_example_squared_norms(model: nn.Module, loss: Loss, batch: Batch) -> Tensor:
    """Squared norms of the gradients of the examples' own losses, in the model's present mode.

    Weights that the loss gives are ignored. Parameters, `.grad`, buffers, modes and random generators are afterwards as
    they were.

    Args:
        model: parameters that do not require a gradient are left out.
        loss: (model, batch) -> losses of shape (batch,), or (losses, weights).
        batch: tensors whose first dimension is the example, in any nesting of tuples, lists and dicts; on the model's
            device.

    Returns:
        |grad l_i|^2 for every example, shape (batch,).

    Raises:
        TaskError: the loss does not return one value per example, or the model has BatchNorm in training mode, where an
            example has no gradient of its own.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> per_example_squared_norms(model, lambda model, batch: model(batch[0])[:, 0], (x,))
        tensor([25.,  4.])
    """
    coupling = coupling_module(model)
    if coupling is not None:
        raise TaskError(
            f"{coupling} couples the examples of a batch, so none has its own gradient: call model.eval() first"
        )
    reading = _as_called(model, loss)
    with preserved(reading.model), torch.enable_grad():
        return PerExampleGradients(reading).squared_norms(batch, rows_of(batch))


def _as_called(model: nn.Module, loss: Loss) -> Reading:
    """What to read of a model in the caller's own mixed precision."""
    inner = unwrapped(model)
    device = next(iter(whole_parameters(inner).values())).device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return Reading(inner, loss, device, autocast)


@dataclass(frozen=True, slots=True)
class GradientCoverage:
    """How the gradients of single examples are taken; printed, one parameter a line.

    Attributes:
        method: for the model as a whole, and why no better one.
        ways: parameter -> how its squared norms are taken; empty where examples have no gradients of their own.
    """

    method: str
    ways: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.ways), default=0)
        return "\n".join([self.method, *(f"  {name:{width}}  {way}" for name, way in self.ways.items())])


def gradient_coverage(model: nn.Module, loss: Loss, batch: Batch) -> GradientCoverage:
    """Which way the gradients of a model's single examples are taken, parameter by parameter, and why.

    Args:
        model: parameters that do not require a gradient are left out.
        loss: (model, batch) -> losses of shape (batch,), or (losses, weights).
        batch: as for `per_example_squared_norms`; the first few examples are read.

    Raises:
        TaskError: the loss does not return one value per example.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> print(gradient_coverage(model, lambda model, batch: model(batch[0])[:, 0], (torch.ones(4, 2),)))
        per-example gradients, all examples in one pass
          0.weight  norms of inputs times norms of output gradients
          0.bias    sums over positions
          2.weight  norms of inputs times norms of output gradients
          2.bias    sums over positions
    """
    reading = _as_called(model, loss)
    count = rows_of(batch)
    reader = make_reader(reading, group_size=None)
    if not isinstance(reader, PerExampleGradients):
        return GradientCoverage(reader.method, {})
    few = min(count, FIRST_CHUNK)
    with preserved(reading.model), torch.enable_grad():
        reader.read(rows(batch, count, 0, few), few)
    return GradientCoverage(reader.method, reader.ways)
