"""The slow, obvious way to gradients of single examples: a batch of one, and one backward pass, for every example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt.probing.gradient_norms.uses import MOST_CANCELLATION
from batchopt.probing.gradients import PerExampleGradients, Reading
from batchopt.probing.task import trainable_parameters

ALLOWED = {torch.float64: 1e-10, torch.float32: 3 * MOST_CANCELLATION * 2.0**-24}
"""Relative errors allowed of squared norms, on top of those of the model's own forward and backward pass: in float32
what the docstring of `OuterProducts` allows, in float64 far more than that and far less than any mistake."""
OTHER_ORDERS = 4.0
"""How far rounding may take gradients, in units of where it takes the twin's: other orders of the same operations round
otherwise, by as much on average."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Twin:
    """Gradients of the examples' own losses, (examples, parameters), and their weights."""

    gradients: Tensor
    weights: Tensor


def one_at_a_time(
    model: nn.Module, loss: Callable[..., Any], batch: Any, *, autocast: torch.dtype | None = None
) -> Twin:
    """Every example in a batch of its own."""
    leaves, structure = pytree.tree_flatten(batch)
    count = len(leaves[0])
    parameters = trainable_parameters(model)
    gradients, weights = [], []
    for i in range(count):
        one = [
            leaf[i : i + 1] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else leaf
            for leaf in leaves
        ]
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            result = loss(model, pytree.tree_unflatten(one, structure))
        losses, weight = result if isinstance(result, tuple) else (result, torch.ones(1))
        model.zero_grad()
        losses.sum().backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        gradients.append(torch.cat([part.flatten().double() for part in parts]))
        weights.append(weight.double().sum())
    model.zero_grad()
    return Twin(torch.stack(gradients), torch.stack(weights))


def in_double(batch: Any) -> Any:
    """The floating-point tensors of a batch in float64."""
    return pytree.tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, batch)


def assert_like_twin(
    model: nn.Module,
    loss: Callable[..., Any],
    batch: Any,
    *,
    method: str = "all examples in one pass",
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    relative_to: Callable[[Twin], Tensor] | None = None,
) -> dict[str, str]:
    """Squared norms, their sum in a metric with weights, and sums of gradients against the twin in float64.

    In float32 the twin is computed as well, for what rounding in the model's own operations makes of its gradients on
    this machine: where a loss has next to no gradient that is all there is.

    Args:
        model: moved to float64 and back.
        loss: (model, batch) -> losses, or (losses, weights).
        batch: of float32 tensors.
        method: what the reader must say of how it took the gradients.
        dtypes: that are compared.
        relative_to: what errors of squared norms are relative to, (examples,); None for the squared norms themselves.

    Returns:
        Parameter -> how its norms were taken.
    """
    ways = {}
    exact = one_at_a_time(model.double(), loss, in_double(batch))
    count = len(exact.weights)
    own = exact.gradients.square().sum(1)
    scale = own if relative_to is None else relative_to(exact)
    for dtype in dtypes:
        model = model.to(dtype)
        data = in_double(batch) if dtype == torch.float64 else batch
        twin = exact if dtype == torch.float64 else one_at_a_time(model, loss, data)
        rounding = OTHER_ORDERS * (twin.gradients - exact.gradients).norm(dim=1)
        reader = PerExampleGradients(Reading(model, loss, CPU))
        squares = reader.squared_norms(data, count).double()
        assert method in reader.method, reader.method
        assert squares.shape == (count,)
        allowed = ALLOWED[dtype] * scale + (2.0 * own.sqrt() + rounding) * rounding
        worst = ((squares - own).abs() / allowed.clamp_min(1e-300)).max()
        assert worst < 1, f"{dtype}: squared norms off by {worst:.2g} of what is allowed: {reader.ways}"
        ways = reader.ways
        _compare_sums(model, loss, data, exact, twin, ALLOWED[dtype] * float((scale / own.clamp_min(1e-300)).max()))
    return ways


def _compare_sums(
    model: nn.Module, loss: Callable[..., Any], data: Any, exact: Twin, twin: Twin, tolerance: float
) -> None:
    """Weighted sums in a random metric."""
    torch.manual_seed(0)
    parameters = trainable_parameters(model).values()
    factors = tuple(torch.rand_like(parameter) + 0.5 for parameter in parameters)
    reader = PerExampleGradients(Reading(model, loss, CPU, factors=factors))
    got = reader.read(data, len(exact.weights))
    metric = torch.cat([factor.flatten().double() for factor in factors])
    weighted, rounded = (each.weights[:, None] * each.gradients * metric for each in (exact, twin))
    size, rounding = float(weighted.norm()), OTHER_ORDERS * float((rounded - weighted).norm())
    assert abs(got.squares - size**2) <= tolerance * size**2 + (2.0 * size + rounding) * rounding
    torch.testing.assert_close(got.total.double(), weighted.sum(0), rtol=0, atol=tolerance * size + rounding)
    assert got.weights == float(exact.weights.sum()) or abs(got.weights / float(exact.weights.sum()) - 1) < 1e-6
