"""Kinds of noise scale: the metric in which gradients are measured.

A kind is a function from the trainable parameters and the optimizer to one factor per parameter, by which its gradients
are multiplied elementwise before their squares are taken (the square root of the metric); None for the identity. A new
kind is a function and a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Factors = Sequence[torch.Tensor] | None
Kind = Callable[[Sequence[torch.nn.Parameter], torch.optim.Optimizer | None], Factors]


def simple(parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer | None) -> Factors:
    """B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 2018, eq. 2.9): every coordinate counts alike."""
    del parameters, optimizer
    return None


KINDS: dict[str, Kind] = {"simple": simple}
