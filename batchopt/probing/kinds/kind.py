"""The table of the kinds of noise scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from batchopt.noise_scale import SignalAndNoise, left_of_population
from batchopt.probing.kinds.metric import IDENTITY, Metric, MetricOf
from batchopt.probing.kinds.preconditioned import preconditioned
from batchopt.probing.kinds.sign import sign_noise_scale
from batchopt.probing.kinds.user import name_of, user_metric
from batchopt.probing.moments import MomentAccumulator
from batchopt.probing.stopping import Estimator, squared_norms


def sum_norms(accumulator: MomentAccumulator, population: int | None) -> SignalAndNoise:
    """By sums of absolute values."""
    left = left_of_population(accumulator.units * accumulator.group_size, population)
    return sign_noise_scale(accumulator.groups, group_size=accumulator.group_size, left=left)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of noise scale.

    Attributes:
        name: of the kind.
        metric: the metric that gradients are measured in, from the trainable parameters and the optimizer.
        curved: whether it is weighed with the curvature of the loss.
        estimate: signal, noise and noise scale of what was measured.
    """

    name: str
    metric: Callable[[Sequence[nn.Parameter], torch.optim.Optimizer | None], Metric]
    curved: bool = False
    estimate: Estimator = squared_norms


def _identity(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> Metric:
    """Every coordinate counts alike."""
    del parameters, optimizer
    return IDENTITY


KINDS = {
    kind.name: kind
    for kind in (
        Kind("simple", _identity),
        Kind("preconditioned", preconditioned),
        Kind("hessian", _identity, curved=True),
        Kind("hessian_preconditioned", preconditioned, curved=True),
        Kind("sign", _identity, estimate=sum_norms),
    )
}


def kind_of(kind: str | MetricOf) -> Kind:
    """The kind of that name, or with a metric of the user's own.

    Raises:
        ValueError: there is no such kind.
    """
    if callable(kind):
        name = name_of(kind)
        if name in KINDS:
            raise ValueError(f"a metric of your own can't have the name of a kind, got {name!r}: rename the function")
        return Kind(name, partial(user_metric, kind))
    if kind not in KINDS:
        raise ValueError(
            f"kind must be one of {', '.join(KINDS)}, or a function (parameters, optimizer) -> factors, got {kind!r}"
        )
    return KINDS[kind]
