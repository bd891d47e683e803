"""Gradients whose parts nearly cancel: squared norms as differences of large numbers."""

from __future__ import annotations

import math

import pytest
import torch
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms import shared, uses
from batchopt.probing.gradient_norms.uses import MOST_CANCELLATION, OuterProducts

EXAMPLES = 16
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
"""Of what sums are added up in."""


def pairs(ratio: float, dtype: torch.dtype, *, positions: int = 32) -> OuterProducts:
    """Positions in pairs that cancel up to `ratio`: (16, 2 groups, 6 or 8 features, positions)."""
    torch.manual_seed(0)
    left = torch.randn(EXAMPLES, 2, 6, positions // 2, dtype=torch.float64)
    right = torch.randn(EXAMPLES, 2, 8, positions // 2, dtype=torch.float64)
    nearly = right + ratio * torch.randn_like(right)
    return OuterProducts(torch.cat([left, -left], 3).to(dtype), torch.cat([right, nearly], 3).to(dtype))


def exact_squares(products: OuterProducts) -> Tensor:
    return (products.left.double() @ products.right[:].double().mT).square().sum((1, 2, 3))


def orthogonal_squares(products: OuterProducts) -> Tensor:
    """What the positions would add up to if they were orthogonal: d of `OuterProducts`."""
    left, right = products.left.double(), products.right[:].double()
    return (left.square().sum(2) * right.square().sum(2)).sum((1, 2))


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.1, 1e-2, 1e-4])
def test_gram_matrices_keep_their_error_bound(ratio: float, dtype: torch.dtype) -> None:
    products = pairs(ratio, dtype)
    exact, most = exact_squares(products), orthogonal_squares(products)
    error = (products._by_gram().double() - exact).abs() / exact
    formed = 8.0 * ROUNDOFF[dtype] * (most / exact).sqrt()  # two roundings a term, the square doubles them, twice that
    assert (error <= torch.maximum(torch.tensor(3.0 * MOST_CANCELLATION * ROUNDOFF[dtype]), formed)).all()


def test_without_the_formed_gradient_the_bound_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "MOST_CANCELLATION", 0.0)
    products = pairs(1e-4, torch.float32)
    formed = products._by_gram()
    monkeypatch.setattr(uses, "MOST_CANCELLATION", math.inf)
    by_gram = products._by_gram()
    exact = exact_squares(products)
    assert ((formed - exact).abs() / exact).max() < 0.01 < ((by_gram - exact).abs() / exact).max()


def test_only_examples_that_cancel_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    apart, together = pairs(1.0, torch.float32), pairs(1e-3, torch.float32)
    left = torch.cat([apart.left[:3], together.left[:2], apart.left[3:]])
    products = OuterProducts(left, torch.cat([apart.right[:3], together.right[:2], apart.right[3:]]))
    seen = []
    formed = OuterProducts._formed

    def counted(self: OuterProducts, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.append(len(self.left))
        return formed(self, factor)

    monkeypatch.setattr(OuterProducts, "_formed", counted)
    squares = products._by_gram().double()
    assert seen == [2]
    torch.testing.assert_close(squares, exact_squares(products), rtol=3e-4, atol=0.0)


class OnceAsEmbedding(nn.Module):
    """Rows of an embedding, less nearly the same rows by two linear maps of one-hot vectors; a little of it bare."""

    def __init__(self, *, bare: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.bare = bare

    def forward(self, ids: Tensor, one_hot: Tensor) -> Tensor:
        difference = F.embedding(ids, self.weight) - 0.3 * one_hot @ self.weight - 0.7 * one_hot @ self.weight
        return difference + 1e-3 * self.weight.exp() if self.bare else difference


@pytest.mark.parametrize("bare", [False, True])
def test_forms_that_cancel(bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, (EXAMPLES, 5))
    nearly = F.one_hot(ids, 5) + 1e-3 * torch.randn(EXAMPLES, 5, 5)
    batch = (ids, nearly, torch.randn(EXAMPLES, 5, 4))

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) * batch[2]).sum((1, 2))

    assert_like_twin(OnceAsEmbedding(bare=bare), loss, batch)
    monkeypatch.setattr(shared, "MOST_CANCELLATION", 0.0)
    assert_like_twin(OnceAsEmbedding(bare=bare), loss, batch)
    monkeypatch.setattr(shared, "MOST_CANCELLATION", math.inf)
    with pytest.raises(AssertionError, match="squared norms off"):
        assert_like_twin(OnceAsEmbedding(bare=bare), loss, batch)
