"""Step time: budgets, the fit of a planted law, memory that runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probing.problems import classification, cross_entropy, make_task, mlp
from torch import Tensor, nn

import batchopt.probing.step_time as step_time_module
from batchopt.errors import BudgetError, NonFiniteLossError, TaskError
from batchopt.probing.run import TrainingRun
from batchopt.probing.step_time import measure_step_cost


class Limited(nn.Module):
    """Runs out of memory above a batch size, as CUDA does."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.net, self.limit = mlp(), limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (planted)")
        return self.net(x)


class Clock:
    """Time that passes only as a law of the batch size says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.per_step, self.per_example, self.warm_up = 1e-3, 2e-5, 10

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Steps take 1 ms and 20 us an example; the first of a batch size takes ten times as long."""
    clock, step = Clock(), TrainingRun.step
    seen: set[int] = set()

    def timed(run: TrainingRun, batch_size: int, **keywords: Any) -> float:
        taken = clock.per_step + clock.per_example * batch_size
        clock.now += taken * (1 if batch_size in seen else clock.warm_up)
        seen.add(batch_size)
        return step(run, batch_size, **keywords)

    monkeypatch.setattr(TrainingRun, "step", timed)
    monkeypatch.setattr(step_time_module.time, "perf_counter", clock.perf_counter)
    return clock


def test_a_planted_law_is_found(clock: Clock) -> None:
    cost, spending, initial_loss = measure_step_cost(make_task(), learning_rate=1e-6, seconds=10.0)
    assert cost.per_step == pytest.approx(1e-3, rel=1e-6)
    assert cost.per_example == pytest.approx(2e-5, rel=1e-6)
    assert not cost.knees
    assert cost.largest_batch_size is None
    assert cost.unit == "seconds"
    assert spending.part == "step time"
    run = TrainingRun(make_task(), learning_rate=1e-6, seed=0)
    # Of some examples of the training set, against the mean over others.
    assert initial_loss == pytest.approx(run.evaluate(), rel=0.1)
    assert spending.seconds == pytest.approx(clock.now)


def sizes_timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    step = TrainingRun.step

    def spy(run: TrainingRun, batch_size: int, **keywords: Any) -> float:
        sizes.append(batch_size)
        return step(run, batch_size, **keywords)

    monkeypatch.setattr(TrainingRun, "step", spy)
    return sizes


@pytest.mark.parametrize("max_examples", [13, 100, 999])
def test_examples_are_a_ceiling_and_all_are_counted(max_examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_timed(monkeypatch)
    _, spending, _ = measure_step_cost(make_task(), learning_rate=1e-6, max_examples=max_examples)
    assert spending.examples == sum(sizes) <= max_examples
    assert spending.steps == len(sizes)
    assert len(set(sizes)) >= 2


def test_too_few_examples_for_two_batch_sizes() -> None:
    with pytest.raises(BudgetError, match="at least 13 to time two batch sizes, got 12"):
        measure_step_cost(make_task(), learning_rate=1e-6, max_examples=12)


@pytest.mark.usefixtures("clock")
def test_bounds_of_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_timed(monkeypatch)
    cost, _, _ = measure_step_cost(make_task(), learning_rate=1e-6, max_batch_size=48)
    assert set(sizes) == {1, 2, 4, 8, 16, 32}
    assert cost.largest_batch_size == 48
    sizes.clear()
    measure_step_cost(make_task(data=classification(20)), learning_rate=1e-6)
    assert max(sizes) == 16


@pytest.mark.parametrize("seconds", [0.1, 0.5, 3.0])
def test_seconds_are_kept(seconds: float, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first step, and two batch sizes, are taken whatever they take."""
    clock.per_example, clock.warm_up = 1e-3, 1
    sizes = sizes_timed(monkeypatch)
    _, spending, _ = measure_step_cost(make_task(data=classification(4000)), learning_rate=1e-6, seconds=seconds)
    assert 0.5 * seconds < spending.seconds <= seconds + 2e-3
    assert max(sizes) >= 1e3 * seconds / 32


@pytest.mark.parametrize("limit", [5, 33, 40, 64, 127])
@pytest.mark.usefixtures("clock")
def test_memory_that_runs_out_is_bracketed(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_timed(monkeypatch)
    task = make_task(model=lambda: Limited(limit))
    cost, spending, _ = measure_step_cost(task, learning_rate=1e-6, max_examples=4000)
    assert cost.largest_batch_size is not None
    assert limit / 1.1 <= cost.largest_batch_size <= limit
    assert max(sizes) > limit
    assert spending.examples == sum(sizes) <= 4000


def test_on_cuda_the_batch_grows_beyond_the_data_until_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the largest batch, on a CPU that the code takes for CUDA."""
    task = make_task(model=lambda: Limited(700), data=classification(50))
    clock = step_time_module._Clock(TrainingRun(task, learning_rate=1e-6, seed=0), left=float("inf"))
    assert step_time_module._time_doubling(clock, 1, 50) is None
    too_large = step_time_module._find_too_large(clock, None)
    assert too_large == 1024
    assert 700 / 1.1 <= step_time_module._largest_that_fits(clock, too_large) <= 700
    assert step_time_module._find_too_large(clock, 600) is None


def test_a_model_that_hardly_fits() -> None:
    with pytest.raises(TaskError, match=r"two batch sizes must fit in memory .* only \[1\] did"):
        measure_step_cost(make_task(model=lambda: Limited(1)), learning_rate=1e-6)


def test_batch_norm_begins_at_two() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

    cost, _, _ = measure_step_cost(make_task(model=model), learning_rate=1e-6, seconds=0.1)
    assert cost(64) > 0


def test_a_loss_that_is_not_finite_comes_through() -> None:
    task = make_task(loss=lambda model, batch: cross_entropy(model, batch) * torch.nan)
    with pytest.raises(NonFiniteLossError, match="became nan"):
        measure_step_cost(task, learning_rate=1e-6)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"seconds": 0.0}, "seconds must be positive"), ({"max_batch_size": 1}, "must be at least 2")],
)
def test_bad_arguments_of_the_timing(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_step_cost(make_task(), learning_rate=1e-6, **keywords)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_finds_the_largest_batch() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 200_000), nn.Tanh(), nn.Linear(200_000, 3))

    cost, _, _ = measure_step_cost(make_task(model=wide, device="cuda"), learning_rate=1e-6, seconds=3.0)
    assert cost.largest_batch_size is not None
    run = TrainingRun(make_task(model=wide, device="cuda"), learning_rate=1e-6, seed=0)
    run.step(int(0.9 * cost.largest_batch_size))
