"""The metric in which gradients are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Factors = Sequence[Tensor] | None
"""By which gradients are multiplied elementwise before their squares are taken: one for each trainable parameter, of
its shape or broadcastable to it; the square root of the metric, whose scale does not matter. None for the identity."""

MetricOf = Callable[[Sequence[nn.Parameter], torch.optim.Optimizer | None], Factors]
"""A metric of the user's own: (trainable parameters, optimizer) -> factors."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and what it is.

    Attributes:
        factors: of the gradients.
        words: what it is, for the record.
    """

    factors: Factors
    words: str


IDENTITY = Metric(None, "identity")
