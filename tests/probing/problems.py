"""Small training problems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from batchopt.probing.task import TrainingTask


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weighted_cross_entropy(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Every example has a weight of its own, a function of its first feature."""
    return cross_entropy(model, batch), 0.5 + batch[0].flatten(1)[:, 0].abs()


def classification(count: int = 200, features: int = 6, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, features, generator=generator, dtype=dtype)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def mlp(features: int = 6, *, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def seeded(make: Any, *args: Any, **keywords: Any) -> Any:
    """A model with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return make(*args, **keywords)


def make_task(**changes: Any) -> TrainingTask:
    settings: dict[str, Any] = {
        "model": mlp,
        "data": classification(),
        "loss": cross_entropy,
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))
