"""The curvature-weighted noise scale: against whole Hessians, and on regressions whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt import measure_noise_scale
from batchopt.errors import BudgetError
from batchopt.noise_scale import noise_scale_of
from batchopt.probing.gradients import make_reader
from batchopt.probing.kinds.hessian import CurvatureReader
from batchopt.probing.losses import batch_loss
from batchopt.probing.moments import GradientSums, MomentAccumulator
from batchopt.probing.reading import Reading, rows

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("in_metric", [False, True])


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square()


def weighted_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return squared_error(model, batch), batch[0][:, 0].abs() + 0.1


class Regression:
    """y = x . (weight - offset) + error, x normal with covariance C: gradients and Hessian have known moments."""

    def __init__(self, *, scale: float = 0.3, in_metric: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Linear(4, 1, bias=False).double()
        self.spread = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
        self.offset = scale * torch.randn(4, generator=generator, dtype=torch.float64)
        factors = torch.tensor([[0.5, 1.0, 2.0, 1.5]], dtype=torch.float64)
        self.factors = [factors] if in_metric else None
        metric = factors.square().diagflat() if in_metric else torch.eye(4, dtype=torch.float64)
        c, d = self.spread.square().diagflat(), self.offset[:, None]
        mean = c @ d
        covariance = c * ((d.T @ c @ d) + 1.0) + c @ d @ d.T @ c
        self.signal = float(mean.T @ metric @ c @ metric @ mean)
        self.noise = float(torch.trace(c @ metric @ covariance @ metric))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64) * self.spread
        error = torch.randn(size, generator=generator, dtype=torch.float64)
        return x, x @ (self.model.weight.detach()[0] - self.offset) + error

    def sums(self, batch: tuple[Tensor, Tensor], count: int, group_size: int) -> GradientSums:
        """What the reader gives, of all units at once: gradients by their formula, Hessians by that of x x'."""
        x, y = (part.view(count // (2 * group_size), 2, group_size, -1) for part in batch)
        errors = x @ self.model.weight.detach()[0] - y[..., 0]
        gradients = torch.einsum("ugi,ug->ui", x[:, 0], errors[:, 0]) / group_size
        curved = torch.einsum("ugi,ugj,uj->ui", x[:, 1], x[:, 1], gradients) / group_size
        units = len(gradients)
        squares = float((gradients * curved).sum())
        return GradientSums(units, units, units, gradients.sum(0), None, squares, curved.sum(0))


@pytest.mark.parametrize("loss", [squared_error, weighted_error])
@BOTH
def test_twin_of_whole_hessians(loss: Callable[..., Any], in_metric: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    parameters = list(model.parameters())
    shapes = [p.shape for p in parameters]
    factors = [torch.rand(shape, dtype=torch.float64) + 0.5 for shape in shapes] if in_metric else None
    metric = torch.cat([f.flatten().square() for f in factors]) if factors else torch.ones(21, dtype=torch.float64)
    batch = (torch.randn(24, 3, dtype=torch.float64), torch.randn(24, dtype=torch.float64))

    def mean_loss(flat: Tensor, part: Any) -> tuple[Tensor, Tensor]:
        values = torch.split(flat, [math.prod(shape) for shape in shapes])
        names = dict(
            zip(dict(model.named_parameters()), (v.view(s) for v, s in zip(values, shapes, strict=True)), strict=True)
        )
        result = loss(lambda x: torch.func.functional_call(model, names, (x,)), part)
        losses, weights = result if isinstance(result, tuple) else (result, None)
        return batch_loss(losses, weights), torch.ones(()) if weights is None else weights.sum()

    at = torch.cat([p.detach().flatten() for p in parameters])
    total, curved, squares = torch.zeros(21).double(), torch.zeros(21).double(), 0.0
    for begin in range(0, 24, 8):
        first, second = rows(batch, 24, begin, begin + 4), rows(batch, 24, begin + 4, begin + 8)
        weight = mean_loss(at, first)[1]
        gradient = torch.func.grad(lambda flat, part=first: mean_loss(flat, part)[0])(at)
        product = torch.func.hessian(lambda flat, part=second: mean_loss(flat, part)[0])(at) @ (metric * gradient)
        total += weight * metric * gradient
        curved += weight * product
        squares += float(weight**2 * (metric * gradient) @ product)
    got = CurvatureReader(Reading(model, loss, CPU, factors=factors), group_size=4).read(batch, 24)
    torch.testing.assert_close(got.total, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.curved, curved, rtol=1e-10, atol=1e-12)
    assert got.squares == pytest.approx(squares, rel=1e-10)
    assert got.units == 3


def readings(regression: Regression, *, units: int, repetitions: int) -> Iterator[Any]:
    """Measurements of so many units of 8 + 8 examples."""
    generator = torch.Generator().manual_seed(1)
    reading = Reading(regression.model, squared_error, CPU, factors=regression.factors)
    for _ in range(repetitions):
        reader = make_reader(reading, group_size=8, curved=True)
        accumulator = MomentAccumulator(quota=max(1, units // 16), group_size=8, gradient_bytes=32)
        while accumulator.units < units:
            accumulator.add(
                reader.read(regression.batch(16 * accumulator.missing, generator), 16 * accumulator.missing)
            )
        yield noise_scale_of(accumulator.moments(None))


# With a metric, the twin of whole Hessians says the same.
@pytest.mark.parametrize("in_metric", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_signal_and_noise_have_no_bias(in_metric: bool) -> None:
    regression = Regression(in_metric=in_metric)
    found = list(readings(regression, units=16, repetitions=120))
    for name, truth in (("signal", regression.signal), ("noise", regression.noise)):
        values = torch.tensor([getattr(reading, name) for reading in found])
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - truth) < 4 * error
        assert error < 0.15 * truth, "the test could see a bias"


def test_twin_of_the_sums_of_a_regression() -> None:
    regression = Regression(scale=1.0)
    batch = regression.batch(160, torch.Generator().manual_seed(1))
    got = CurvatureReader(Reading(regression.model, squared_error, CPU), group_size=8).read(batch, 160)
    twin = regression.sums(batch, 160, 8)
    assert (got.units, got.weights, got.weights_squared, got.total_squared) == (10, 10, 10, None)
    assert got.squares == pytest.approx(twin.squares, rel=1e-10)
    torch.testing.assert_close(got.total, twin.total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.curved, twin.curved, rtol=1e-10, atol=1e-12)


def test_intervals_cover() -> None:
    """Of what the reader gives, by the formulas of its twin above: readings, of which there are many, take seconds."""
    regression, generator = Regression(scale=1.0), torch.Generator().manual_seed(1)
    truth = regression.noise / regression.signal
    found = []
    for _ in range(100):
        accumulator = MomentAccumulator(quota=4, group_size=8, gradient_bytes=32)
        while accumulator.units < 64:
            drawn = 16 * accumulator.missing
            accumulator.add(regression.sums(regression.batch(drawn, generator), drawn, 8))
        found.append(noise_scale_of(accumulator.moments(None)).batch_size)
    covered = sum(interval.low <= truth <= interval.high for interval in found)
    # 84 % of many, four binomial standard deviations either side.
    assert 70 <= covered <= 98
    assert sum(interval.resolved for interval in found) >= 80


def test_saddles_without_a_gradient_are_not_resolved() -> None:
    """Curvature of both signs, no signal: 5 % of readings may be resolved, four binomial standard deviations more."""
    curvature = torch.cat((torch.ones(30), -0.9 * torch.ones(30))).double()
    generator = torch.Generator().manual_seed(3)
    resolved = 0
    for _ in range(300):
        gradients = torch.randn(64, 60, generator=generator, dtype=torch.float64)
        accumulator = MomentAccumulator(quota=4, group_size=8, gradient_bytes=480)
        for gradient in gradients:
            curved = curvature * gradient
            accumulator.add(GradientSums(1, 1.0, 1.0, gradient, None, float(gradient @ curved), curved))
        resolved += noise_scale_of(accumulator.moments(None)).batch_size.resolved
    assert resolved <= 30


def test_negative_curvature_is_not_resolved() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1, bias=False).double(), torch.randn(600, 3, dtype=torch.float64)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return -((model(batch[0])[:, 0] + 1.0).square())

    reading = measure_noise_scale(model, loss, (x,), kind="hessian", group_size=4, max_examples=1200)
    assert reading.signal < 0
    assert not reading.resolved
    assert math.isinf(reading.batch_size.high)


def test_what_the_record_says() -> None:
    torch.manual_seed(0)
    regression = Regression(scale=1.0)
    data = regression.batch(4000, torch.Generator().manual_seed(2))
    reading = measure_noise_scale(regression.model, squared_error, data, kind="hessian", relative_width=2.0)
    assert (reading.kind, reading.metric, reading.group_size) == ("hessian", "identity", 32)
    assert "each times the Hessian of as many others" in reading.method
    assert reading.examples % 96 == 0, "a gradient and two for the product"
    assert reading.examples <= 1.5 * 4000
    truth = regression.noise / regression.signal
    assert reading.batch_size.low / 1.5 < truth < reading.batch_size.high * 1.5
    with pytest.raises(BudgetError, match="max_examples must be at least 288 \\(3 gradients of 96 examples' cost each"):
        measure_noise_scale(regression.model, squared_error, data, kind="hessian", max_examples=287)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.heads = nn.Linear(4, 12), nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(self.heads(x, x, x, need_weights=False)[0]).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)


@pytest.mark.parametrize("make", [Attention, Recurrent, Normalised])
def test_products_are_differences_of_gradients(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().double()
    batch = (torch.randn(16, 6, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64))
    reading = Reading(model, squared_error, CPU)
    got = CurvatureReader(reading, group_size=8).read(batch, 16)

    def gradient() -> Tensor:
        losses, _ = reading.losses(rows(batch, 16, 8, 16))
        return torch.cat([g.flatten() for g in reading.gradients(losses.mean()).values()])

    step = 1e-5
    parameters = list(model.parameters())
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p, d in zip(parameters, got.total.split([p.numel() for p in parameters]), strict=True):
                p += sign * step * d.view_as(p)
        sides.append(gradient())
        with torch.no_grad():
            for p, d in zip(parameters, got.total.split([p.numel() for p in parameters]), strict=True):
                p -= sign * step * d.view_as(p)
    torch.testing.assert_close(got.curved, (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [Attention, Recurrent, Normalised])
def test_models_in_float32_are_measured(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    data = (torch.randn(400, 6, 4), torch.randn(400))
    reading = measure_noise_scale(make(), squared_error, data, kind="hessian", group_size=8, max_examples=1200)
    assert math.isfinite(reading.signal)
    assert math.isfinite(reading.noise)


def test_a_loss_without_curvature() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 1, bias=False), (torch.randn(200, 3),)
    reading = measure_noise_scale(model, lambda model, batch: model(batch[0])[:, 0], data, kind="hessian", group_size=4)
    assert not reading.resolved
    assert (reading.signal, reading.noise) == (0.0, 0.0)
