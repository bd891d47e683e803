"""Optimizer settings that follow the batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask


def task_with(optimizer: object, **changes: object) -> TrainingTask:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    settings: dict[str, object] = {
        "model": lambda: nn.Linear(3, 1),
        "data": (x, x.sum(1)),
        "loss": lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        "optimizer": optimizer,
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))  # type: ignore[arg-type]


def adamw(parameters: object, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.1)  # type: ignore[arg-type]


def test_settings_follow_the_batch_size_of_every_step() -> None:
    run = TrainingRun(
        task_with(adamw, rescale=("weight_decay", "beta2"), base_batch_size=16), learning_rate=0.01, seed=0
    )
    (group,) = run.optimizer.param_groups
    for batch_size, ratio in ((16, 1.0), (32, 2.0), (4, 0.25), (16, 1.0)):
        run.step(batch_size)
        assert group["weight_decay"] == pytest.approx(0.1 * ratio)
        assert group["betas"] == (0.9, pytest.approx(0.99**ratio))


def test_at_the_base_batch_size_nothing_changes() -> None:
    plain = TrainingRun(task_with(adamw), learning_rate=0.01, seed=0)
    rescaled = TrainingRun(task_with(adamw, rescale=("beta2",), base_batch_size=8), learning_rate=0.01, seed=0)
    for _ in range(5):
        assert plain.step(8) == rescaled.step(8)
    assert plain.step(16) == rescaled.step(16)  # the loss before the step
    assert plain.step(16) != rescaled.step(16)


def test_what_cannot_be_rescaled_is_refused() -> None:
    with pytest.raises(ValueError, match="every name in rescale must be one of"):
        task_with(adamw, rescale=("momentum",), base_batch_size=8)
    with pytest.raises(ValueError, match="rescale needs base_batch_size"):
        task_with(adamw, rescale=("beta2",))
    sgd = task_with(lambda p, lr: torch.optim.SGD(p, lr=lr), rescale=("beta2",), base_batch_size=8)
    with pytest.raises(TaskError, match="SGD has no betas"):
        TrainingRun(sgd, learning_rate=0.1, seed=0)


def test_a_run_from_a_snapshot_rescales_too(tmp_path: Path) -> None:
    task = task_with(adamw, rescale=("weight_decay", "beta2"), base_batch_size=8)
    run = TrainingRun(task, learning_rate=0.01, seed=0)
    run.step(8)
    save_snapshot(run, tmp_path / "snapshot")
    again = TrainingRun(task, learning_rate=0.01, seed=0)
    load_snapshot(again, tmp_path / "snapshot")
    again.step(32)
    (group,) = again.optimizer.param_groups
    assert group["weight_decay"] == pytest.approx(0.4)
    assert group["betas"][1] == pytest.approx(0.99**4)
