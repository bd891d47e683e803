"""The metric of the optimizer against the steps that it really takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchopt import measure_noise_scale
from batchopt.probing.kinds.preconditioned import added_decay, momentum_delay, preconditioned

Parameters = list[nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda groups: torch.optim.Adam(groups, betas=(0.0, 0.99), eps=1e-3),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(groups, betas=(0.0, 0.9), eps=1e-3, amsgrad=True),
    "Adam, maximize": lambda groups: torch.optim.Adam(groups, betas=(0.0, 0.99), maximize=True),
    "Adam, one by one": lambda groups: torch.optim.Adam(groups, betas=(0.0, 0.99), foreach=False),
    "AdamW": lambda groups: torch.optim.AdamW(groups, betas=(0.0, 0.99), weight_decay=0.0),
    "NAdam": lambda groups: torch.optim.NAdam(groups, betas=(0.0, 0.99), eps=1e-3),
    "RAdam": lambda groups: torch.optim.RAdam(groups, betas=(0.0, 0.9), eps=1e-3),
    "RAdam, not rectified yet": lambda groups: torch.optim.RAdam(groups, betas=(0.0, 0.99999)),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, alpha=0.98, eps=1e-3),
    "RMSprop, centered": lambda groups: torch.optim.RMSprop(groups, alpha=0.98, centered=True),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr_decay=0.01, eps=1e-2),
    "Adadelta": lambda groups: torch.optim.Adadelta(groups, eps=1e-4),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, d=1e9, beta2_decay=-0.9),
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.0),
    "ASGD": lambda groups: torch.optim.ASGD(groups, lambd=0.0),
}
STEPS = 40
TINY = 1e-5


def parameters_of(seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (4,), (2, 3, 2))
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def groups_of(parameters: Parameters) -> list[dict[str, Any]]:
    return [{"params": parameters[:1], "lr": 0.02}, {"params": parameters[1:], "lr": 0.005}]


def trained(make: Callable[[Any], torch.optim.Optimizer], *, steps: int = STEPS) -> tuple[Parameters, Any]:
    """An optimizer after some steps with random gradients, whose sizes differ between coordinates."""
    parameters = parameters_of()
    optimizer = make(groups_of(parameters))
    generator = torch.Generator().manual_seed(1)
    sizes = [10.0 ** (3.0 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 2.0) for p in parameters]
    for _ in range(steps):
        for parameter, size in zip(parameters, sizes, strict=True):
            parameter.grad = size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return parameters, optimizer


def update_of(parameters: Parameters, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What a step that leaves the second moments as they are does to a gradient, for each of its coordinates.

    The state is that of one step before, with moments that the step's decay brings to the present ones; the gradient is
    too small to change them.
    """
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    twin = copy.deepcopy(optimizer)
    for group, copied in zip(optimizer.param_groups, twin.param_groups, strict=True):
        copied["params"] = [twins[next(i for i, q in enumerate(parameters) if q is p)] for p in group["params"]]
        for key in ("alpha", "rho"):
            if key in copied:
                copied[key] = 1.0 - 1e-15 if key == "alpha" else 1.0
    twin.state.clear()
    for parameter, own in zip(parameters, twins, strict=True):
        state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[parameter].items()}
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        if "step" in state:
            state["step"] -= 1
        if "betas" in group and "exp_avg_sq" in state:
            state["exp_avg_sq"] /= group["betas"][1]
        for name in ("row_var", "col_var", "variance"):
            if state.get(name) is not None:
                state[name] /= 1.0 - float(optimizer.state[parameter]["step"]) ** group["beta2_decay"]
        twin.state[own] = state
        own.grad = torch.full_like(own, TINY)
    twin.step()
    return [(p.detach() - own.detach()) / TINY for p, own in zip(parameters, twins, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twin_of_the_step_that_the_optimizer_takes(name: str) -> None:
    parameters, optimizer = trained(OPTIMIZERS[name])
    metric = preconditioned(parameters, optimizer)
    updates = torch.cat([update.flatten() for update in update_of(parameters, optimizer)])
    factors = metric.factors
    assert factors is not None
    squares = torch.cat([torch.broadcast_to(f, p.shape).flatten() for f, p in zip(factors, parameters, strict=True)])
    ratio = squares.double().square() / updates.abs()
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones_like(ratio), rtol=1e-5, atol=0.0)
    assert "2 learning rates as their ratio" in metric.words
    assert name.split(",")[0] in metric.words


def test_adamax_divides_by_the_largest_gradient() -> None:
    parameters, optimizer = trained(lambda groups: torch.optim.Adamax(groups, betas=(0.0, 0.999)))
    factors = preconditioned(parameters, optimizer).factors
    assert factors is not None
    rates = (0.02, 0.005, 0.005)
    expected = [rate / optimizer.state[p]["exp_inf"] for rate, p in zip(rates, parameters, strict=True)]
    largest = max(float(e.max()) for e in expected)
    for factor, wanted in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.square(), wanted / largest, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.NAdam, torch.optim.AdamW])
