"""Autograd functions of a model's own, which torch.vmap has no rule for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn

BATCH = 6
ONE_PASS = "all examples in one pass"


def energy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch).square().flatten(1).sum(1)


class Normalised(torch.autograd.Function):
    """Divides by the norm of all that it gets: of a whole batch it would be wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: float) -> tuple[Tensor, Tensor, None]:
        norm = x.norm()
        ctx.save_for_backward(x, norm)
        return x / norm, norm.detach() ** power, None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any, __: Any) -> tuple[Tensor, None]:
        x, norm = ctx.saved_tensors
        return gradient / norm - x * (gradient * x).sum() / norm**3, None


class Product(torch.autograd.Function):
    """A linear map with its own backward pass, as fused kernels have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.mT, x.flatten(0, -2).mT @ gradient.flatten(0, -2)


class Doubled(torch.autograd.Function):
    """Knows torch.vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2.0 * gradient


class OfActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x[i : i + 1]) for i in range(len(x))])

    def one(self, x: Tensor) -> Tensor:
        direction, length, nothing = Normalised.apply(self.layer(x), 0.5)
        assert nothing is None
        return direction * (length + x.sum())


class OfParameters(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight, self.scale, self.function = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.ones(4)), function

    def forward(self, x: Tensor) -> Tensor:
        if self.function is Product:
            return Product.apply(x, self.weight) * self.scale + Product.apply(x, self.weight.T.T)
        return x @ self.weight * self.function.apply(self.scale)


@pytest.mark.parametrize(
    "model",
    [OfActivations(), OfParameters(Product), OfParameters(Doubled)],
    ids=["activations", "parameters", "knows vmap"],
)
def test_they_see_one_example(model: nn.Module) -> None:
    torch.manual_seed(0)
    assert_like_twin(model, energy, (torch.randn(BATCH, 5, 3),), method=ONE_PASS)


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2.0 * gradient


def test_one_that_writes_into_its_input_is_not_followed() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(InPlace.apply(x.clone()))

    torch.manual_seed(0)
    method = "one backward pass each (InPlace writes into its inputs)"
    assert_like_twin(Writing(), energy, (torch.randn(BATCH, 3),), method=method)


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, more: list[Tensor]) -> Tensor:
        return x + sum(more)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_one_that_takes_tensors_in_a_list_is_not_followed() -> None:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Summed.apply(self.layer(x), [x, x])

    torch.manual_seed(0)
    method = "one backward pass each (Summed takes tensors in lists or by name)"
    assert_like_twin(Listing(), energy, (torch.randn(BATCH, 3),), method=method)


def test_apply_is_as_before() -> None:
    before = vars(torch.autograd.Function)["apply"]
    assert_like_twin(OfActivations(), energy, (torch.randn(BATCH, 5, 3),), method=ONE_PASS)
    assert vars(torch.autograd.Function)["apply"] is before
