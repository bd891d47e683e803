"""Measurement: against the whole population, its adaptive size, its records, and what it leaves behind."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from probing.problems import classification, cross_entropy, make_task, mlp, seeded, weighted_cross_entropy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import batchopt.probing.measure as measure_module
import batchopt.probing.stopping as stopping_module
from batchopt.errors import BudgetError, NonFiniteLossError, TaskError
from batchopt.noise_scale import GradientMoments, MeasuredAt, NoiseScale, SignalAndNoise, noise_scale_of
from batchopt.probing.kinds.kind import KINDS, Kind
from batchopt.probing.kinds.metric import Metric
from batchopt.probing.measure import has_dropout, measure_noise_scale, measure_run
from batchopt.probing.moments import GradientSums, sum_gradients
from batchopt.probing.run import TrainingRun


def single_gradients(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients (examples, parameters) and weights (examples,), one backward pass each."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients, weights = [], []
    for k in range(len(data[0])):
        result = loss(model, tuple(part[k : k + 1] for part in data))
        value, weight = result if isinstance(result, tuple) else (result, torch.ones(1))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value[0], parameters)]))
        weights.append(weight[0].detach())
    return torch.stack(gradients), torch.stack(weights).to(gradients[0].dtype)


def whole_population(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) of a whole data set, by definition: G = sum w g / sum w, residuals w (g - G) / mean w."""
    g, w = single_gradients(model, loss, data)
    mean = (w[:, None] * g).sum(0) / w.sum()
    residuals = w[:, None] * (g - mean) / w.mean()
    return mean.square().sum().item(), residuals.square().sum().item() / (len(g) - 1)


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
def test_the_whole_population_gives_the_truth(loss: Any) -> None:
    model, data = seeded(mlp).double(), classification(150, dtype=torch.float64)
    noise = measure_noise_scale(model, loss, data, relative_width=1e-9)
    signal, spread = whole_population(model, loss, data)
    assert noise.signal == pytest.approx(signal, rel=1e-10)
    assert noise.noise == pytest.approx(spread, rel=1e-10)
    assert noise.batch_size.value == pytest.approx(spread / signal, rel=1e-9)
    assert (noise.stopped, noise.examples, noise.population, noise.resolved) == ("population", 150, 150, True)


def test_float32_agrees_with_float64() -> None:
    x, y = classification(150)
    model = seeded(mlp)
    single = measure_noise_scale(model, cross_entropy, (x, y), relative_width=1e-9)
    double = measure_noise_scale(model.double(), cross_entropy, (x.double(), y), relative_width=1e-9)
    assert single.signal == pytest.approx(double.signal, rel=5e-5)
    assert single.noise == pytest.approx(double.noise, rel=5e-5)


