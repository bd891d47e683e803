"""Values that are NaN or infinite in data that are held as tensors, found before anything is trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from batchopt.errors import TaskError
from batchopt.probing.data import EVALUATION_SEED, gather
from batchopt.probing.evaluation import losses_of_each
from batchopt.probing.sharding import is_sharded
from batchopt.probing.state import OwnRandomness, evaluating
from batchopt.probing.task import TrainingTask

MOST_ELEMENTS = 10**8
"""Tensors with more elements are looked at in part: all of them would take more than a tenth of a second."""
MOST_LOSSES = 64
"""Examples whose losses are taken: where none of so many is NaN, the loss leaves such values out on purpose."""


def check_finite_data(task: TrainingTask, model: nn.Module) -> None:
    """Raise TaskError where training data hold NaN or infinite values that make a loss NaN or infinite.

    Data that are no tensors in memory are not looked at: to read them all may take long.

    Args:
        task: that is to be probed.
        model: of the task, before any training; it is left as it is.
    """
    if is_sharded(model.parameters()):
        return
    bad = without_finite_loss(task, model, task.data, not_finite_examples(task.data))
    if bad:
        hold = "holds" if len(bad) == 1 else "and others hold"
        raise TaskError(
            f"losses must be finite before any training, and data[{bad[0]}] {hold} NaN or infinite values that make "
            "theirs nan or infinite: leave such examples out, or fill them in"
        )


def without_finite_loss(task: TrainingTask, model: nn.Module, data: Any, found: list[int]) -> list[int]:
    """Those among the first `MOST_LOSSES` of some examples of `data` whose loss is NaN or infinite.

    Args:
        task: whose data or evaluation data they are.
        model: of the task, before any training; it is left as it is.
        data: the data.
        found: indices of the examples.
    """
    looked_at = found[:MOST_LOSSES]
    if not looked_at:
        return []
    batch = gather(data, np.array(looked_at), collate_fn=task.collate_fn, device=task.torch_device)
    with OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True).active(), evaluating(model):
        losses = losses_of_each(task, model, batch, len(looked_at))
    return [index for index, loss in zip(looked_at, losses.tolist(), strict=True) if not np.isfinite(loss)]


def not_finite_examples(data: Any) -> list[int]:
    """Indices of examples with a value that is NaN or infinite; none where the data are no tensors in memory."""
    if isinstance(data, Subset):
        among = set(not_finite_examples(data.dataset))
        return [place for place, index in enumerate(data.indices) if index in among] if among else []
    parts = data.tensors if isinstance(data, TensorDataset) else data
    if not isinstance(parts, tuple) or not all(isinstance(part, Tensor) for part in parts):
        return []
    bad: set[int] = set()
    for part in parts:
        if part.is_floating_point():
            most = max(1, MOST_ELEMENTS // max(1, part[0].numel()))
            rows = part[:most].reshape(min(most, len(part)), -1).isfinite().all(dim=1)
            bad |= set(torch.nonzero(~rows).flatten().tolist())
    return sorted(bad)
