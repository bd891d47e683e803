"""The loss of a batch and of its examples: what a task's loss may return, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt.errors import TaskError

Batch = Any
"""Tuple of tensors for data given as tensors, else whatever the collate function makes."""
Loss = Callable[[Any, Batch], "Tensor | tuple[Tensor, Tensor]"]
"""(model, batch) -> losses of shape (batch,), or (losses, weights), both of shape (batch,), or their mean."""
Metric = Callable[[Any, Batch], "Tensor | tuple[Tensor, Tensor]"]
"""(model, batch) -> values of shape (batch,), one per example, or (values, weights), both of shape (batch,)."""


def per_example_losses(
    model: nn.Module, loss: Loss, batch: Batch, *, device: torch.device, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Losses of a batch, checked, and their weights (None where the loss gives none).

    Args:
        model: handed to the loss.
        loss: (model, batch) -> losses, or (losses, weights), or their (weighted) mean in place of the losses.
        batch: tensors whose first dimension is the example, in any nesting of tuples, lists and dicts.
        device: of the model, for autocast.
        autocast: dtype of mixed precision; None for none.

    Returns:
        Losses of shape (batch,), in float32 under autocast, and weights of the same shape or None. A mean is taken as
        the loss of every example (`is_mean`): right for the batch, and for an example that is a batch of its own.

    Raises:
        TaskError: the loss does not return one value per example or their mean, or weights of another shape.
    """
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        result = loss(model, batch)
    losses, weights = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if isinstance(losses, Tensor) and losses.ndim == 0:
        losses = losses.expand(rows_of(batch))
    _check_losses(losses, batch)
    if weights is not None:
        if not isinstance(weights, Tensor) or weights.shape != losses.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise TaskError(f"one weight per example is needed, shape {tuple(losses.shape)} like the losses, got {got}")
        weights = weights.detach().to(losses.device)
    if autocast is not None:
        losses = losses[:1].float().expand(len(losses)) if is_mean(losses) else losses.float()
    return losses, None if weights is None else weights.to(losses.dtype)


def metric_values(name: str, values: object, losses: Tensor) -> tuple[Tensor, Tensor]:
    """What a metric gave for a batch, checked: its values and their weights, both of shape (batch,), in float64.

    Args:
        name: of the metric.
        values: what it gave: values of shape (batch,) of any type, or (values, weights).
        losses: of the same batch, (batch,).

    Raises:
        TaskError: there is not one value per example.
    """
    given = values if isinstance(values, tuple) and len(values) == 2 else (values, torch.ones_like(losses))
    checked = []
    for what, each in zip(("value", "weight"), given, strict=True):
        if not isinstance(each, Tensor) or each.shape != losses.shape:
            got = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            raise TaskError(
                f"metric {name!r} must return one {what} per example, a tensor of shape {tuple(losses.shape)} for this "
                f"batch, got {got}: leave out the mean, as in (model(batch[0]).argmax(1) == batch[1])"
            )
        checked.append(each.detach().double())
    return checked[0], checked[1]


def batch_loss(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of a batch: sum(w l) / sum(w), the mean where there are no weights."""
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def is_mean(losses: Tensor) -> bool:
    """Whether losses that `per_example_losses` gave are their mean only."""
    return len(losses) > 1 and losses.stride(0) == 0


def check_counts(losses: Tensor, counts: Tensor) -> None:
    """Raise TaskError where a mean is over examples that do not count: they fill up a process's share of a batch."""
    if is_mean(losses) and not bool(counts.all()):
        raise TaskError(
            "in several processes a batch that does not divide by their number needs a loss for each example, and the "
            "loss is one number: return each example's own (reduction='none')"
        )


def tolerance_in(autocast: torch.dtype | None) -> float:
    """By which losses of the same examples may differ from one batch to another, as a share of the largest."""
    return 1e-3 if autocast is None else 5e-2


def check_mean(together: Tensor, alone: Sequence[tuple[Tensor, Tensor | None]], *, tolerance: float) -> None:
    """Raise TaskError unless a loss that is one number is the (weighted) mean over the batch.

    Args:
        together: losses of a batch.
        alone: losses and weights of each of its examples as a batch of its own.
        tolerance: by which they may differ, as a share of the largest.
    """
    losses = torch.cat([loss for loss, _ in alone])
    weights = torch.cat([torch.ones_like(loss) if weight is None else weight for loss, weight in alone])
    number, mean = float(together[0].detach()), float(batch_loss(losses, weights))
    if abs(number - mean) > tolerance * float(losses.abs().max()):
        raise TaskError(
            f"a loss that is one number must be the mean over the batch's examples, and it is {number:.6g} for a "
            f"batch of {len(losses)} whose examples have {mean:.6g} in the mean: return each example's own loss "
            "(reduction='none'), with weights where examples count by their unmasked tokens"
        )


def rows_of(batch: Batch) -> int:
    """Rows that most tensors of a batch have; of equally many the first's.

    Raises:
        TaskError: the batch holds no tensor with rows.
    """
    lengths = [len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not lengths:
        raise TaskError(f"a batch must hold a tensor with one row per example, got {type(batch).__name__} without one")
    return max(lengths, key=lengths.count)


def batch_lengths(batch: Batch) -> set[int]:
    """Lengths of the first dimensions of all tensors in a batch."""
    return {len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0}


def _check_losses(losses: object, batch: Batch) -> None:
    if not isinstance(losses, Tensor):
        raise TaskError(f"the loss must return a tensor of one value per example, got {type(losses).__name__}")
    rule = "the loss must return one value per example"
    remedy = "use reduction='none' and average over all dimensions but the first"
    if losses.ndim != 1:
        raise TaskError(f"{rule}, a tensor of shape (batch,), got shape {tuple(losses.shape)}: {remedy}")
    lengths = batch_lengths(batch)
    if lengths and len(losses) not in lengths:
        sizes = " or ".join(map(str, sorted(lengths)))
        raise TaskError(f"{rule}, {sizes} for this batch, got {len(losses)}: {remedy}")
    if not losses.is_floating_point():
        raise TaskError(f"the loss must return floating-point values, got {losses.dtype}")
