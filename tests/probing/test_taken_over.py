"""Factories made of a model and an optimizer that are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from visualization import samples

from batchopt.errors import TaskError
from batchopt.probing.taken_over import base_rate, copies_of, optimizer_like, schedule_to_follow, set_base_rate
from batchopt.schedules.schedule import Schedule

KINDS: dict[str, dict[str, Any]] = {
    "Adadelta": {"rho": 0.8},
    "Adagrad": {"lr_decay": 0.01, "initial_accumulator_value": 0.5},
    "Adam": {"betas": (0.8, 0.9), "amsgrad": True, "decoupled_weight_decay": True},
    "AdamW": {"betas": (0.8, 0.9), "eps": 1e-3},
    "Adamax": {"betas": (0.8, 0.9)},
    "ASGD": {"t0": 3.0},
    "NAdam": {"momentum_decay": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"betas": (0.8, 0.9)},
    "RMSprop": {"alpha": 0.8, "momentum": 0.5, "centered": True},
    "Rprop": {"etas": (0.4, 1.3)},
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def stepped(model: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The weights after three steps."""
    for k in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 3), 0.5 + k)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", KINDS)
def test_an_optimizer_of_a_copy_steps_as_the_first_one_would(name: str) -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters(), "lr": 0.04}]
    optimizer = getattr(torch.optim, name)(groups, lr=0.5, **KINDS[name])
    copied = copies_of(model)()
    made = optimizer_like(optimizer, model)(list(copied.parameters()), 0.02)
    assert type(made) is type(optimizer)
    for own, other in zip(stepped(copied, made), stepped(model, optimizer), strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=0.0)


def test_frozen_parameters_and_their_groups_are_passed_over() -> None:
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], 0.1)
    model[2].bias.requires_grad = False
    model[0].requires_grad_(False)
    made = optimizer_like(optimizer, model)([model[2].weight], 0.5)
    assert [len(group["params"]) for group in made.param_groups] == [0, 1]
    assert [group["lr"] for group in made.param_groups] == [0.0, 0.5]


def test_a_rate_is_the_peak_of_its_scheduler() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.7, total_steps=10)
    assert optimizer.param_groups[0]["lr"] < 0.1
    assert base_rate(optimizer) == 0.7
    set_base_rate(optimizer, 0.2)
    assert base_rate(optimizer) == optimizer.param_groups[0]["lr"] == 0.2


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.7, total_steps=10),
    "CyclicLR": lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.7),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("SGD", {"momentum": 0.7}), ("AdamW", {"betas": (0.7, 0.99)})],
)
def test_momentum_is_the_optimizers_and_not_its_schedulers(scheduler: str, kind: str, settings: dict[str, Any]) -> None:
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **settings)
    SCHEDULERS[scheduler](optimizer)
    ((name, value),) = settings.items()
    assert optimizer.param_groups[0][name] != value
    (made,) = optimizer_like(optimizer, model)(list(model.parameters()), 0.1).param_groups
    assert made[name] == value
    assert not {"base_momentum", "max_momentum"} & made.keys()
    set_base_rate(optimizer, 0.2)
    assert optimizer.param_groups[0][name] == value
    assert not {"base_momentum", "max_momentum"} & optimizer.param_groups[0].keys()


def test_a_groups_own_second_beta_and_momentum_beside_other_schedulers_are_kept() -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "betas": (0.7, 0.95)}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    own = optimizer_like(optimizer, model)(list(model.parameters()), 0.1).param_groups
    assert [group["betas"] for group in own] == [(0.7, 0.95), (0.9, 0.999)]
    SCHEDULERS["OneCycleLR"](optimizer)
    own = optimizer_like(optimizer, model)(list(model.parameters()), 0.1).param_groups
    assert [group["betas"] for group in own] == [(0.9, 0.95), (0.9, 0.999)]


def test_the_schedule_to_follow_is_that_of_a_plan_or_given() -> None:
    schedule = Schedule.constant(4, examples=40, learning_rate=0.1)
    assert (
        schedule_to_follow(schedule)
        == schedule_to_follow(replace(samples.plan_of(), schedule=schedule))
        == (schedule, 0.1)
    )
    with pytest.raises(ValueError, match="the schedule must hold a learning rate, got None"):
        schedule_to_follow(Schedule.constant(4, examples=40))
    with pytest.raises(TypeError, match=r"got str: load it with batchopt.Schedule.load"):
        schedule_to_follow("plan.json")  # type: ignore[arg-type]


class Particular(torch.optim.SGD):
    """Needs what no other optimizer tells."""

    def __init__(self, parameters: Any, lr: float, *, model: nn.Module) -> None:
        super().__init__(parameters, lr=lr)
        self.model = model


def test_one_that_cannot_be_made_anew_says_what_to_give() -> None:
    model = network()
    with pytest.raises(TaskError, match=r"a Particular cannot be made of .* 'model'\): give optimizer=lambda"):
        optimizer_like(Particular(model.parameters(), 0.1, model=model), model)
