"""Where a training is logged beside its own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from batchopt.errors import MissingPackageError

PROJECT = "batchopt"
"""Name of a project of Weights & Biases, or an experiment of MLflow, where neither the call nor the environment say."""
FOLDER = "runs"
"""TensorBoard's own default."""


class Board(Protocol):
    """Takes what is told of every evaluation."""

    def add(self, told: Mapping[str, float]) -> None:
        """One evaluation, by `told["examples"]` seen."""
        ...

    def close(self) -> None:
        """End the log."""
        ...


def open_board(log: str, *, first_examples: int) -> Board:
    """The board that "wandb", "mlflow" or "tensorboard" names; what follows a colon is its project or folder.

    Args:
        log: for example "tensorboard:runs/first".
        first_examples: what an earlier run wrote from here on is trained again.

    Raises:
        ValueError: it names none of these.
        MissingPackageError: the package is not installed.
    """
    check_log(log)
    name, _, place = log.partition(":")
    return _BOARDS[name](place, first_examples)


def check_log(log: str) -> None:
    """Raise ValueError unless `log` names a board."""
    name, colon, place = log.partition(":")
    if name not in _BOARDS or (colon and not place):
        raise ValueError(
            f"a log is wandb, mlflow or tensorboard, with :PROJECT, :EXPERIMENT or :FOLDER if wanted, got {log!r}"
        )


class TensorBoard:
    """Scalars by examples seen."""

    def __init__(self, folder: str, first_examples: int) -> None:
        writer = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # What is trained again takes the place of what an earlier run wrote.
        self._writer = writer(folder or FOLDER, purge_step=first_examples if first_examples > 0 else None)

    def add(self, told: Mapping[str, float]) -> None:
        """One evaluation."""
        for name, value in told.items():
            if name != "examples":
                self._writer.add_scalar(name, value, global_step=int(told["examples"]))
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, whose charts are by examples seen."""

    def __init__(self, project: str, first_examples: int) -> None:
        wandb = _imported("wandb", "wandb")
        self._run = wandb.init(project=project or os.environ.get("WANDB_PROJECT") or PROJECT)
        # Its own step may not fall, and a run that goes back on a decay sees fewer examples than before.
        self._run.define_metric("*", step_metric="examples")

    def add(self, told: Mapping[str, float]) -> None:
        """One evaluation."""
        self._run.log(dict(told))

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, whose steps are examples seen."""

    def __init__(self, experiment: str, first_examples: int) -> None:
        self._mlflow = _imported("mlflow", "mlflow")
        # A run may be under way, or the environment name one: then it is that one.
        self._is_own = self._mlflow.active_run() is None
        if experiment:
            self._mlflow.set_experiment(experiment)
        elif self._is_own and not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"} & set(os.environ):
            self._mlflow.set_experiment(PROJECT)
        if self._is_own:
            self._mlflow.start_run()

    def add(self, told: Mapping[str, float]) -> None:
        """One evaluation."""
        values = {name: float(value) for name, value in told.items() if name != "examples"}
        self._mlflow.log_metrics(values, step=int(told["examples"]))

    def close(self) -> None:
        """End the run, unless somebody else began it."""
        if self._is_own:
            self._mlflow.end_run()


_BOARDS: dict[str, Callable[[str, int], Board]] = {"wandb": WandB, "mlflow": MLflow, "tensorboard": TensorBoard}
"""Boards by name."""


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"logging to {package} needs a package: pip install {package}") from error
