"""The noise scale of sign-like optimizers, on gradients whose deviations and mean are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from batchopt import measure_noise_scale
from batchopt.probing.kinds.sign import _norms_of_block, sign_noise_scale
from batchopt.probing.moments import GradientSums

SIZE = 40


def population(scale: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every coordinate; some have no mean."""
    generator = torch.Generator().manual_seed(0)
    mean = scale * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    mean[::4] = 0.0
    return mean, torch.rand(SIZE, generator=generator, dtype=torch.float64) + 0.5


def groups_of(gradients: Tensor, count: int, weights: Tensor | None = None) -> list[GradientSums]:
    weights = torch.ones(len(gradients), dtype=torch.float64) if weights is None else weights
    sums = []
    for part, weight in zip(gradients.chunk(count), weights.chunk(count), strict=True):
        total = weight @ part
        sums.append(GradientSums(len(part), float(weight.sum()), float(weight.square().sum()), total, None, 0.0))
    return sums


def test_norms_without_a_group_are_those_of_the_others() -> None:
    torch.manual_seed(0)
    sums, units = torch.randn(6, 5, dtype=torch.float64) + 1.0, torch.full((6,), 3.0, dtype=torch.float64)
    every = _norms_of_block(sums, units, units)
    for k in range(6):
        others = torch.cat((sums[:k], sums[k + 1 :]))
        alone = _norms_of_block(others, units[1:], units[1:])
        assert float(every.mean[k + 1]) == pytest.approx(float(alone.mean[0]), rel=1e-12)
        assert float(every.deviation[k + 1]) == pytest.approx(float(alone.deviation[0]), rel=1e-12)
        signs = others.mean(0).sign()
        assert float(every.crossed[k]) == pytest.approx(float(signs @ sums[k] / 3.0), rel=1e-12)


def test_deviations_have_no_bias() -> None:
    mean, deviation = population(0.3)
    torch.manual_seed(1)
    found = []
    for _ in range(200):
        gradients = mean + deviation * torch.randn(32, SIZE, dtype=torch.float64)
        found.append(math.sqrt(sign_noise_scale(groups_of(gradients, 8), group_size=1, left=1.0).noise))
    values = torch.tensor(found)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - float(deviation.sum())) < 4 * error
    assert error < 0.01 * float(deviation.sum()), "the test could see a bias"


@pytest.mark.parametrize(("scale", "count"), [(0.3, 160), (0.3, 1600), (1.0, 64), (0.1, 3200)])
def test_intervals_cover(scale: float, count: int) -> None:
    mean, deviation = population(scale)
    truth = float(deviation.sum() / mean.abs().sum()) ** 2
    torch.manual_seed(2)
    covered, widths = 0, []
    for _ in range(150):
        gradients = mean + deviation * torch.randn(count, SIZE, dtype=torch.float64)
        interval = sign_noise_scale(groups_of(gradients, 32), group_size=1, left=1.0).batch_size
        covered += interval.low <= truth <= interval.high
        widths.append(interval.high / interval.low)
    assert covered >= 0.86 * 150
    assert sorted(widths)[75] < 12.0


def test_intervals_narrow_as_examples_grow() -> None:
    mean, deviation = population(0.3)
    torch.manual_seed(3)
    widths = []
    for count in (320, 3200, 32_000):
        gradients = mean + deviation * torch.randn(count, SIZE, dtype=torch.float64)
        interval = sign_noise_scale(groups_of(gradients, 32), group_size=1, left=1.0).batch_size
        widths.append(math.log(interval.high / interval.low))
    assert widths[0] > 1.5 * widths[1] > 2.0 * widths[2]


def test_noise_alone_is_not_resolved() -> None:
    torch.manual_seed(4)
    resolved = sum(
        sign_noise_scale(groups_of(torch.randn(320, SIZE).double(), 32), group_size=1, left=1.0).batch_size.resolved
        for _ in range(400)
    )
    assert 4 <= resolved <= 38, "5 % of them, four binomial standard deviations either side"


def test_a_whole_population_has_a_known_mean() -> None:
    mean, deviation = population(0.3)
    torch.manual_seed(5)
    gradients = mean + deviation * torch.randn(320, SIZE, dtype=torch.float64)
    reading = sign_noise_scale(groups_of(gradients, 32), group_size=1, left=0.0)
    assert reading.signal == pytest.approx(float(gradients.mean(0).abs().sum()) ** 2, rel=1e-12)
    assert reading.batch_size.resolved


def test_units_that_are_groups_are_counted_in_examples() -> None:
    mean, deviation = population(0.5)
    torch.manual_seed(6)
    gradients = mean + deviation * torch.randn(6400, SIZE, dtype=torch.float64)
    alone = sign_noise_scale(groups_of(gradients, 32), group_size=1, left=1.0)
    grouped = sign_noise_scale(groups_of(gradients.view(1600, 4, SIZE).mean(1), 32), group_size=4, left=1.0)
    assert grouped.noise == pytest.approx(alone.noise, rel=1e-9)
    assert grouped.batch_size.value == pytest.approx(alone.batch_size.value, rel=1e-9)


def test_measured_on_a_model() -> None:
    mean, deviation = population(0.5)
    torch.manual_seed(7)
    model = nn.Linear(SIZE, 1, bias=False).double()
    x = mean + deviation * torch.randn(4000, SIZE, dtype=torch.float64)
    reading = measure_noise_scale(
        model, lambda model, batch: model(batch[0])[:, 0], (x,), kind="sign", infinite_population=True
    )
    truth = float(deviation.sum() / mean.abs().sum()) ** 2
    assert reading.kind == "sign"
    assert reading.batch_size.low <= truth <= reading.batch_size.high
    assert reading.batch_size.high / reading.batch_size.low < 2.0