def test_rows_that_hardly_get_a_gradient_are_bounded(make: Any) -> None:
    weight = nn.Parameter(torch.zeros(10, 8))
    optimizer = make([weight], lr=0.1)
    torch.manual_seed(0)
    for step in range(1000):
        weight.grad = torch.randn(10, 8)
        weight.grad[7] *= 1e-3  # small, but always there
        weight.grad[8] *= step == 0
        weight.grad[9] = 0.0
        optimizer.step()
    factors = preconditioned([weight], optimizer).factors
    assert factors is not None
    metric = factors[0].square()
    metric = metric / metric[:7].median()
    first = (1.0 - 0.999) ** -0.5  # times the usual step: what a first gradient of usual size gives
    assert metric[7].median() == pytest.approx(1e3, rel=0.1), "as the optimizer has it"
    for row in (8, 9):
        assert metric[row].max() == pytest.approx(first, rel=0.1)


@pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax])
def test_coordinates_that_never_got_a_gradient_are_bounded(make: Any) -> None:
    weight = nn.Parameter(torch.zeros(10, 8))
    optimizer = make([weight], lr=0.1)
    torch.manual_seed(0)
    for _ in range(50):
        weight.grad = torch.randn(10, 8)
        weight.grad[9] = 0.0
        optimizer.step()
    factors = preconditioned([weight], optimizer).factors
    assert factors is not None
    metric = factors[0].square()
    assert metric[9].max() / metric[:9].median() < 60.0


def test_optimizers_without_a_metric_say_so() -> None:
    class Mine(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

    class Layerwise(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            """Not SGD's."""

    parameters = parameters_of()
    expected = {
        "identity: no optimizer was given": None,
        "identity: the optimizer Mine is not known": Mine(parameters),
        "identity: the optimizer Layerwise is not known": Layerwise(parameters),
        "identity: Adam has taken no step yet": torch.optim.Adam(parameters),
        "identity, as SGD moves along the gradient": torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        'identity: Rprop steps by the sign of the gradient, see kind="sign"': torch.optim.Rprop(parameters),
        "identity: the optimizer LBFGS is not known": torch.optim.LBFGS(parameters),
    }
    for words, optimizer in expected.items():
        metric = preconditioned(parameters, optimizer)
        assert (metric.words, metric.factors) == (words, None)


def test_learning_rates_enter_as_their_ratio() -> None:
    parameters = parameters_of()
    optimizer = torch.optim.SGD([groups_of(parameters)[0], {"params": parameters[1:2], "lr": torch.tensor(0.005)}])
    metric = preconditioned(parameters, optimizer)
    assert metric.factors is not None
    assert [float(factor) for factor in metric.factors] == pytest.approx([1.0, 0.5, 0.0]), "the third is not trained"
    optimizer.param_groups[0]["lr"] = 0.0
    metric = preconditioned(parameters, optimizer)
    assert metric.factors is not None
    assert [float(factor) for factor in metric.factors] == [0.0, 1.0, 0.0], "a rate of zero freezes"


def test_parameters_without_a_gradient_so_far_are_left_out() -> None:
    parameters = parameters_of()
    optimizer = torch.optim.Adam(parameters)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    metric = preconditioned(parameters, optimizer)
    assert metric.factors is not None
    assert [bool(factor.any()) for factor in metric.factors] == [True, False, False]
    assert metric.words == "Adam's 1 / (sqrt(v) + eps) after 1 steps; without 2 parameters that it has not trained"


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Adafactor"]
)
def test_before_the_first_step_and_where_it_left_a_parameter_out(name: str) -> None:
    parameters = parameters_of()
    optimizer = getattr(torch.optim, name)(parameters)
    metric = preconditioned(parameters, optimizer)
    assert (metric.words, metric.factors) == (f"identity: {name} has taken no step yet", None)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    metric = preconditioned(parameters, optimizer)
    assert metric.factors is not None
    assert [bool(factor.any()) for factor in metric.factors] == [True, False, False]


def test_a_learning_rate_of_zero_leaves_no_metric() -> None:
    parameters, optimizer = trained(OPTIMIZERS["Adam"])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert preconditioned(parameters, optimizer).factors is None


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3), 0.3),
        (lambda p: torch.optim.Adam(p, weight_decay=0.3), 0.3),
        (lambda p: torch.optim.RMSprop(p, weight_decay=0.3), 0.3),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3, maximize=True), -0.3),
        (lambda p: torch.optim.Adam(p, weight_decay=0.3, decoupled_weight_decay=True), None),
        (lambda p: torch.optim.NAdam(p, weight_decay=0.3, decoupled_weight_decay=True), None),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.3), None),
        (lambda p: torch.optim.Adafactor(p, weight_decay=0.3), None),
        (lambda p: torch.optim.SGD(p, lr=0.1), None),
    ],
)
def test_decay_that_is_added_to_the_gradient(make: Any, decay: float | None) -> None:
    parameters = parameters_of()
    found = added_decay(parameters, make(parameters[:2]))
    assert found == (None if decay is None else [decay, decay, 0.0])
    assert added_decay(parameters, None) is None


