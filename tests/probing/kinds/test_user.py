"""Metrics of the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchopt import measure_noise_scale
from batchopt.errors import TaskError
from batchopt.probing.kinds.kind import KINDS, kind_of


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator)
    return x, x.sum(1) + torch.randn(500, generator=generator)


def first_coordinate_only(parameters: Any, optimizer: Any) -> list[Tensor]:
    del optimizer
    weight, _ = parameters
    return [torch.zeros_like(weight).index_fill(1, torch.tensor([0]), 2.0), torch.zeros(())]


def test_only_its_scale_does_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    simple = measure_noise_scale(model, loss, data())
    scaled = measure_noise_scale(model, loss, data(), kind=lambda parameters, _: [torch.tensor(3.0)] * len(parameters))
    assert scaled.batch_size.value == pytest.approx(simple.batch_size.value, rel=1e-4)
    assert scaled.signal == pytest.approx(9.0 * simple.signal, rel=1e-4)
    assert scaled.metric == "<lambda>, given by the user"


def test_a_metric_of_one_coordinate() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, 1), data()
    reading = measure_noise_scale(model, loss, (x, y), kind=first_coordinate_only, relative_width=1e-9)
    gradients = 2.0 * (2.0 * (model(x)[:, 0] - y) * x[:, 0]).double()
    assert reading.noise == pytest.approx(float(gradients.var()), rel=1e-4)
    assert reading.signal == pytest.approx(float(gradients.mean()) ** 2, rel=1e-4)
    assert (reading.kind, reading.metric) == ("first_coordinate_only", "first_coordinate_only, given by the user")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([torch.ones(())], "must give one factor for each trainable parameter, and gave 1 for 2"),
        ([torch.ones(3), torch.ones(())], r"factor 0 of .* shape that broadcasts to \(1, 4\), got \(3,\)"),
        ([torch.ones(4), torch.tensor(float("nan"))], "factor 1 of .* must be finite and not negative"),
        ([-torch.ones(4), torch.ones(())], "factor 0 of .* must be finite and not negative, and is from -1 to -1"),
        ([torch.zeros(()), torch.zeros(())], "gave factors that are all zero"),
    ],
)
def test_factors_that_make_no_metric(factors: list[Tensor], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        measure_noise_scale(nn.Linear(4, 1), loss, data(), kind=lambda *_: factors)


def test_kinds_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of simple, .*, or a function .*, got 'complicated'"):
        measure_noise_scale(nn.Linear(4, 1), loss, data(), kind="complicated")
    assert all(kind_of(name).name == name for name in KINDS)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_decay_that_the_optimizer_adds_is_told_apart(weight_decay: float) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, 1), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)
    reading = measure_noise_scale(model, loss, (x, y), optimizer=optimizer, relative_width=1e-9)
    plain = measure_noise_scale(model, loss, (x, y), relative_width=1e-9)
    assert (reading.signal, reading.noise) == (plain.signal, plain.noise)
    if weight_decay == 0.0:
        assert reading.signal_with_decay is None
        return
    loss(model, (x, y)).mean().backward()
    pulled = torch.cat([(p.grad + weight_decay * p.detach()).flatten() for p in model.parameters()])
    assert reading.signal_with_decay == pytest.approx(float(pulled.square().sum()), rel=1e-4)
