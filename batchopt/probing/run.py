"""One training run that can be stopped and continued at any step."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchopt._checks import check_count, check_positive
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.data import EVALUATION_SEED, evaluation_batches, fetch, shuffled_indices
from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.rescaling import Rescaling
from batchopt.probing.state import OwnRandomness, evaluating
from batchopt.probing.task import Batch, TrainingTask, batch_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray


RANK_STRIDE = 1_000_003
"""Seeds of what is random in training are this far apart from one process to the next."""


class GradientReader(Protocol):
    """What looks at gradients on their way: a `NoiseScaleMonitor`."""

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient of a whole batch's loss to `.grad`, and give the loss."""

    def micro_batch(self, examples: int) -> None:
        """A part of a batch, of so many examples, has added its gradient."""

    def step(self) -> None:
        """All parts of a batch have."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""


class TrainingRun:
    """A run of a task: its model, its optimizer, and how far it got.

    The run draws from random generators of its own and leaves the process-wide ones as they were after every call, so
    runs that take turns in one process give what each gives alone. (Numpy's and python's generators are the run's own
    only where the data are a data set or have a collate function; tensors need torch's alone.) On a CPU a run continued
    from a snapshot is bit for bit the run that never stopped.

    Args:
        task: what to train; not a stream.
        learning_rate: base learning rate.
        seed: of initialisation, data order and everything random in training.
        hyperparameters: further keywords of the task's optimizer factory.
        group: processes that share every batch, each with its part, by `DistributedDataParallel`; all make the same
            run, and draw what is random in training apart.

    Attributes:
        model: on the task's device.
        optimizer: over the model's trainable parameters.
        learning_rate: base learning rate; may be changed between steps.
        examples_seen: examples that got a gradient: the position in the data order.
        steps: optimizer steps taken.
        scaler: of gradients, under float16.
        reader: looks at the gradients of every step; None for nothing.

    Raises:
        TaskError: the data are a stream, or the model has no trainable parameter.
    """

    def __init__(
        self,
        task: TrainingTask,
        *,
        learning_rate: float,
        seed: int,
        hyperparameters: Mapping[str, float] | None = None,
        group: DefaultGroup | None = None,
    ) -> None:
        check_positive("learning_rate", learning_rate)
        check_count("seed", seed, least=0)
        population = task.population
        if population is None:
            raise TaskError(
                "a run needs data that can be read from any position, and a stream of batches cannot: "
                "give a tuple of tensors or a map-style data set"
            )
        self.task = task
        self.seed = seed
        self.learning_rate = learning_rate
        self.examples_seen = 0
        self.steps = 0
        self.reader: GradientReader | None = None
        self._population = population
        host = not isinstance(task.data, tuple) or task.collate_fn is not None
        self._randomness = OwnRandomness(seed, device=task.torch_device, host=host)
        with self._randomness.active():
            self.model = task.make_model()
            self.optimizer = task.make_optimizer(
                self.model, learning_rate=learning_rate, hyperparameters=hyperparameters
            )
        self._rescaling = Rescaling(self.optimizer, task.rescale, task.base_batch_size or 1)
        self._rate_ratios = [group["lr"] / learning_rate for group in self.optimizer.param_groups]
        self._group = group
        self._trained: nn.Module = self.model
        if group is not None:
            self._trained = _together(self.model, task.torch_device)
            self._randomness = OwnRandomness(seed + RANK_STRIDE * group.rank, device=task.torch_device, host=host)
        scaled = task.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(task.torch_device.type, enabled=scaled)

    def step(
        self,
        batch_size: int,
        *,
        indices: NDArray[np.int64] | None = None,
        multiplier: float = 1.0,
        micro_batch: int | None = None,
    ) -> float:
        """Take one optimizer step on the next examples of the data order, and return the batch's loss before it.

        Args:
            batch_size: examples of the step.
            indices: examples to take instead of the next ones, shape (batch_size,).
            multiplier: of the learning rate, on top of warm-up.
            micro_batch: a larger batch is taken in parts of at most so many examples; the gradient is the whole
                batch's, but for rounding, and what normalises over a batch (BatchNorm) sees the parts.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; no step was taken.
            TaskError: the loss does not return one value per example.
        """
        check_count("batch_size", batch_size)
        if indices is None:
            indices = shuffled_indices(self._population, seed=self.seed, start=self.examples_seen, count=batch_size)
        elif len(indices) != batch_size:
            raise ValueError(f"indices must be as many as batch_size, got {len(indices)} and {batch_size}")
        self._set_learning_rate(batch_size, multiplier)
        self._rescaling.apply(batch_size)
        with self._randomness.active():
            value = self._step(indices, micro_batch or batch_size)
        self.examples_seen += batch_size
        self.steps += 1
        return value

    def batch_loss(self, batch_size: int) -> float:
        """The loss of the next batch of the data order, which is passed over without a step.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        indices = shuffled_indices(self._population, seed=self.seed, start=self.examples_seen, count=batch_size)
        with self._randomness.active(), torch.no_grad():
            value = float(batch_loss(*self.task.losses(self.model, fetch(self.task, indices))).item())
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss of a batch of {batch_size} is {value} {self._where()}")
        self.examples_seen += batch_size
        return value

    def _step(self, indices: NDArray[np.int64], micro_batch: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if self.reader is not None and micro_batch >= len(indices):
            value = float(self.reader.backward(fetch(self.task, indices)).item())
            if not math.isfinite(value):
                raise NonFiniteLossError(f"the loss of a batch of {len(indices)} became {value} {self._where()}")
        elif self._group is None:
            value = self._accumulate(indices, micro_batch)
        else:
            value = self._accumulate_together(indices, micro_batch, self._group)
        if self.task.before_step is not None:
            self.scaler.unscale_(self.optimizer)
            self.task.before_step(self.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _accumulate(self, indices: NDArray[np.int64], micro_batch: int) -> float:
        """The batch's loss, its gradient added to `.grad` in parts."""
        value, weight = 0.0, 0.0
        for begin in range(0, len(indices), micro_batch):
            part = indices[begin : begin + micro_batch]
            losses, weights = self.task.losses(self.model, fetch(self.task, part))
            loss = batch_loss(losses, weights)
            own = float(len(part))
            if len(part) < len(indices):
                # Its share of the whole batch's number of examples; what weights make of that is known at the end.
                own = own if weights is None else float(weights.sum())
                loss = loss * (own / len(indices))
            if not loss.requires_grad:
                raise TaskError(
                    "the loss must depend on the model's trainable parameters, and it is detached from them"
                )
            value, weight = value + loss.item(), weight + own
            if not math.isfinite(value):
                raise NonFiniteLossError(f"the loss of a batch of {len(indices)} became {value} {self._where()}")
            torch.autograd.backward(self.scaler.scale(loss))
            if self.reader is not None:
                self.reader.micro_batch(max(1, round(own)))
        if self.reader is not None:
            self.reader.step()
        if weight != len(indices):
            value *= len(indices) / weight
            self._scale_gradients(len(indices) / weight)
        return value

    def _accumulate_together(self, indices: NDArray[np.int64], micro_batch: int, group: DefaultGroup) -> float:
        """The global batch's loss, its gradient added to `.grad` of every process in parts.

        The processes take as many examples each; where that does not divide, some take one of weight zero.
        """
        own = indices[group.rank :: group.count]
        width = -(-len(indices) // group.count)
        padded = np.concatenate([own, indices[: width - len(own)]])
        counts = torch.arange(width) < len(own)
        sums = torch.zeros(2, dtype=torch.float64)
        starts = range(0, width, micro_batch)
        for begin in starts:
            part = slice(begin, begin + micro_batch)
            with nullcontext() if begin == starts[-1] else self._trained.no_sync():  # type: ignore[operator]
                losses, weights = self.task.losses(self._trained, fetch(self.task, padded[part]))
                weights = torch.ones_like(losses) if weights is None else weights
                weights = weights * counts[part].to(weights)
                total = (weights * losses).sum()
                sums += torch.stack([total.detach(), weights.sum()]).double().cpu()
                # The processes' gradients are averaged: this one's share is worth `count` times itself.
                torch.autograd.backward(self.scaler.scale(total * (group.count / len(indices))))
        value, weight = group.add_up(sums).tolist()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss of a batch of {len(indices)} became {value} {self._where()}")
        if weight != len(indices):
            self._scale_gradients(len(indices) / weight)
        return float(value / weight)

    def _scale_gradients(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _set_learning_rate(self, batch_size: int, multiplier: float) -> None:
        warmup = self.task.warmup_examples
        # The ramp is read at the end of the step, so that the first step moves.
        ramp = min(1.0, (self.examples_seen + batch_size) / warmup) if warmup else 1.0
        for group, ratio in zip(self.optimizer.param_groups, self._rate_ratios, strict=True):
            group["lr"] = self.learning_rate * ratio * ramp * multiplier

    def evaluate(self) -> float:
        """The loss: the (weighted) mean per-example loss at frozen weights in evaluation mode.

        On `eval_data`, or else on a fixed sample of 1,024 training examples. Whatever is random in the loss is drawn
        alike at every evaluation, and the run goes on as if it had not been evaluated.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if self._group is None:
            loss = evaluated_loss(self.task, self.model)
        else:  # the first process's, whose running statistics (BatchNorm) are the model's
            own = evaluated_loss(self.task, self.model) if self._group.rank == 0 else 0.0
            loss = float(self._group.add_up(torch.tensor([own], dtype=torch.float64)).item())
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the evaluated loss became {loss} {self._where()}")
        return loss

    def _where(self) -> str:
        return (
            f"after {self.steps} steps ({self.examples_seen} examples seen, learning rate {self.learning_rate:g}): "
            "lower the learning rate, or look for what is not finite in the data or in the loss"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the run needs to go on: tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "randomness": self._randomness.state_dict(),
            "examples_seen": self.examples_seen,
            "steps": self.steps,
            **({} if self.reader is None else {"reader": self.reader.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. The run keeps its own task, seed of the data order and learning rate.

        The optimizer's other settings become those of the state, as torch's optimizers have it.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self._group is None or self._group.rank == 0:  # what the others drew is not kept: they draw anew
            self._randomness.load_state_dict(state["randomness"])
        self.examples_seen = state["examples_seen"]
        self.steps = state["steps"]
        if self.reader is not None and "reader" in state:
            self.reader.load_state_dict(state["reader"])


def _together(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model, whose gradients are averaged over all processes."""
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def evaluated_loss(task: TrainingTask, model: nn.Module) -> float:
    """The (weighted) mean per-example loss of a model in evaluation mode, on the task's evaluation examples.

    May be NaN or infinite. Global random generators and the model's modes are as before.
    """
    fixed = OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True)
    total, weight = 0.0, 0.0
    with fixed.active(), evaluating(model):
        for batch in evaluation_batches(task):
            losses, weights = task.losses(model, batch)
            weights = torch.ones_like(losses) if weights is None else weights
            total += (weights * losses).sum(dtype=torch.float64).item()
            weight += weights.sum(dtype=torch.float64).item()
    return total / weight if weight else math.nan


def save_snapshot(run: TrainingRun, path: str | os.PathLike[str]) -> None:
    """Write a run's state to `path`, whole or not at all, readable by `torch.load(weights_only=True)`."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(run.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_snapshot(run: TrainingRun, path: str | os.PathLike[str]) -> None:
    """Put a run into the state that `save_snapshot` wrote; the file may come from another device."""
    run.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
