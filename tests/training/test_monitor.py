"""The noise scale read off the steps of a training."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchopt.errors import TaskError
from batchopt.probing.measure import measure_noise_scale
from batchopt.training.monitor import NoiseScaleMonitor, Units

FEATURES = 6


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weighted(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return loss(model, batch), 0.5 + batch[0][:, 0].abs()


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] + noise > 0).long() + (x[:, 1] > 0.5).long()


def mlp(seed: int = 11) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Unused(nn.Module):
    """A model with a parameter that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def run(monitor: NoiseScaleMonitor, model: nn.Module, steps: int, *, batch: int = 8, seed: int = 0) -> None:
    """Steps at frozen weights."""
    for step in range(steps):
        model.zero_grad()
        monitor.backward(draw(batch, seed * 100_000 + step))


@pytest.mark.parametrize("units", ["halves", "examples"])
@pytest.mark.parametrize("of", [loss, weighted])
@pytest.mark.parametrize("batch", [2, 7, 16])
@pytest.mark.parametrize("model", [mlp(), Unused()])
def test_gradient_and_loss_of_a_read_step_are_those_of_a_plain_one(
    units: Units, of: Any, batch: int, model: nn.Module
) -> None:
    monitor = NoiseScaleMonitor(model, of, every=1, units=units)
    for step in range(4):
        data = draw(batch, step)
        model.zero_grad()
        losses = of(model, data)
        value = losses.mean() if of is loss else (losses[0] * losses[1]).sum() / losses[1].sum()
        value.backward()
        plain = gradients(model)
        model.zero_grad()
        read = monitor.backward(data)
        torch.testing.assert_close(read.double(), value.detach(), rtol=1e-6, atol=0)
        for ours, theirs in zip(gradients(model), plain, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert monitor.failure is None
    assert monitor.reading is not None
    assert monitor.reading.examples == 2 * batch  # the latest half of four steps


@pytest.mark.parametrize("units", ["halves", "examples"])
@pytest.mark.parametrize("masked", [slice(0, 4), slice(3, 8), slice(0, 7)])
def test_a_part_without_weight_adds_nothing(units: Units, masked: slice) -> None:
    model = mlp()

    def of(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return loss(model, batch), batch[2]

    monitor = NoiseScaleMonitor(model, of, every=1, units=units)
    for step in range(6):
        x, y = draw(8, step)
        weights = torch.ones(8, dtype=torch.float64)
        weights[masked] = 0.0
        model.zero_grad()
        losses = loss(model, (x, y))
        ((losses * weights).sum() / weights.sum()).backward()
        plain = gradients(model)
        model.zero_grad()
        monitor.backward((x, y, weights))
        for ours, theirs in zip(gradients(model), plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert monitor.failure is None
    assert monitor.skipped == 0


def test_gradients_are_added_to_what_is_there() -> None:
    model = mlp()
    monitor = NoiseScaleMonitor(model, loss, every=1, units="halves")
    parts = [draw(8, seed) for seed in range(4)]
    for part in parts:
        loss(model, part).mean().backward()
    expected = gradients(model)
    model.zero_grad()
    for part in parts:
        monitor.backward(part)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("units", ["halves", "examples"])
def test_a_gradient_that_autograd_gives_to_two_parameters_or_without_memory(units: Units) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return ((self.first + self.second) * x).sum(-1)

    model = Sums()
    x = torch.arange(15.0).view(5, 3)
    monitor = NoiseScaleMonitor(
        model, lambda model, batch: (model(batch[0]), 1.0 + batch[0][:, 0]), every=1, units=units
    )
    for _ in range(2):
        model.zero_grad()
        monitor.backward((x,))
    expected = ((1 + x[:, :1]) * x).sum(0) / (1 + x[:, 0]).sum()
    torch.testing.assert_close(model.first.grad, expected)
    torch.testing.assert_close(model.second.grad, expected)


def moments_of(monitor: NoiseScaleMonitor) -> tuple[float, float]:
    reading = monitor.reading
    assert reading is not None
    return reading.signal, reading.noise


@pytest.mark.parametrize("of", [loss, weighted])
def test_examples_of_one_batch_are_measured_as_at_frozen_weights(of: Any) -> None:
    model, data = mlp(), draw(40, 3)
    monitor = NoiseScaleMonitor(model, of, every=1, units="examples", window=2)
    for _ in range(3):
        model.zero_grad()
        monitor.backward(data)
    frozen = measure_noise_scale(model, of, data, infinite_population=True, relative_width=1e-3)
    # With weights, pairs of examples count by their weights here, and whole means there: the same but for 1/40.
    tolerance = 1e-9 if of is loss else 0.025
    assert moments_of(monitor) == pytest.approx((frozen.signal, frozen.noise), rel=tolerance)


def test_halves_of_one_batch_are_two_groups() -> None:
    model, data = mlp(), draw(40, 3)
    monitor = NoiseScaleMonitor(model, loss, every=1, units="halves", window=2)
    halves = []
    for begin in (0, 20):
        model.zero_grad()
        loss(model, (data[0][begin : begin + 20], data[1][begin : begin + 20])).mean().backward()
        halves.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    for _ in range(3):
        model.zero_grad()
        monitor.backward(data)
    product, difference = float(halves[0] @ halves[1]), halves[0] - halves[1]
    assert moments_of(monitor) == pytest.approx((product, 10 * float(difference @ difference)), rel=1e-9)


def accumulate(monitor: NoiseScaleMonitor, model: nn.Module, data: Any, sizes: list[int]) -> None:
    model.zero_grad()
    begin = 0
    for size in sizes:
        part = tuple(leaf[begin : begin + size] for leaf in data)
        (loss(model, part).sum() / sum(sizes)).backward()
        monitor.micro_batch(size)
        begin += size
    monitor.step()


def test_micro_batches_are_groups() -> None:
    model, data = mlp(), draw(48, 3)
    monitor = NoiseScaleMonitor(model, every=1, window=2)
    for _ in range(3):
        accumulate(monitor, model, data, [8] * 6)
    # A stream is read in its order: the same six groups.
    frozen = measure_noise_scale(model, loss, iter([data]), group_size=8, relative_width=1e-3)
    assert moments_of(monitor) == pytest.approx((frozen.signal, frozen.noise), rel=1e-9)
    assert monitor.reading is not None
    assert monitor.reading.group_size == 8


@pytest.mark.parametrize(
    ("kind", "batches", "every"),
    [("halves", [4, 32], 4), ("examples", [8, 3], 1), ("examples", [8], 5), ("micro-batches", [6, 24], 3)],
)
def test_signal_and_noise_are_unbiased(kind: str, batches: list[int], every: int) -> None:
    """Also where plain steps add the norms of their gradients, and the batch size changes."""
    model = mlp()
    truth = measure_noise_scale(model, loss, draw(20_000, 77), relative_width=0.02, infinite_population=True)
    found = []
    for repetition in range(16):
        units: Units = "examples" if kind == "examples" else "halves"
        monitor = NoiseScaleMonitor(model, loss, every=every, units=units, window=1000)
        for step in range(41):
            data = draw(batches[step % len(batches)], 1000 * repetition + step)
            if kind == "micro-batches":
                accumulate(monitor, model, data, [len(data[0]) // 6 * k for k in (1, 2, 3)])
            else:
                model.zero_grad()
                monitor.backward(data)
        found.append(moments_of(monitor))
    values = np.array(found)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    truths = np.array([truth.signal, truth.noise])
    assert np.all(np.abs(values.mean(0) - truths) < 4 * error + 0.02 * truths)


def test_signal_is_unresolved_where_there_is_none() -> None:
    x = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(2))
    model = nn.Linear(5, 1, bias=False)
    nn.init.zeros_(model.weight)
    labels = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    monitor = NoiseScaleMonitor(
        model, lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(), every=2, units="halves"
    )
    for begin in range(0, 1600, 8):
        model.zero_grad()
        monitor.backward((x[begin : begin + 8], labels[begin : begin + 8]))
    assert monitor.reading is not None
    assert not monitor.reading.resolved
    assert monitor.reading.batch_size.low > 0


def test_the_reading_forgets_what_left_the_window() -> None:
    model = mlp()
    monitor = NoiseScaleMonitor(model, loss, every=1, units="halves", window=50)
    run(monitor, model, 60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    run(monitor, model, 60, seed=1)
    fresh = NoiseScaleMonitor(model, loss, every=1, units="halves", window=50)
    run(fresh, model, 60, seed=1)
    assert moments_of(monitor) == pytest.approx(moments_of(fresh), rel=0.1)


def test_steps_needed_shrink_as_the_width_grows() -> None:
    model = mlp()
    monitor = NoiseScaleMonitor(model, loss, every=2, units="halves")
    assert monitor.steps_needed(0.3) == float("inf")
    run(monitor, model, 200)
    assert monitor.steps_needed(0.1) > monitor.steps_needed(0.3) > 0
    assert monitor.steps_needed(50.0) == 0
    needed = monitor.steps_needed(0.6)
    run(monitor, model, int(1.3 * needed), seed=1)
    assert monitor.reading is not None
    reading = monitor.reading.batch_size
    assert (reading.high - reading.low) / reading.value < 0.9


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    model = mlp()
    for units in ("halves", "examples"):
        monitor = NoiseScaleMonitor(model, loss, every=2, units=units)  # type: ignore[arg-type]
        clean = NoiseScaleMonitor(model, loss, every=2, units=units)  # type: ignore[arg-type]
        for step in range(60):
            data = draw(8, step)
            model.zero_grad()
            if step % 10 < 2:
                bad = data[0].clone()
                bad[3, 2] = float("nan")
                assert torch.isnan(monitor.backward((bad, data[1])))
                assert all(bool(torch.isnan(parameter.grad).any()) for parameter in model.parameters())
            else:
                monitor.backward(data)
                model.zero_grad()
                clean.backward(data)
        assert monitor.skipped == 12
        assert monitor.failure is None
        assert np.isfinite(moments_of(monitor)).all()


def test_a_loss_scale_is_taken_out_and_overflow_skipped() -> None:
    model = mlp().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    monitor = NoiseScaleMonitor(model, loss, every=2, units="auto", scaler=scaler)
    plain = NoiseScaleMonitor(model, loss, every=2, units="halves")
    for step in range(40):
        x, y = draw(8, step)
        factor = 1e36 if step == 10 else 1.0
        optimizer.zero_grad()
        monitor.backward((x.float() * factor, y))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if step != 10:
            optimizer.zero_grad()
            plain.backward((x.float(), y))
    assert monitor.failure is None
    assert scaler.get_scale() != 2.0**14
    assert moments_of(monitor)[1] == pytest.approx(moments_of(plain)[1], rel=0.5)


@pytest.mark.parametrize("units", ["halves", "examples"])
@pytest.mark.parametrize("around", [False, True])
def test_mixed_precision_is_that_of_the_training(units: Units, around: bool) -> None:
    model = mlp().float()
    monitor = NoiseScaleMonitor(model, loss, every=1, units=units, autocast=None if around else torch.bfloat16)
    for step in range(3):
        x, y = draw(16, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = loss(model, (x.float(), y)).mean()
        model.zero_grad()
        plain.backward()
        expected = gradients(model)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around):
            value = monitor.backward((x.float(), y))
        torch.testing.assert_close(value.float(), plain.detach().float(), rtol=1e-2, atol=0)
        exact = loss(model, (x.float(), y)).mean().detach()
        assert step > 0 or value != exact
        for ours, theirs in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-3)
    assert monitor.failure is None
    assert monitor.reading is not None


@pytest.mark.parametrize("change", [0.5, 1024.0])
def test_a_gradient_that_was_clipped_or_unscaled_too_early_is_noticed(change: float) -> None:
    model, data = mlp(), draw(16, 0)
    monitor = NoiseScaleMonitor(model, every=1)

    def train() -> None:
        for _ in range(4):
            model.zero_grad()
            for half in (slice(0, 8), slice(8, 16)):
                loss(model, (data[0][half], data[1][half])).mean().backward()
                monitor.micro_batch(8)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(change)
            monitor.step()

    with pytest.warns(RuntimeWarning, match="no longer read.*must come before gradients are unscaled or clipped"):
        train()
    assert monitor.failure is not None


def test_one_micro_batch_is_too_few() -> None:
    model, data = mlp(), draw(16, 0)
    monitor = NoiseScaleMonitor(model, every=1)

    def train() -> None:
        for _ in range(9):
            accumulate(monitor, model, data, [16])

    with pytest.warns(RuntimeWarning, match="at least two micro-batches to be read, got 1") as caught:
        train()
    assert len(caught) == 1
    assert monitor.reading is None


def test_a_failure_never_stops_the_training() -> None:
    model = mlp()

    def whole_only(model: Any, batch: Any) -> Tensor:
        if len(batch[0]) != 8:
            raise RuntimeError("only batches of 8")
        return loss(model, batch)

    monitor = NoiseScaleMonitor(model, whole_only, every=2)

    def train() -> None:
        for step in range(30):
            data = draw(8, step)
            model.zero_grad()
            monitor.backward(data)
            ours = gradients(model)
            model.zero_grad()
            loss(model, data).mean().backward()
            for our, plain in zip(ours, gradients(model), strict=True):
                torch.testing.assert_close(our, plain, rtol=0, atol=0)

    with pytest.warns(RuntimeWarning, match="the training is not affected .*only batches of 8") as caught:
        train()
    assert len(caught) == 1
    assert monitor.failure is not None
    assert "only batches of 8" in monitor.failure


def test_what_is_wrong_with_the_loss_is_raised() -> None:
    model = mlp()
    with pytest.raises(TaskError, match="needs the monitor's loss"):
        NoiseScaleMonitor(model).backward(draw(8, 0))
    monitor = NoiseScaleMonitor(model, lambda model, batch: loss(model, batch)[:, None], every=1)
    with pytest.raises(TaskError, match="one value per example"):
        monitor.backward(draw(8, 0))


@pytest.mark.parametrize("units", ["halves", "examples"])
def test_a_training_goes_on_from_saved_state(units: Units) -> None:
    model = mlp()
    whole, first, second = (NoiseScaleMonitor(model, loss, every=3, units=units) for _ in range(3))
    for step in range(80):
        data = draw(8, step)
        if step == 40:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for monitor in (whole, first if step < 40 else second):
            model.zero_grad()
            monitor.backward(data)
    assert second.steps == whole.steps == 80
    assert second.reading == whole.reading


def test_readings_keep_to_the_overhead() -> None:
    """Times are set by hand: a read step takes 1.25 of a plain one, a norm a thousandth."""
    model = mlp()
    monitor = NoiseScaleMonitor(model, loss, overhead=0.01, units="halves")
    for way in monitor._ways:
        way.pace.took = lambda extra, plain, pace=way.pace: type(pace).took(pace, extra=0.25, plain=1.0)  # type: ignore
    norms = monitor._norms
    norms.took = lambda extra, plain: type(norms).took(norms, extra=0.001, plain=1.0)  # type: ignore
    run(monitor, model, 20)
    assert monitor.every == 28  # 0.25 / (0.01 - 0.001)
    before = monitor._noise.readings
    run(monitor, model, 28)
    assert monitor._noise.readings >= before - 3  # the window forgets some
    assert monitor.every_norm == 1


def test_of_two_ways_the_one_that_says_more_for_its_time_is_kept() -> None:
    model = mlp()
    for cheap, dear in (("halves", "examples"), ("examples", "halves")):
        monitor = NoiseScaleMonitor(model, loss, overhead=0.05)
        costs = {cheap: 0.1, dear: 0.9}
        for way in monitor._ways:
            way.pace.took = (  # type: ignore
                lambda extra, plain, pace=way.pace, cost=costs[way.name]: type(pace).took(pace, extra=cost, plain=1.0)
            )
        run(monitor, model, 60)
        assert monitor._latest is not None
        assert monitor._latest.name == cheap


def test_batch_norm_is_read_in_halves() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    monitor = NoiseScaleMonitor(model, loss, every=2)
    run(monitor, model, 40, batch=16)
    assert monitor.failure is None
    assert monitor.reading is not None
    assert monitor.reading.method.startswith("the two halves")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overhead": 0.0}, "overhead must be positive and finite, got 0.0"),
        ({"overhead": 3.0}, "overhead must be a share of the training's time, 1 at most, got 3"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"units": "thirds"}, "units must be one of 'auto', 'examples', 'halves', got 'thirds'"),
        ({"autocast": torch.int8}, "autocast must be None"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseScaleMonitor(mlp(), loss, **settings)
