"""Control flow that depends on data: examples that go the same way are read in one pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt import gradient_coverage

BATCH, LENGTH, WIDTH = 6, 4, 3
LENGTHS = torch.tensor([4, 2, 4, 3, 2, 4])
MASK = (torch.arange(LENGTH) < LENGTHS[:, None]).long()
ONE_PASS = "all examples in one pass"
BRANCHES = "one pass for the examples that take the same branches ({} passes at most)"
RANDOM = "one backward pass each (control flow that may depend on random numbers)"

Decision = Callable[[Tensor], Any]
"""(mask of one example, (1, positions)) -> a number that the program makes of it."""

TWO_WAYS: dict[str, Decision] = {
    "if": lambda mask: 2.0 if mask.all() else 0.5,
    "while": lambda mask: 2.0 if not mask.sum() < LENGTH else 0.5,
    "is_nonzero": lambda mask: float(torch.is_nonzero(mask.prod())),
    "in": lambda mask: 2.0 if 0 in mask else 0.5,
    "equal": lambda mask: 2.0 if torch.equal(mask, torch.ones_like(mask)) else 0.5,
    "allclose": lambda mask: 2.0 if torch.allclose(mask.double(), torch.ones(1, LENGTH).double()) else 0.5,
    "both": lambda mask: 2.0 if mask.all() and mask.any() else 0.5,
}
THREE_WAYS: dict[str, Decision] = {
    "int": lambda mask: int(mask.sum()),
    "float": lambda mask: float(mask.sum()),
    "complex": lambda mask: abs(complex(mask.sum())),
    "item": lambda mask: mask.sum().item(),
    "tolist": lambda mask: sum(mask.tolist()[0]),
    "range": lambda mask: len(range(mask.sum())),
    "one after the other": lambda mask: (2.0 if mask.all() else 0.5) + (1.0 if mask[:, 2].any() else 0.0),
}


class OneByOne(nn.Module):
    """Goes through the examples of a batch one by one, so that none depends on the batch it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([self.one(x[i : i + 1], mask[i : i + 1]) for i in range(len(x))])

    def one(self, x: Tensor, mask: Tensor) -> Tensor:
        """Of a batch of one."""
        raise NotImplementedError


