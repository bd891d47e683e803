"""Logs elsewhere: what is written to each, with stand-ins for packages that are not needed otherwise."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from batchopt import Schedule, TrainingTask, train
from batchopt.errors import MissingPackageError
from batchopt.training.board import check_log, open_board


class WandB:
    """Keeps what is asked of a run."""

    def __init__(self) -> None:
        self.project: str | None = None
        self.axes: list[tuple[str, str]] = []
        self.logged: list[dict[str, float]] = []
        self.finished = 0

    def init(self, *, project: str) -> WandB:
        self.project = project
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


class MLflow:
    """Keeps what is asked of it; `under_way` is the active run."""

    def __init__(self, under_way: object = None) -> None:
        self.under_way = under_way
        self.experiment: str | None = None
        self.logged: list[tuple[dict[str, float], int]] = []
        self.began = self.ended = 0

    def active_run(self) -> object:
        return self.under_way

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def start_run(self) -> None:
        self.began += 1

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        self.logged.append((values, step))

    def end_run(self) -> None:
        self.ended += 1


def task() -> TrainingTask:
    x = torch.linspace(-1, 1, 64)[:, None]
    return TrainingTask(
        model=lambda: nn.Linear(1, 1),
        data=(x, 2 * x[:, 0]),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )


def trained(log: str) -> Any:
    return train(task(), Schedule.constant(8, examples=800, learning_rate=0.1), log=log)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> WandB:
    fake = WandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MLflow:
    fake = MLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    for name in ("NAME", "ID"):
        monkeypatch.delenv(f"MLFLOW_EXPERIMENT_{name}", raising=False)
    return fake


def test_wandb_has_every_evaluation_by_examples_seen(wandb: WandB) -> None:
    result = trained("wandb:mine")
    assert wandb.project == "mine"
    assert wandb.axes == [("*", "examples")]
    assert [told["examples"] for told in wandb.logged] == list(result.curve.examples)
    assert [told["loss"] for told in wandb.logged] == list(result.curve.losses)
    assert {"steps", "batch_size", "learning_rate", "seconds"} <= set(wandb.logged[0])
    assert wandb.finished == 1


def test_mlflow_has_every_evaluation_by_examples_seen(mlflow: MLflow) -> None:
    result = trained("mlflow")
    assert mlflow.experiment == "batchopt"
    assert [step for _, step in mlflow.logged] == list(result.curve.examples)
    assert [values["loss"] for values, _ in mlflow.logged] == list(result.curve.losses)
    assert all("examples" not in values for values, _ in mlflow.logged)
    assert (mlflow.began, mlflow.ended) == (1, 1)


def test_the_environment_names_the_project(wandb: WandB, mlflow: MLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    for log in ("wandb", "mlflow"):
        open_board(log, first_examples=0).close()
    assert wandb.project == "theirs"
    assert mlflow.experiment is None, "mlflow reads it itself"


def test_a_run_of_mlflow_that_is_under_way_is_logged_to_and_left_open(mlflow: MLflow) -> None:
    mlflow.under_way = SimpleNamespace()
    trained("mlflow")
    assert mlflow.logged
    assert (mlflow.began, mlflow.ended, mlflow.experiment) == (0, 0, None)


def test_a_log_ends_with_a_training_that_fails(wandb: WandB) -> None:
    def fail(examples: int, loss: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(task(), Schedule.constant(8, examples=800, learning_rate=0.1), log="wandb", on_evaluation=fail)
    assert wandb.finished == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_the_first_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(MissingPackageError, match=f"logging to {name} needs a package: pip install {name}"):
        trained(name)


@pytest.mark.parametrize("log", ["comet", "wandb:", "", "tensorboard:"])
def test_what_is_no_log(log: str) -> None:
    with pytest.raises(ValueError, match=f"a log is wandb, mlflow or tensorboard, .* got '{log}'"):
        check_log(log)
    with pytest.raises(ValueError, match="a log is"):
        trained(log)
