"""A run: twin of a loop written by hand, continued bit for bit, alone or among others."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing.problems import classification, cross_entropy, make_task, mlp, weighted_cross_entropy
from torch import Tensor, nn
from torch.utils.data import Dataset

import batchopt.probing.run as run_module
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.data import shuffled_indices
from batchopt.probing.distributed import process_group
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask


def noisy_task(**changes: Any) -> TrainingTask:
    """Dropout and an optimizer with a state."""
    settings: dict[str, Any] = {
        "model": lambda: mlp(dropout=0.5),
        "optimizer": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    }
    return make_task(**(settings | changes))


class Augmented(Dataset[Any]):
    """Examples drawn with the random generators of python, numpy and torch."""

    def __init__(self) -> None:
        self.x, self.y = classification(60)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = random.gauss(0, 1) + float(np.random.randn()) + torch.randn(())  # noqa: NPY002
        return self.x[index] + noise, self.y[index]


def losses(run: TrainingRun, steps: int, batch_size: int = 16) -> list[float]:
    return [run.step(batch_size) for _ in range(steps)]


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
@pytest.mark.parametrize("micro_batch", [1, 5, 16, 40])
def test_twin_a_batch_in_parts_has_the_whole_ones_gradient(loss: Any, micro_batch: int) -> None:
    x, y = classification(50, dtype=torch.float64)
    task = make_task(data=(x, y), loss=loss, model=lambda: mlp().double())
    whole, parts = (TrainingRun(task, learning_rate=0.1, seed=4) for _ in range(2))
    for _ in range(6):
        value = parts.step(16, micro_batch=micro_batch)
        assert value == pytest.approx(whole.step(16), rel=1e-9)
        for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
def test_twin_of_a_loop_by_hand(loss: Any) -> None:
    x, y = classification(50, dtype=torch.float64)
    task = make_task(data=(x, y), loss=loss, model=lambda: mlp().double())
    run = TrainingRun(task, learning_rate=0.1, seed=4)
    run_losses = losses(run, 9)

    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(9):
        chosen = shuffled_indices(50, seed=4, start=16 * step, count=16)
        result = loss(model, (x[chosen], y[chosen]))
        value, weights = result if isinstance(result, tuple) else (result, torch.ones(16, dtype=torch.float64))
        mean = sum(w * v for w, v in zip(weights, value, strict=True)) / sum(weights)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        assert run_losses[step] == pytest.approx(mean.item(), rel=1e-10)
    assert (run.examples_seen, run.steps) == (144, 9)


@pytest.mark.parametrize("make", [noisy_task, lambda: noisy_task(data=Augmented())], ids=["dropout", "augmentation"])
def test_continuing_from_a_snapshot_is_never_having_stopped(make: Any, tmp_path: Path) -> None:
    whole = TrainingRun(make(), learning_rate=0.05, seed=1)
    expected = losses(whole, 12, 25)

    first = TrainingRun(make(), learning_rate=0.05, seed=1)
    assert losses(first, 5, 25) == expected[:5]
    first.evaluate()
    save_snapshot(first, tmp_path / "run.snapshot")
    second = TrainingRun(make(), learning_rate=0.05, seed=1)
    load_snapshot(second, tmp_path / "run.snapshot")
    assert (second.steps, second.examples_seen) == (5, 125)
    assert losses(second, 7, 25) == expected[5:]
    for left, right in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_snapshots_are_tensors_and_plain_values_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(noisy_task(), learning_rate=0.05, seed=1)
    run.step(8)
    file = tmp_path / "run.snapshot"
    save_snapshot(run, file)
    assert torch.load(file, weights_only=True)["steps"] == 1
    old = file.read_bytes()

    def fail_in_the_middle(state: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(run_module.torch, "save", fail_in_the_middle)
    with pytest.raises(OSError, match="disk full"):
        save_snapshot(run, file)
    assert file.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["run.snapshot"]


def test_runs_that_take_turns_give_what_each_gives_alone() -> None:
    alone = [losses(TrainingRun(noisy_task(), learning_rate=0.05, seed=seed), 6) for seed in (0, 1)]
    runs = [TrainingRun(noisy_task(), learning_rate=0.05, seed=seed) for seed in (0, 1)]
    together: list[list[float]] = [[], []]
    for _ in range(6):
        for k, run in enumerate(runs):
            together[k].append(run.step(16))
            run.evaluate()
            torch.rand(3)
    assert together == alone
    assert alone[0] != alone[1]


def test_runs_in_threads_give_what_each_gives_alone() -> None:
    seeds = range(4)
    alone = [losses(TrainingRun(noisy_task(), learning_rate=0.05, seed=seed), 25) for seed in seeds]
    together: dict[int, list[float]] = {}

    def train(seed: int) -> None:
        together[seed] = losses(TrainingRun(noisy_task(), learning_rate=0.05, seed=seed), 25)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in seeds] == alone


def test_the_callers_random_numbers_are_untouched() -> None:
    torch.manual_seed(9)
    expected = torch.rand(5)
    torch.manual_seed(9)
    run = TrainingRun(noisy_task(), learning_rate=0.05, seed=1)
    run.step(16)
    run.evaluate()
    assert torch.equal(torch.rand(5), expected)


def test_evaluation_is_the_weighted_mean_in_evaluation_mode() -> None:
    task = noisy_task(loss=weighted_cross_entropy)
    run = TrainingRun(task, learning_rate=0.05, seed=1)
    run.model[3].eval()
    value = run.evaluate()
    assert (run.model.training, run.model[2].training, run.model[3].training) == (True, True, False)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    run.model.eval()
    each, weights = weighted_cross_entropy(run.model, task.data)
    assert value == pytest.approx(((each * weights).sum() / weights.sum()).item(), rel=1e-5)
    assert run.evaluate() == value


def test_what_is_random_in_an_evaluation_is_drawn_alike_and_from_nobody() -> None:
    def noisy(model: Any, batch: Any) -> Tensor:
        noise = torch.randn(()) + float(np.random.randn()) + random.gauss(0, 1)  # noqa: NPY002
        return cross_entropy(model, batch) + noise

    run = TrainingRun(make_task(loss=noisy), learning_rate=0.05, seed=1)
    torch.manual_seed(9)
    expected = torch.rand(5)
    torch.manual_seed(9)
    before = random.getstate()
    assert run.evaluate() == run.evaluate()
    assert torch.equal(torch.rand(5), expected)
    assert random.getstate() == before


def test_evaluation_data_are_used() -> None:
    x, y = classification(40)
    run = TrainingRun(make_task(eval_data=(x[:7], y[:7])), learning_rate=0.05, seed=1)
    assert run.evaluate() == pytest.approx(cross_entropy(run.model, (x[:7], y[:7])).mean().item(), rel=1e-5)


def rates(run: TrainingRun) -> list[float]:
    return [group["lr"] for group in run.optimizer.param_groups]


def test_learning_rate_is_base_times_group_times_ramp_times_multiplier() -> None:
    def optimizer(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters[:2], "lr": lr}, {"params": parameters[2:], "lr": lr / 4}])

    run = TrainingRun(make_task(optimizer=optimizer, warmup_examples=40), learning_rate=0.8, seed=0)
    run.step(10)
    assert rates(run) == pytest.approx([0.2, 0.05])
    run.step(10, multiplier=0.5)
    assert rates(run) == pytest.approx([0.2, 0.05])
    run.step(40)
    assert rates(run) == pytest.approx([0.8, 0.2])
    run.learning_rate = 0.4
    run.step(10)
    assert rates(run) == pytest.approx([0.4, 0.1])
    apart = TrainingRun(make_task(optimizer=optimizer, warmup_examples=40), learning_rate=0.8, seed=0)
    apart.step(10, multiplier=0.5, warmup=False)
    assert rates(apart) == pytest.approx([0.4, 0.1])


def test_a_rate_that_is_changed_between_steps_is_told_and_one_that_is_loaded_is_not() -> None:
    run = TrainingRun(make_task(), learning_rate=0.1, seed=0)
    run.step(4)
    state = run.state_dict()
    run.learning_rate = 0.05
    run.step(4)
    run.load_state_dict(state)  # holds the rate of the first step
    run.step(4)
    run.optimizer.param_groups[0]["lr"] = 0.01
    with pytest.raises(TaskError, match=r"was changed from 0\.05 to 0\.01: make the optimizer without a scheduler"):
        run.step(4)


def test_indices_can_be_chosen() -> None:
    task = make_task()
    run = TrainingRun(task, learning_rate=0.1, seed=0)
    x, y = task.data
    expected = cross_entropy(run.model, (x[[3, 7]], y[[3, 7]])).mean().item()
    assert run.step(2, indices=np.array([3, 7])) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="as many as batch_size, got 2 and 3"):
        run.step(3, indices=np.array([3, 7]))


def test_before_step_sees_the_gradients_and_may_clip_them() -> None:
    norms = []

    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        norms.append(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5)

    sgd = {"optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)}
    run = TrainingRun(make_task(before_step=clip, **sgd), learning_rate=1.0, seed=0)
    before = torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])
    run.step(16)
    after = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    assert norms == pytest.approx([1e-3], rel=1e-3)
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_mixed_precision_trains() -> None:
    task = make_task(autocast=torch.bfloat16)
    run = TrainingRun(task, learning_rate=0.1, seed=0)
    exact = TrainingRun(make_task(), learning_rate=0.1, seed=0)
    first, first_exact = run.step(32), exact.step(32)
    assert first == pytest.approx(first_exact, rel=0.02)
    assert first != first_exact
    losses(run, 30, 32)
    assert run.evaluate() < 0.7 * first


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    x, y = classification(40)
    x[7, 0] = torch.nan
    run = TrainingRun(make_task(data=(x, y)), learning_rate=0.1, seed=0)
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(
        NonFiniteLossError, match=r"the loss of a batch of 40 became nan after 0 steps .*lower the learning"
    ):
        run.step(40)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.steps == 0
    with pytest.raises(NonFiniteLossError, match="before any training, and the evaluated loss is nan or infinite"):
        run.evaluate()


def test_in_several_processes_too_an_untrained_loss_that_is_not_finite_is_told_with_the_remedy() -> None:
    x, y = classification(40)
    x[7, 0] = torch.nan
    run = TrainingRun(make_task(data=(x, y)), learning_rate=0.1, seed=0)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        run.group = process_group(torch.device("cpu"), of_one=True)
        rule = "before any training, and the evaluated loss is nan or infinite: look for NaN or infinite values in the"
        with pytest.raises(NonFiniteLossError, match=rule):
            run.evaluate()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": iter([])}, "a stream of batches cannot"),
        ({"model": nn.Tanh}, "at least one trainable parameter"),
    ],
)
def test_tasks_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        TrainingRun(make_task(**changes), learning_rate=0.1, seed=0)


def test_a_loss_that_is_detached_from_the_model() -> None:
    run = TrainingRun(make_task(loss=lambda model, batch: model(batch[0]).detach()[:, 0]), learning_rate=0.1, seed=0)
    with pytest.raises(TaskError, match="detached"):
        run.step(4)


@pytest.mark.parametrize(
    ("rate", "seed", "message"), [(0.0, 0, "learning_rate must be positive"), (0.1, -1, "seed must be")]
)
def test_bad_arguments_of_a_run(rate: float, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingRun(make_task(), learning_rate=rate, seed=seed)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_large_weights_do_not_overflow_half_precision(micro_batch: int | None) -> None:
    """Losses are scaled by the weights that are expected: a step or two are skipped at most, as of a whole batch."""
    x, y = classification(200)

    def weighted(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses, torch.full_like(losses, 4_096.0)

    run = TrainingRun(make_task(data=(x, y), loss=weighted, autocast=torch.float16), learning_rate=0.05, seed=0)
    before = run.scaler.get_scale()
    for _ in range(30):
        run.step(16, micro_batch=micro_batch)
    assert run.scaler.get_scale() >= before / 4


def test_a_batch_without_weight_says_so() -> None:
    x, y = classification(40)

    def weightless(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses, torch.zeros_like(losses)

    run = TrainingRun(make_task(data=(x, y), loss=weightless), learning_rate=0.1, seed=0)
    with pytest.raises(TaskError, match="the weights of a batch must add up to more than 0"):
        run.step(16, micro_batch=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_run_with_dropout_goes_on_from_a_snapshot(dtype: torch.dtype, tmp_path: Path) -> None:
    task = noisy_task(device="cuda", autocast=dtype)
    whole = TrainingRun(task, learning_rate=0.01, seed=1)
    expected = losses(whole, 8)
    first = TrainingRun(task, learning_rate=0.01, seed=1)
    losses(first, 4)
    save_snapshot(first, tmp_path / "s")
    second = TrainingRun(task, learning_rate=0.01, seed=1)
    load_snapshot(second, tmp_path / "s")
    assert losses(second, 4) == pytest.approx(expected[4:], rel=1e-3)