class LookedUp:
    """A reader of gradients that were taken once: a batch holds the indices of its examples."""

    method = "looked up"

    def __init__(self, gradients: Tensor, group_size: int) -> None:
        self.gradients = gradients
        self.group_size = self.drawn = self.cost = group_size

    def read(self, batch: tuple[Tensor], count: int) -> GradientSums:
        units = self.gradients[batch[0]].view(count // self.group_size, self.group_size, -1).mean(1)
        return sum_gradients({"all": units}, None)


@pytest.mark.parametrize("group_size", [1, 4])
def test_signal_and_noise_are_unbiased(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 400 draws of 96 of 400 examples, |mean - truth| < 4 standard errors.

    Seen failing without the finite-population term (signal), and with a group's noise not scaled by its size.
    """
    model, data = seeded(mlp).double(), classification(400, dtype=torch.float64)
    gradients, _ = single_gradients(model, cross_entropy, data)
    signal, spread = whole_population(model, cross_entropy, data)
    monkeypatch.setattr(measure_module, "make_reader", lambda *args, **keywords: LookedUp(gradients, group_size))
    indices = (torch.arange(400),)
    readings = [
        measure_noise_scale(model, cross_entropy, indices, relative_width=1e-9, max_examples=96, seed=seed)
        for seed in range(400)
    ]
    assert {reading.stopped for reading in readings} == {"budget"}
    for truth, values in ((signal, [r.signal for r in readings]), (spread, [r.noise for r in readings])):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - truth) < 4 * error
        assert error < 0.02 * truth, "too wide to see a bias"


def test_it_measures_until_the_interval_is_narrow() -> None:
    model, data = seeded(mlp), classification(20_000)
    wide = measure_noise_scale(model, cross_entropy, data, relative_width=1.0)
    narrow = measure_noise_scale(model, cross_entropy, data, relative_width=0.15)
    for reading, width in ((wide, 1.0), (narrow, 0.15)):
        interval = reading.batch_size
        assert reading.stopped == "width"
        assert (interval.high - interval.low) / interval.value <= width
    assert 128 <= wide.examples < narrow.examples < 20_000
    assert narrow.batch_size.low < wide.batch_size.high


def test_the_budget_is_a_ceiling_and_is_spent() -> None:
    model, data = seeded(mlp), classification(5000)
    for budget in (3, 100, 777):
        reading = measure_noise_scale(model, cross_entropy, data, relative_width=1e-6, max_examples=budget)
        assert (reading.stopped, reading.examples) == ("budget", budget)


def test_gradients_are_counted_as_they_are_taken() -> None:
    """Nothing beyond the examples that the record names gets a gradient."""
    seen = 0

    class Counted(Dataset[Any]):
        def __init__(self) -> None:
            self.x, self.y = classification(900)

        def __len__(self) -> int:
            return 900

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            nonlocal seen
            seen += 1
            return self.x[index], self.y[index]

    reading = measure_noise_scale(seeded(mlp), cross_entropy, Counted(), relative_width=1e-6, max_examples=500)
    assert seen == reading.examples == 500


def test_tensors_and_data_set_are_measured_alike() -> None:
    model, data = seeded(mlp), classification(300)
    fast = measure_noise_scale(model, cross_entropy, data, relative_width=0.5)
    slow = measure_noise_scale(model, cross_entropy, TensorDataset(*data), relative_width=0.5)
    assert fast == slow


def test_streams() -> None:
    model, data = seeded(mlp).double(), classification(400, dtype=torch.float64)
    loader = DataLoader(TensorDataset(*data), batch_size=30)  # the last batch is smaller
    stream = measure_noise_scale(model, cross_entropy, loader, relative_width=1e-9)
    same = measure_noise_scale(model, cross_entropy, data, relative_width=1e-9, infinite_population=True)
    assert (stream.stopped, stream.examples, stream.population) == ("population", 400, None)
    assert stream.signal == pytest.approx(same.signal, rel=1e-10)
    assert stream.noise == pytest.approx(same.noise, rel=1e-10)
    cut = measure_noise_scale(model, cross_entropy, loader, relative_width=1e-9, max_examples=100)
    assert (cut.stopped, cut.examples) == ("budget", 100)
    narrow = measure_noise_scale(model, cross_entropy, loader, relative_width=5.0)
    assert narrow.stopped == "width"
    grouped = measure_noise_scale(model, cross_entropy, loader, relative_width=1e-9, group_size=10)
    assert (grouped.examples, grouped.group_size) == (400, 10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: iter([]), "three gradients' worth of examples, got 0"),
        (lambda: iter([classification(2)]), "three gradients' worth of examples, got 2"),
        (lambda: classification(2), "data must hold at least 3 examples, got 2"),
    ],
)
def test_too_few_examples(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        measure_noise_scale(mlp(), cross_entropy, data())


def test_too_few_examples_for_groups() -> None:
    with pytest.raises(TaskError, match=r"at least 96 examples \(3 gradients, 32 examples for each\), got 80"):
        measure_noise_scale(mlp(), cross_entropy, classification(80), group_size=32)
    with pytest.raises(BudgetError, match=r"at least 96 \(3 gradients of 32 examples' cost each\), got 95"):
        measure_noise_scale(mlp(), cross_entropy, classification(200), group_size=32, max_examples=95)
    with pytest.raises(TaskError, match="hold the 32 examples of a unit at least, got 8"):
        measure_noise_scale(mlp(), cross_entropy, iter([classification(8)]), group_size=32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "best"}, ValueError, "kind must be one of simple, .*, got 'best'"),
        ({"relative_width": 0.0}, ValueError, "relative_width must be positive"),
        ({"max_examples": 2}, BudgetError, "max_examples must be at least 3"),
        ({"autocast": torch.float64}, ValueError, "autocast must be"),
    ],
)
def test_bad_arguments_of_a_measurement(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure_noise_scale(mlp(), cross_entropy, classification(50), **changes)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.Dropout(0.1), True),
        (lambda: nn.Dropout(0.1).eval(), False),
        (lambda: nn.Dropout(0.0), False),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.AlphaDropout(0.2)), True),
        (lambda: nn.LSTM(2, 2, num_layers=2, dropout=0.3), True),
        (lambda: nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0), False),
    ],
)
def test_dropout_is_found(model: Callable[[], nn.Module], expected: bool) -> None:
    assert has_dropout(model()) is expected


def test_dropout_makes_the_population_infinite_and_counts_as_noise() -> None:
    model, data = seeded(mlp, dropout=0.5), classification(300)
    noisy = measure_noise_scale(model, cross_entropy, data, relative_width=1e-9)
    finite = measure_noise_scale(model, cross_entropy, data, relative_width=1e-9, infinite_population=False)
    still = measure_noise_scale(model.eval(), cross_entropy, data, relative_width=1e-9)
    assert noisy.population is None
    assert (finite.population, still.population) == (300, 300)
    assert noisy.noise > 1.2 * still.noise
    assert noisy.noise == finite.noise, "the draw of dropout belongs to the seed"


class BatchNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_batch_norm_is_measured_in_groups_and_said_so() -> None:
    reading = measure_noise_scale(seeded(BatchNormNet), cross_entropy, classification(1000), group_size=16)
    assert reading.group_size == 16
    assert "groups of 16 examples (BatchNorm1d 'net.1' in training mode" in reading.method
    assert reading.resolved
    small = measure_noise_scale(seeded(BatchNormNet), cross_entropy, classification(100))
    assert small.group_size == 6, "a small data set needs smaller groups than 32 to have enough of them"


def test_models_that_cannot_be_followed_are_read_one_example_at_a_time() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(row if row[0, 0].item() > 0 else row.sin()) for row in x.split(1)])

    model, data = seeded(Branching).double(), classification(60, dtype=torch.float64)
    reading = measure_noise_scale(model, cross_entropy, data, relative_width=1e-9)
    signal, spread = whole_population(model, cross_entropy, data)
    assert (reading.signal, reading.noise) == (pytest.approx(signal), pytest.approx(spread))
    assert "one backward pass each" in reading.method


def test_the_seed_decides() -> None:
    model, data = seeded(mlp, dropout=0.3), classification(3000)

    def reading(seed: int) -> NoiseScale:
        return measure_noise_scale(model, cross_entropy, data, max_examples=200, relative_width=0.01, seed=seed)

    assert reading(1) == reading(1) != reading(2)


def test_a_kind_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(parameters: Any, optimizer: torch.optim.Optimizer | None) -> Metric:
        assert optimizer is not None
        return Metric([torch.full_like(p, 2.0) for p in parameters], "twice the identity")

    monkeypatch.setitem(KINDS, "doubled", Kind("doubled", doubled))
    model, data = seeded(mlp), classification(300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = measure_noise_scale(model, cross_entropy, data)
    reading = measure_noise_scale(model, cross_entropy, data, kind="doubled", optimizer=optimizer)
    assert (reading.kind, reading.metric) == ("doubled", "twice the identity")
    assert reading.signal == pytest.approx(4 * plain.signal, rel=1e-5)
    assert reading.batch_size.value == pytest.approx(plain.batch_size.value, rel=1e-4)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    torch.set_printoptions(precision=10)
    numpy = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    parts = (
        {name: value.tolist() for name, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [(module.training) for module in model.modules()],
        str(optimizer.state_dict()),
        torch.get_rng_state().tolist(),
        numpy,
        random.getstate(),
    )
    return str(copy.deepcopy(parts))


@pytest.mark.parametrize("make", [lambda: mlp(dropout=0.5), BatchNormNet])
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_behind(make: Callable[[], nn.Module], failing: bool) -> None:
    model, data = make(), classification(600)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model, data).mean().backward()
        optimizer.step()
    next(iter(model.parameters())).grad = None
    calls = 0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        np.random.rand()  # noqa: NPY002
        random.random()
        if failing and calls == 12:
            model.eval()
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    before = everything(model, optimizer)
    try:
        measure_noise_scale(model, loss, data, optimizer=optimizer, relative_width=1e-9)
    except KeyboardInterrupt:
        assert failing
    assert calls >= 12
    assert everything(model, optimizer) == before


def test_a_gradient_that_is_not_finite() -> None:
    x, y = classification(100)
    x[37] = torch.inf
    model = nn.Linear(6, 3)
    with pytest.raises(NonFiniteLossError, match="the gradient of parameter 'weight' is NaN or infinite"):
        measure_noise_scale(model, cross_entropy, (x, y))


def test_a_loss_that_does_not_depend_on_the_model() -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        return model(batch[0]).detach().sum(1)

    with pytest.raises(TaskError, match="must depend on the model's trainable parameters, and it is detached"):
        measure_noise_scale(mlp(), loss, classification(50))


def test_gradients_are_enabled_inside_no_grad() -> None:
    with torch.no_grad():
        assert measure_noise_scale(seeded(BatchNormNet), cross_entropy, classification(300)).resolved


def test_a_run_is_measured_and_goes_on_as_if_it_had_not_been() -> None:
    task = make_task(model=lambda: mlp(dropout=0.2), data=classification(300))
    measured, other = (TrainingRun(task, learning_rate=0.1, seed=2) for _ in range(2))
    at = MeasuredAt(examples=80, loss=1.0, batch_size=16, learning_rate=0.1)
    for _ in range(5):
        assert measured.step(16) == other.step(16)
    reading = measure_run(measured, relative_width=0.3, max_examples=200, seed=1, at=at)
    assert reading.at == at
    assert reading.examples <= 200
    assert [measured.step(16) for _ in range(5)] == [other.step(16) for _ in range(5)]


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def spy(moments: GradientMoments) -> SignalAndNoise:
        counts.append(len(moments.units))
        return noise_scale_of(moments)

    monkeypatch.setattr(stopping_module, "noise_scale_of", spy)
    measure_noise_scale(seeded(mlp), cross_entropy, classification(5000), relative_width=1e-9)
    assert len(counts) == 7, "looked at from 128 to 4,096 at every doubling, and at the end"
    assert all(16 <= count <= 32 for count in counts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu() -> None:
    model, (x, y) = seeded(mlp), classification(300)
    expected = measure_noise_scale(model, cross_entropy, (x, y), relative_width=1e-9)
    reading = measure_noise_scale(model.cuda(), cross_entropy, (x, y), relative_width=1e-9)
    assert reading.signal == pytest.approx(expected.signal, rel=1e-3)
    assert reading.noise == pytest.approx(expected.noise, rel=1e-3)