class Model(OneByOne):
    """Scaled by what a decision makes of the mask.

    Args:
        decide: the decision.
        dropout: of what is scaled.
    """

    def __init__(self, decide: Decision, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.decide, self.dropout = decide, nn.Dropout(dropout)

    def one(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.dropout(self.layer(x).tanh())
        return self.head(hidden * self.decide(mask) * mask[:, :, None]).sum(1)


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, mask, weights = batch
    return model(x, mask).square().sum(1), weights


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, LENGTH, WIDTH), MASK, torch.rand(BATCH) + 0.5


def method_of(model: nn.Module) -> str:
    return gradient_coverage(model, weighted, batch()).method


@pytest.mark.parametrize("decide", TWO_WAYS.values(), ids=TWO_WAYS)
def test_two_ways(decide: Decision) -> None:
    assert_like_twin(Model(decide), weighted, batch(), method=BRANCHES.format(2))


@pytest.mark.parametrize("decide", THREE_WAYS.values(), ids=THREE_WAYS)
def test_three_ways(decide: Decision) -> None:
    assert_like_twin(Model(decide), weighted, batch(), method=BRANCHES.format(3))


def test_a_branch_that_all_examples_take() -> None:
    model = Model(lambda mask: 2.0 if mask.any() else 0.5)
    assert_like_twin(model, weighted, batch(), method=ONE_PASS)


def test_a_value_that_examples_share_is_read_as_ever() -> None:
    model = Model(lambda mask: torch.arange(mask.shape[1]).sum().item())
    assert_like_twin(model, weighted, batch(), method=ONE_PASS)


def test_a_branch_on_what_the_model_computes() -> None:
    class Deep(OneByOne):
        def one(self, x: Tensor, mask: Tensor) -> Tensor:
            hidden = self.layer(x)
            return self.head(hidden if hidden[:, 0].sum() > 0 else hidden.sin()).sum(1)

    assert_like_twin(Deep(), weighted, batch(), method=BRANCHES.format(2))


def test_a_program_that_catches_errors() -> None:
    def decide(mask: Tensor) -> float:
        try:
            return 2.0 if mask.all() else 0.5
        except Exception:
            return 1.0

    assert_like_twin(Model(decide), weighted, batch(), method=BRANCHES.format(2))


def test_a_way_of_its_own_for_nearly_every_example() -> None:
    class Deep(OneByOne):
        def one(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.layer(x) * float(x.sum())).sum(1)

    each = "one backward pass each (control flow that depends on data takes 6 ways in a batch of 6)"
    assert_like_twin(Deep(), weighted, batch(), method=each)


@pytest.mark.parametrize("decide", [*TWO_WAYS.values(), THREE_WAYS["int"]], ids=[*TWO_WAYS, "int"])
def test_a_branch_on_the_batch_after_dropout(decide: Decision) -> None:
    """Random numbers were drawn, and the mask holds none of them."""
    assert "one pass for the examples that take the same branches" in method_of(Model(decide, dropout=0.5))


def _from_dropout(x: Tensor) -> float:
    return 2.0 if F.dropout(x.float(), 0.5).sum() > 1 else 0.5


def _written_by_a_view(mask: Tensor) -> float:
    own = mask.clone()
    own.view(-1)[:1].mul_(torch.randint(2, (1,)))
    return 2.0 if own.all() else 0.5


def _from_a_generator(mask: Tensor) -> float:
    generator = torch.Generator().manual_seed(random.getrandbits(30))
    return 2.0 if (torch.rand(LENGTH, generator=generator) * mask).sum() > 1 else 0.5


def _from_python(mask: Tensor) -> float:
    first = random.random() < 0.5
    return 2.0 if mask[:, 2 if first else 3].all() else 0.5


def _from_numpy(mask: Tensor) -> float:
    first = np.random.random() < 0.5  # noqa: NPY002  (users draw from it)
    return 2.0 if mask[:, 2 if first else 3].all() else 0.5


@pytest.mark.parametrize(
    "decide",
    [
        lambda mask: 2.0 if torch.rand([]) < 0.5 else 0.5,
        lambda mask: 2.0 if torch.rand([]) < 2.0 else 0.5,
        lambda mask: float(torch.bernoulli(mask.float()).sum()),
        lambda mask: 2.0 if (mask * torch.randint(2, mask.shape)).all() else 0.5,
        _from_dropout,
        _written_by_a_view,
        _from_python,
        _from_numpy,
    ],
)
def test_a_branch_on_random_numbers(decide: Decision) -> None:
    """Examples that draw alike must not be read more often than others."""
    assert RANDOM in method_of(Model(decide, dropout=0.5))


def test_a_branch_on_a_generator_of_ones_own() -> None:
    assert "one backward pass each" in method_of(Model(_from_a_generator, dropout=0.5))


class Buffers(OneByOne):
    """Writes what differs between examples into new tensors, whole and by views."""

    def one(self, x: Tensor, mask: Tensor) -> Tensor:
        marks = torch.zeros(x.shape[0], LENGTH)
        marks[torch.arange(x.shape[0]), mask.sum(1) - 1] = 1
        later = torch.full((LENGTH,), -1.0).to(x.dtype)
        later.view(2, 2)[1].copy_(x[0, 2:, 0])
        return (self.head(x) * marks.to(x.dtype).flip(-1).cumsum(-1).flip(-1)[:, :, None]).sum(1) + later.sum()


def test_what_differs_is_written_into_new_tensors() -> None:
    assert_like_twin(Buffers(), weighted, batch(), method=ONE_PASS)


@pytest.mark.parametrize("number", [0.5, torch.tensor(0.5)])
def test_numbers_written_where_a_mask_is_true(number: Any) -> None:
    class Masked(OneByOne):
        def one(self, x: Tensor, mask: Tensor) -> Tensor:
            hidden = self.layer(x)
            hidden[mask == 0] = number
            x = x.clone()
            x[(x > 0) & (mask[:, :, None] == 1)] = 1
            return self.head(hidden * x).sum(1)

    assert_like_twin(Masked(), weighted, batch(), method=ONE_PASS)


def test_layers_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))
    x, weights = torch.randn(BATCH, LENGTH, WIDTH), torch.rand(BATCH, LENGTH, 4)
    assert_like_twin(
        model, lambda model, batch: (model(batch[0]) * batch[1]).sum((1, 2)), (x, weights), method=ONE_PASS
    )
