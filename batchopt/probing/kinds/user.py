"""A metric of the user's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from batchopt.errors import TaskError
from batchopt.probing.kinds.metric import Metric, MetricOf


def user_metric(
    metric_of: MetricOf, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> Metric:
    """The factors that a user's function gives, checked.

    Raises:
        TaskError: it doesn't give one finite, non-negative factor of fitting shape for each parameter, or only zeros.
    """
    name = name_of(metric_of)
    factors = metric_of(parameters, optimizer)
    if factors is None:
        return Metric(None, f"identity, as {name} gave no factors")
    factors = list(factors)
    if len(factors) != len(parameters):
        raise TaskError(
            f"{name} must give one factor for each trainable parameter, and gave {len(factors)} for {len(parameters)}"
        )
    checked = [
        _checked(factor, parameter, f"factor {k} of {name}")
        for k, (factor, parameter) in enumerate(zip(factors, parameters, strict=True))
    ]
    if not any(bool(factor.any()) for factor in checked):
        raise TaskError(f"{name} gave factors that are all zero: in that metric there is no gradient")
    return Metric(checked, f"{name}, given by the user")


def name_of(metric_of: MetricOf) -> str:
    """What to call a user's metric."""
    return getattr(metric_of, "__name__", type(metric_of).__name__)


def _checked(factor: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    value = torch.as_tensor(factor, device=parameter.device).detach()
    value = value.to(torch.promote_types(parameter.dtype, torch.float32))
    try:
        torch.broadcast_to(value, parameter.shape)
    except RuntimeError:
        raise TaskError(
            f"{name} must have a shape that broadcasts to {tuple(parameter.shape)}, got {tuple(value.shape)}"
        ) from None
    if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
        raise TaskError(
            f"{name} must be finite and not negative, and is from {float(value.min()):g} to {float(value.max()):g}"
        )
    return value
