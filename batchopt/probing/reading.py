"""What is read of a model, and what a reader of it gives.

A reader turns a batch into the sums over its units that the noise scale needs; a unit is one example, or one group.

Notation
    w_u      weight of a unit: the example's, the sum of the group's; 1 where the loss gives no weights
    g_u      gradient of a unit's own mean loss, (parameters,)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt.errors import TaskError
from batchopt.probing.gradient_norms.wrappers import checkpoints_of_one_kind, without_compilation
from batchopt.probing.kinds.metric import Factors
from batchopt.probing.losses import Batch, Loss, per_example_losses
from batchopt.probing.moments import Gradients, GradientSums
from batchopt.probing.task import trainable_parameters


class GradientReader(Protocol):
    """Reads the gradients of a batch at the model's present weights and in its present mode."""

    @property
    def group_size(self) -> int:
        """Examples in a unit's gradient."""

    @property
    def drawn(self) -> int:
        """Examples that a unit takes of a batch."""

    @property
    def cost(self) -> int:
        """Examples' worth of gradients that a unit costs."""

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
        with without_compilation(), checkpoints_of_one_kind():
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
            name: torch.zeros_like(parameter) if gradient is None else gradient.to_dense().detach()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }


def rows(batch: Batch, count: int, begin: int, end: int) -> Batch:
    """Examples `begin` to `end` of a batch of `count`; what is not one row per example is passed on whole.

    Raises:
        TaskError: no tensor of the batch has `count` rows.
    """
    if begin == 0 and end == count:
        return batch
    leaves, structure = pytree.tree_flatten(batch)
    if not any(is_batched(leaf, count) for leaf in leaves):
        raise TaskError(
            "a batch must be tensors with one row per example, in tuples, lists and dicts, so it can be taken apart; "
            f"got {type(batch).__name__} without a tensor of {count} rows: let collate_fn make such a batch"
        )
    return pytree.tree_unflatten([leaf[begin:end] if is_batched(leaf, count) else leaf for leaf in leaves], structure)


def is_batched(leaf: Any, count: int) -> bool:
    """Whether a leaf of a batch of `count` examples holds one row per example."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == count