@pytest.mark.parametrize("kind", ["preconditioned", "hessian_preconditioned"])
def test_measured_in_the_optimizers_metric(kind: str) -> None:
    """Coordinates of very different size, as Adam sees them: alike."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    x = torch.randn(4000, 4, dtype=torch.float64) * torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    data = (x, x.sum(1) + torch.randn(4000, dtype=torch.float64))

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return 0.5 * (model(batch[0])[:, 0] - batch[1]).square()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9, betas=(0.9, 0.999))
    for _ in range(50):
        optimizer.zero_grad()
        loss(model, data).mean().backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    reading = measure_noise_scale(model, loss, data, optimizer=optimizer, kind=kind, relative_width=1e-9)
    assert str(optimizer.state_dict()) == str(before)
    assert reading.metric == "Adam's 1 / (sqrt(v) + eps) after 50 steps"
    if kind == "preconditioned":
        gradients = x * (model(x)[:, 0] - data[1]).detach()[:, None]
        scale = (
            gradients.mean(0).abs().clamp_min(1e-300)
        )  # v is the squared mean gradient, which is the same every step
        expected = float((gradients.var(0) / scale).sum() / (gradients.mean(0).square() / scale).sum())
        assert reading.batch_size.value == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("maximize", [False, True])
def test_decay_is_what_the_optimizer_adds(maximize: bool) -> None:
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0, weight_decay=0.5, maximize=maximize)
    before, weight.grad = weight.detach().clone(), torch.tensor([3.0, 4.0])
    found = added_decay([weight], optimizer)
    assert found is not None
    optimizer.step()
    step = (weight.detach() - before).abs()
    torch.testing.assert_close((weight.grad + found[0] * before).abs(), step)


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.0, True)])
def test_momentum_lags_behind_by_its_delay(dampening: float, nesterov: bool) -> None:
    """On a constant gradient: how many steps at full speed are missing after many steps."""
    weight = torch.zeros((), requires_grad=True, dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, dampening=dampening, nesterov=nesterov)
    positions = []
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        positions.append(weight.item())
    full_speed = positions[-1] - positions[-2]
    assert 300 - positions[-1] / full_speed == pytest.approx(momentum_delay(optimizer), abs=1e-6)


def test_without_momentum_there_is_no_delay() -> None:
    weight = torch.zeros((), requires_grad=True)
    for optimizer in (torch.optim.SGD([weight], lr=0.1), torch.optim.AdamW([weight], lr=0.1)):
        assert momentum_delay(optimizer) == 0.0
