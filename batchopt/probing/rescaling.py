"""Optimizer settings that change with the batch size, beside the learning rate.

Notation
    r    batch size over the one that the settings were chosen for

Weight decay goes with r, which at a fixed learning rate keeps the examples over which weights are averaged (Bergsma et
al. 2025, arXiv 2505.13738); beta2 becomes beta2^r, which keeps the half-life of Adam's second moment in examples (Marek
et al. 2025, arXiv 2507.07101).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from batchopt.errors import TaskError

RESCALED = ("weight_decay", "beta2")
"""What can be rescaled."""


class Rescaling:
    """Rescales an optimizer's settings as the batch size changes.

    Args:
        optimizer: with the settings that were chosen for `base`.
        names: of `RESCALED`.
        base: batch size that they were chosen for.

    Raises:
        TaskError: the optimizer has no such setting.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: Collection[str], base: int) -> None:
        self._optimizer, self._base = optimizer, base
        for name in names:
            key = _key(name)
            if not any(key in group for group in optimizer.param_groups):
                raise TaskError(f"rescale names {name!r}, and {type(optimizer).__name__} has no {key}: leave it out")
        self._chosen = [{_key(name): group.get(_key(name)) for name in names} for group in optimizer.param_groups]

    def apply(self, batch_size: int) -> None:
        """Set what the settings are at a batch size."""
        ratio = batch_size / self._base
        for group, chosen in zip(self._optimizer.param_groups, self._chosen, strict=True):
            group.update({key: _rescaled(key, value, ratio) for key, value in chosen.items() if value is not None})


def _key(name: str) -> str:
    return "betas" if name == "beta2" else name


def _rescaled(key: str, value: Any, ratio: float) -> Any:
    return (value[0], value[1] ** ratio) if key == "betas" else value * ratio
