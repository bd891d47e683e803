"""Gradients of a model that is sharded over processes: of groups of examples, each process with its part of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.gradient_norms.uses import wide
from batchopt.probing.losses import Batch
from batchopt.probing.moments import GradientSums
from batchopt.probing.reading import Reading, rows
from batchopt.probing.sharding import own_part
from batchopt.probing.task import trainable_parameters

KINDS = ("simple", "preconditioned")
"""Of noise scales that can be read so: single coordinates and curvature are nowhere whole."""


class ShardedGroupGradients:
    """One unit per `group_size` examples, of which every process takes an equal share.

    All processes must read the same batches. A unit's total is this process's part; its square is of the whole.

    Args:
        reading: what to read; its metric's factors are this process's parts.
        group: the processes.
        group_size: examples of a unit; rounded up to a multiple of the processes.
    """

    def __init__(self, reading: Reading, group: DefaultGroup, *, group_size: int) -> None:
        self._reading, self._group = reading, group
        self._share = -(-group_size // group.count)
        self.group_size = self.drawn = self.cost = self._share * group.count

    @property
    def method(self) -> str:
        """How gradients are taken, in words."""
        return (
            f"mean gradients of groups of {self.group_size} examples (the model is sharded over {self._group.count} "
            "processes)"
        )

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the groups of a batch."""
        begins = range(self._group.rank * self._share, count - count % self.group_size, self.group_size)
        return reduce(add, (self._unit(rows(batch, count, begin, begin + self._share)) for begin in begins))

    def _unit(self, batch: Batch) -> GradientSums:
        parameters = trainable_parameters(self._reading.model)
        for parameter in parameters.values():
            parameter.grad = None
        losses, given = self._reading.losses(batch)
        weights = torch.ones_like(losses) if given is None else given
        weight = float(self._group.add_up(weights.sum().double()))
        if weight <= 0:
            raise TaskError(
                f"the weights of a group of {self.group_size} examples must add up to more than 0, got {weight:g}: "
                "give a larger group_size"
            )
        # What the wrapper leaves is the mean over processes.
        objective = (weights * losses).sum() * (self._group.count / weight)
        if not objective.requires_grad:
            raise TaskError("the loss must depend on the model's trainable parameters, and it is detached from them")
        objective.backward()  # type: ignore[no-untyped-call]
        gradient = self._in_metric(parameters)
        square = float(self._group.add_up(gradient.double().square().sum()))
        if not math.isfinite(square):
            raise NonFiniteLossError("a gradient is NaN or infinite: look for what is not finite in data or loss")
        if given is None:
            return GradientSums(1, 1.0, 1.0, gradient, None, square)
        return GradientSums(1, weight, weight**2, weight * gradient, weight**2 * gradient, weight**2 * square)

    def _in_metric(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """This process's part of the gradient."""
        factors = self._reading.factors or [torch.ones(())] * len(parameters)
        parts = []
        for parameter, factor in zip(parameters.values(), factors, strict=True):
            own = own_part(parameter.detach() if parameter.grad is None else parameter.grad)
            gradient = torch.zeros_like(own) if parameter.grad is None else own
            parts.append((wide(gradient) * factor.to(own.device)).flatten())
        return torch.cat(parts)


def check_sharding(model: nn.Module, group: DefaultGroup | None) -> None:
    """Raise unless FSDP2 shards every trainable parameter over all processes, so that each coordinate is in one.

    Raises:
        TaskError: naming the parameter.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import Shard

    rule = "a sharded model must have every trainable parameter sharded over all processes by fully_shard"
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        raise TaskError(f"{rule}, and no module of it is (tensor parallelism is not supported)")
    count = 0 if group is None else group.count
    for name, parameter in trainable_parameters(model).items():
        mesh, how = getattr(parameter, "device_mesh", None), tuple(getattr(parameter, "placements", ()))
        if mesh is None or mesh.size() != count or len(how) != 1 or not isinstance(how[0], Shard):
            raise TaskError(f"{rule}, and {name!r} is {f'{how} on {mesh}' if how else 'whole'} among {count}")
