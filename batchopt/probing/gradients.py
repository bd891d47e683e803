"""Gradients of single examples, or of small groups where a model couples the examples of a batch.

A reader turns a batch into the sums over its units that the noise scale needs; a unit is one example, or one group. New
ways of reading (per-layer norms, say) implement `GradientReader` and are chosen in `make_reader`.

Notation
    w_u      weight of a unit: the example's, the sum of the group's; 1 where the loss gives no weights
    g_u      gradient of a unit's own mean loss, (parameters,)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from batchopt.errors import TaskError
from batchopt.probing.kinds import Factors
from batchopt.probing.moments import Gradients, GradientSums, sum_gradients, wide
from batchopt.probing.state import preserved
from batchopt.probing.task import Batch, Loss, batch_loss, per_example_losses, trainable_parameters

CHUNK_BYTES = 256 * 2**20
"""Stacked per-example gradients take at most about this much memory at once."""
LARGEST_CHUNK = 256


class GradientReader(Protocol):
    """Reads the gradients of a batch at the model's present weights and in its present mode."""

    @property
    def group_size(self) -> int:
        """Examples in a unit."""

    @property
    def method(self) -> str:
        """How gradients are taken, in words; settled once a batch has been read."""

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the units of a batch of `count` examples; examples that do not fill a unit are left out.

        Raises:
            TaskError: the loss does not return one value per example, or the batch cannot be taken apart.
            NonFiniteLossError: a gradient is NaN or infinite.
        """


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader reads: the loss of a model, in a metric.

    Attributes:
        model: at the weights and in the mode to measure.
        loss: (model, batch) -> losses, or (losses, weights).
        device: where model and batches are.
        autocast: dtype of mixed precision, or None.
        factors: of the metric of a noise-scale kind, one for each trainable parameter; None for the identity.
    """

    model: nn.Module
    loss: Loss
    device: torch.device
    autocast: torch.dtype | None = None
    factors: Factors = None

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Checked losses and weights of a batch."""
        return per_example_losses(self.model, self.loss, batch, device=self.device, autocast=self.autocast)

    def in_metric(self, gradients: Gradients) -> Gradients:
        """Stacked gradients, multiplied by the metric's factors."""
        if self.factors is None:
            return gradients
        return {name: g * factor for (name, g), factor in zip(gradients.items(), self.factors, strict=True)}

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a scalar by one backward pass; zero for parameters that it does not depend on."""
        if not loss.requires_grad:
            raise TaskError("the loss must depend on the model's trainable parameters, and it is detached from them")
        parameters = trainable_parameters(self.model)
        gradients = torch.autograd.grad(loss, tuple(parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient.detach()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }


class PerExampleGradients:
    """One unit per example: `torch.func` over chunks of the batch, or one backward pass each where that fails.

    Recurrent layers on a CPU, `.item()` and control flow that depends on data cannot be vectorised; the first failure
    decides for the rest. Dropout is drawn anew for every example.
    """

    group_size = 1

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parameters = {name: p.detach() for name, p in trainable_parameters(reading.model).items()}
        self._module = _LossModule(reading)
        self._failure: str | None = None
        itemsize = max(p.element_size() for p in self._parameters.values())
        gradient_bytes = itemsize * sum(p.numel() for p in self._parameters.values())
        self._chunk = max(1, min(LARGEST_CHUNK, CHUNK_BYTES // gradient_bytes))

    @property
    def method(self) -> str:
        """How gradients are taken, in words."""
        if self._failure is None:
            return "per-example gradients, vectorised by torch.func"
        return f"per-example gradients, one backward pass each (torch.func failed: {self._failure})"

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the examples of a batch."""
        parts = self.stacked(batch, count)
        return reduce(add, (sum_gradients(self._reading.in_metric(g), weights) for g, weights in parts))

    def stacked(self, batch: Batch, count: int) -> Iterator[tuple[Gradients, Tensor | None]]:
        """Gradients of the examples' own losses in the batch's order, some at a time, with their weights."""
        # Read off the whole batch: in a chunk, another tensor may happen to have as many rows.
        batched = [k for k, leaf in enumerate(pytree.tree_leaves(batch)) if _is_batched(leaf, count)]
        begin = 0
        while begin < count:
            end = min(begin + self._chunk, count)
            part = self._chunk_gradients(rows(batch, count, begin, end), end - begin, batched)
            if part is not None:
                yield part
                begin = end

    def _chunk_gradients(self, batch: Batch, count: int, batched: list[int]) -> tuple[Gradients, Tensor | None] | None:
        """Gradients and weights of a chunk; None where it has to be tried again in smaller ones."""
        if self._failure is None:
            try:
                return self._vectorised(batch, batched)
            except TaskError:
                raise
            except torch.cuda.OutOfMemoryError:
                if count == 1:
                    raise
                self._chunk = count // 2
                torch.cuda.empty_cache()
            except (
                Exception
            ) as error:  # whatever torch.func cannot follow; an error of the loss itself comes again below
                self._failure, self._chunk = type(error).__name__, 1
            return None
        losses, weights = self._reading.losses(batch)
        return {name: g[None] for name, g in self._reading.gradients(losses[0]).items()}, weights

    def _vectorised(self, batch: Batch, batched: list[int]) -> tuple[Gradients, Tensor | None]:
        leaves, structure = pytree.tree_flatten(batch)
        weighted = False

        def loss_of_one(parameters: dict[str, Tensor], *example: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal weighted
            one = list(leaves)
            for k, leaf in zip(batched, example, strict=True):
                one[k] = leaf[None]
            named = {f"model.{name}": parameter for name, parameter in parameters.items()}
            losses, weights = torch.func.functional_call(self._module, named, (pytree.tree_unflatten(one, structure),))
            weighted = weights is not None
            return losses[0], torch.ones_like(losses[0]) if weights is None else weights[0]

        in_dims = (None, *(0 for _ in batched))
        gradient = torch.func.grad(loss_of_one, has_aux=True)
        gradients, weights = torch.func.vmap(gradient, in_dims=in_dims, randomness="different")(
            self._parameters, *(leaves[k] for k in batched)
        )
        return gradients, weights if weighted else None


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
        self.group_size = group_size

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


class _LossModule(nn.Module):
    """The loss as a module that holds the model, so that `functional_call` gives it other parameters."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.model = reading.model
        self._reading = reading

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self._reading.losses(batch)


def make_reader(reading: Reading, *, group_size: int | None, default_group: int = 32) -> GradientReader:
    """The reader for a model.

    Args:
        reading: what to read.
        group_size: examples per unit; None reads single examples where the model allows it.
        default_group: group size where the model does not allow it.

    Raises:
        ValueError: single examples were asked for and the model couples the examples of a batch.
    """
    coupling = coupling_module(reading.model)
    if coupling is not None and group_size == 1:
        raise ValueError(
            f"group_size must be at least 2 with {coupling} in training mode, got 1: a batch of one has no variance"
        )
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
    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device
    reader = PerExampleGradients(Reading(model, loss, device))
    with preserved(model), torch.enable_grad():
        parts = [_squared_norms(gradients) for gradients, _ in reader.stacked(batch, batch_size_of(batch))]
    return torch.cat(parts)


def rows(batch: Batch, count: int, begin: int, end: int) -> Batch:
    """Examples `begin` to `end` of a batch of `count`; what is not one row per example is passed on whole.

    Raises:
        TaskError: no tensor of the batch has `count` rows.
    """
    if begin == 0 and end == count:
        return batch
    leaves, structure = pytree.tree_flatten(batch)
    if not any(_is_batched(leaf, count) for leaf in leaves):
        raise TaskError(
            "a batch must be tensors with one row per example, in tuples, lists and dicts, so it can be taken apart; "
            f"got {type(batch).__name__} without a tensor of {count} rows: let collate_fn make such a batch"
        )
    return pytree.tree_unflatten([leaf[begin:end] if _is_batched(leaf, count) else leaf for leaf in leaves], structure)


def batch_size_of(batch: Batch) -> int:
    """Rows of the first tensor of a batch.

    Raises:
        TaskError: the batch holds no tensor with rows.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf)
    raise TaskError(f"a batch must hold a tensor with one row per example, got {type(batch).__name__} without one")


def _is_batched(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == count


def _squared_norms(gradients: Gradients) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(wide(g).flatten(1), dim=1).square() for g in gradients.values()]).sum(
        0
    )
