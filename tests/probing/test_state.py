"""What is kept: every part of the state, with a planted violation of each, returning and raising."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batchopt.probing.state import OwnRandomness, evaluating, preserved, seed_generators

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)
        self.last.weight.requires_grad_(False)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """A model with some gradients, some none, and an optimizer with a state."""
    model = Net()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    model.norm.weight.grad = None
    return model, optimizer


def read(model: Net, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything that must not change, by value."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return copy.deepcopy(
        {
            "state": {name: value.tolist() for name, value in model.state_dict().items()},
            "grad": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
            "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
            "modes": {name: module.training for name, module in model.named_modules()},
            "optimizer": str(optimizer.state_dict()),
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(numpy["state"]["key"].tolist()) + str(numpy["state"]["pos"]) + str(numpy["gauss"]),
            "python": random.getstate(),
        }
    )


VIOLATIONS: dict[str, Callable[[Net, torch.optim.Optimizer], object]] = {
    "weights": lambda model, optimizer: model.first.weight.data.add_(1.0),
    "frozen weights": lambda model, optimizer: model.last.weight.data.zero_(),
    "weights become nan": lambda model, optimizer: model.first.weight.data.fill_(torch.nan),
    "buffers": lambda model, optimizer: model.norm.running_mean.add_(1.0),
    "buffers replaced": lambda model, optimizer: setattr(model.norm, "running_var", torch.full((4,), 7.0)),
    "new grad": lambda model, optimizer: setattr(model.norm.weight, "grad", torch.ones(4)),
    "grad dropped": lambda model, optimizer: setattr(model.first.weight, "grad", None),
    "grad written": lambda model, optimizer: model.first.weight.grad.mul_(2.0),
    "mode": lambda model, optimizer: model.eval(),
    "submodule's mode": lambda model, optimizer: model.train(),
    "requires_grad": lambda model, optimizer: model.requires_grad_(True),
    "step": lambda model, optimizer: optimizer.step(),
    "optimizer state cleared": lambda model, optimizer: optimizer.state.clear(),
    "optimizer settings": lambda model, optimizer: optimizer.param_groups[0].update(lr=9.0),
    "torch random": lambda model, optimizer: torch.randn(3),
    "numpy random": lambda model, optimizer: np.random.randn(3),  # noqa: NPY002
    "python random": lambda model, optimizer: random.random(),
    "all seeds": lambda model, optimizer: seed_generators(4),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
@pytest.mark.parametrize("raising", [False, True], ids=["returning", "raising"])
def test_violations_are_undone(violation: Callable[[Net, torch.optim.Optimizer], object], raising: bool) -> None:
    model, optimizer = trained()
    before = read(model, optimizer)
    violation(model, optimizer)
    assert read(model, optimizer) != before, "the violation must show, or this test shows nothing"

    model, optimizer = trained()
    before = read(model, optimizer)
    try:
        with preserved(model, optimizer):
            violation(model, optimizer)
            if raising:
                raise KeyError
    except KeyError:
        assert raising
    assert read(model, optimizer) == before


def test_tensors_stay_the_same_objects() -> None:
    model, optimizer = trained()
    parameter = model.first.weight
    held = (parameter.grad, model.norm.running_mean, optimizer.state[parameter]["exp_avg"])
    with preserved(model, optimizer):
        optimizer.step()
        model.norm.running_mean = torch.ones(4)
        parameter.grad = None
    assert parameter.grad is held[0]
    assert model.norm.running_mean is held[1]
    assert optimizer.state[parameter]["exp_avg"] is held[2]


def test_a_graph_from_before_can_still_be_gone_back_through() -> None:
    model, optimizer = trained()
    loss = model(torch.randn(8, 4)).square().sum()
    with preserved(model, optimizer):
        model(torch.randn(8, 4))
    loss.backward()
    assert model.norm.weight.grad is not None


def test_evaluating_restores_every_mode_and_takes_no_gradients() -> None:
    model, _ = trained()
    inside: list[bool] = []

    def fail() -> None:
        inside.extend((torch.is_grad_enabled(), *(module.training for module in model.modules())))
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"), evaluating(model):
        fail()
    assert len(inside) == 5
    assert not any(inside)
    assert model.training
    assert not model.norm.training
    assert torch.is_grad_enabled()


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_own_randomness_is_a_stream_of_its_own() -> None:
    seed_generators(1)
    expected_outside = [draw(), draw()]
    seed_generators(1)
    first, second = (OwnRandomness(seed, device=CPU, host=True) for seed in (3, 3))
    inside, outside = [], []
    for _ in range(2):
        with first.active():
            inside.append(draw())
        outside.append(draw())
    assert outside == expected_outside
    with second.active():
        assert [draw(), draw()] == inside
    assert inside[0] != inside[1]


def test_own_randomness_begins_as_torch_seeds() -> None:
    with OwnRandomness(7, device=CPU, host=False).active():
        own = torch.rand(3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert torch.equal(own, torch.rand(3))


def test_own_randomness_goes_on_from_its_state() -> None:
    original, other = (OwnRandomness(seed, device=CPU, host=True) for seed in (3, 4))
    with original.active():
        np.random.randn()  # noqa: NPY002  (leaves a cached second normal behind)
        random.gauss(0.0, 1.0)
    other.load_state_dict(original.state_dict())
    with original.active():
        expected = draw(), float(np.random.randn()), random.gauss(0.0, 1.0)  # noqa: NPY002
    with other.active():
        assert (draw(), float(np.random.randn()), random.gauss(0.0, 1.0)) == expected  # noqa: NPY002
