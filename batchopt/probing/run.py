"""One training run that can be stopped and continued at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from batchopt._checks import check_count, check_positive
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.data import fetch, order_of
from batchopt.probing.distributed import DefaultGroup, process_group
from batchopt.probing.evaluation import Evaluation, collector_of, evaluate, untrained_fault
from batchopt.probing.losses import batch_loss, check_counts
from batchopt.probing.reading import rows
from batchopt.probing.rescaling import Rescaling
from batchopt.probing.rollouts import Collector
from batchopt.probing.sharded_gradients import check_sharding
from batchopt.probing.sharding import is_sharded, reshard, shard_model_state, shard_optimizer_state, whole_on_cpu
from batchopt.probing.state import OwnRandomness
from batchopt.probing.step_rates import StepRates
from batchopt.probing.task import TrainingTask

if TYPE_CHECKING:
    from numpy.typing import NDArray


RANK_STRIDE, EXAMPLE_STRIDE = 1_000_003, 7_919
"""Seeds of what is random in training are this far apart from one process to the next, and for every example before."""


class TrainingRun:
    """A run of a task: its model, its optimizer, and how far it got.

    The run draws from random generators of its own and leaves the process-wide ones as they were after every call, so
    runs that take turns in one process give what each gives alone. (Numpy's and python's generators are the run's own
    only where the data may draw from them; tensors need torch's alone.) On a CPU a run continued
    from a snapshot is bit for bit the run that never stopped.

    Args:
        task: what to train; not a stream without a seed.
        learning_rate: base learning rate.
        seed: of initialisation, data order and everything random in training.
        hyperparameters: further keywords of the task's optimizer factory.
        group: processes that share every batch; their gradients are added up after the backward pass. All make the same
            run, begin with the first one's weights, and draw what is random in training apart. A model that is sharded
            (FSDP2) is always trained by all processes of the default group, and must be made alike in each.

    Attributes:
        model: on the task's device.
        optimizer: over the model's trainable parameters.
        learning_rate: base learning rate; may be changed between steps.
        examples_seen: examples that got a gradient: the position in the data order.
        steps: optimizer steps taken.
        remake: makes the run before its first step, without holding this one; of several processes all must call it.
        scaler: of gradients, under float16.
        group: that it is trained by; None for this process alone.
        is_sharded: whether every process holds a part of every parameter only.

    Raises:
        TaskError: the data are a stream without a seed, or the model has no trainable parameter.
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
        if task.is_stream:
            raise TaskError(
                "a run needs data that can be read from any position, and a stream of batches cannot: "
                "give a tuple of tensors, a map-style data set, or a function that opens a stream of examples by a seed"
            )
        self.task = task
        self.seed = seed
        self.learning_rate = learning_rate
        self.remake: Callable[[], TrainingRun] = partial(
            TrainingRun, task, learning_rate=learning_rate, seed=seed, hyperparameters=hyperparameters, group=group
        )
        self.examples_seen = 0
        self.steps = 0
        host = not isinstance(task.data, tuple) or task.collate_fn is not None
        self._randomness = OwnRandomness(seed, device=task.torch_device, host=host)
        with self._randomness.active():
            self.model = task.make_model()
            self.optimizer = task.make_optimizer(
                self.model, learning_rate=learning_rate, hyperparameters=hyperparameters
            )
        self._collector = collector_of(task, seed)
        self._rescaling = Rescaling(self.optimizer, task.rescale, task.base_batch_size or 1)
        self._rates = StepRates(self.optimizer, learning_rate)
        self._mean_weight = 1.0
        self.is_sharded = is_sharded(self.model.parameters())
        if self.is_sharded:
            group = process_group(task.torch_device, of_one=True)
            check_sharding(self.model, group)
        self.group, self._host = group, host
        if group is not None:
            if self._collector is not None:
                raise TaskError("roll-outs are trained on by one process: start it without torchrun")
            _check_no_fsdp1(self.model)
            group.share([t for t in (*self.model.parameters(), *self.model.buffers()) if not is_sharded([t])])
            self._draw_apart(group)
        scaled = task.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(task.torch_device.type, enabled=scaled)

    def step(
        self,
        batch_size: int,
        *,
        indices: NDArray[np.int64] | None = None,
        multiplier: float = 1.0,
        micro_batch: int | None = None,
        warmup: bool = True,
    ) -> float:
        """Take one optimizer step on the next examples of the data order, and return the batch's loss before it.

        Of roll-outs: let the model act, step as often as they say on what came of it, and return the loss by the score.

        Args:
            batch_size: examples of the step.
            indices: examples to take instead of the next ones, shape (batch_size,).
            multiplier: of the learning rate, on top of warm-up.
            warmup: whether the task's warm-up is multiplied on; False where the multiplier holds one.
            micro_batch: a larger batch is taken in parts of at most so many examples; the gradient is the whole
                batch's, but for rounding, and what normalises over a batch (BatchNorm) sees the parts.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; no step was taken.
            TaskError: the loss does not return one value per example, or something else than the run has set the
                optimizer's learning rate since the last step.
        """
        check_count("batch_size", batch_size)
        if indices is not None and len(indices) != batch_size:
            raise ValueError(f"indices must be as many as batch_size, got {len(indices)} and {batch_size}")
        self._rates.set(self.learning_rate_at(self.examples_seen, batch_size, multiplier, warmup=warmup))
        self._rescaling.apply(batch_size)
        with self._randomness.active():
            if self._collector is not None:
                value = self._learn(self._collector, batch_size, micro_batch or batch_size)
            else:
                value = self._step(self._next(batch_size) if indices is None else indices, micro_batch or batch_size)
        self.examples_seen += batch_size
        self.steps += 1
        return value

    def batch_loss(self, batch_size: int) -> float:
        """The loss of the next batch of the data order, which is passed over without a step.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        with self._randomness.active(), torch.no_grad():
            value = self._loss_of_next(batch_size)
            reshard(self.model)
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss of a batch of {batch_size} is {value} {self._where()}")
        self.examples_seen += batch_size
        return value

    def _next(self, count: int) -> NDArray[np.int64]:
        return order_of(self.task.data, seed=self.seed, start=self.examples_seen, count=count)

    def _loss_of_next(self, count: int) -> float:
        if self._collector is not None:
            return self._collector.batch(self.model, count, at=self.examples_seen)[1]
        indices = self._next(count)
        if self.group is None:
            return float(batch_loss(*self.task.losses(self.model, fetch(self.task, indices))).item())
        own, counts = self._share(indices)
        losses, weights = self._counted(own, counts)
        sums = torch.stack([(weights * losses).sum(), weights.sum()]).double().cpu()
        total, weight = self.group.add_up(sums).tolist()
        return float(total / weight) if weight else math.nan

    def _share(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        """This process's examples of a batch, as many as every other's, and which of them count."""
        rank, count = (0, 1) if self.group is None else (self.group.rank, self.group.count)
        own, width = indices[rank::count], -(-len(indices) // count)
        return np.concatenate([own, indices[: width - len(own)]]), torch.arange(width) < len(own)

    def _counted(self, indices: NDArray[np.int64], counts: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and weights that are zero for examples that do not count."""
        losses, weights = self.task.losses(self.model, fetch(self.task, indices))
        check_counts(losses, counts)
        return losses, counts.to(losses) if weights is None else weights * counts.to(weights)

    def _step(self, indices: NDArray[np.int64], micro_batch: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        at_once = micro_batch >= len(indices) and self.group is None
        value = self._at_once(indices) if at_once else self._in_parts(indices, micro_batch)
        self._update()
        return value

    def _learn(self, collector: Collector, count: int, micro_batch: int) -> float:
        """Let the model act, and take the optimizer steps on what it did; the loss by the score."""
        batch, value = collector.batch(self.model, count, at=self.examples_seen)
        for _ in range(collector.rollouts.passes):
            self.optimizer.zero_grad(set_to_none=True)
            weight = 0.0
            for begin in range(0, count, micro_batch):
                losses, weights = self.task.losses(self.model, rows(batch, count, begin, begin + micro_batch))
                weights = torch.ones_like(losses) if weights is None else weights
                total = (weights * losses).sum()
                _check_attached(total)
                self._finite(total.item(), count)
                weight += weights.sum(dtype=torch.float64).item()
                torch.autograd.backward(self.scaler.scale(total / count))
            if weight <= 0:
                raise TaskError(f"the weights of a batch must add up to more than 0, got {weight} {self._where()}")
            self._scale_gradients(count / weight)
            self._update()
        return value

    def _update(self) -> None:
        """Step by the gradients."""
        if self.task.before_step is not None:
            self.scaler.unscale_(self.optimizer)
            self.task.before_step(self.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _at_once(self, indices: NDArray[np.int64]) -> float:
        """The batch's loss, its gradient added to `.grad`."""
        batch = fetch(self.task, indices)
        loss = batch_loss(*self.task.losses(self.model, batch))
        _check_attached(loss)
        value = self._finite(loss.item(), len(indices))
        torch.autograd.backward(self.scaler.scale(loss))
        return value

    def _in_parts(self, indices: NDArray[np.int64], micro_batch: int) -> float:
        """The loss of a batch that is taken in parts, by this process or by several, and its gradient added to `.grad`.

        Processes take as many examples each; where that does not divide, some take one of weight zero.
        """
        own, counts = self._share(indices)
        # What the batch's weights add up to is known at the end; the last batch's keep a scaled loss from overflowing.
        guess = len(indices) * self._mean_weight
        sums = torch.zeros(2, dtype=torch.float64)
        for begin in range(0, len(own), micro_batch):
            part = slice(begin, begin + micro_batch)
            losses, weights = self._counted(own[part], counts[part])
            total = (weights * losses).sum()
            _check_attached(total)
            sums += torch.stack([total.detach(), weights.sum()]).double().cpu()
            torch.autograd.backward(self.scaler.scale(total / guess))
        if self.group is not None:
            self.group.add_up(sums)
            self._add_up_gradients(self.group)
        total_loss, weight = sums.tolist()
        self._finite(total_loss, len(indices))
        if weight <= 0:
            raise TaskError(f"the weights of a batch must add up to more than 0, got {weight} {self._where()}")
        if guess != weight:
            self._scale_gradients(guess / weight)
        self._mean_weight = weight / len(indices)
        return float(total_loss / weight)

    def _draw_apart(self, group: DefaultGroup) -> None:
        """Let what is random in training differ from one process to the next, and from where the run was before."""
        seed = self.seed + RANK_STRIDE * group.rank + EXAMPLE_STRIDE * self.examples_seen
        self._randomness = OwnRandomness(seed, device=self.task.torch_device, host=self._host)

    def _finite(self, loss: float, batch_size: int) -> float:
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss of a batch of {batch_size} became {loss} {self._where()}")
        return loss

    def _add_up_gradients(self, group: DefaultGroup) -> None:
        """Sum the gradients of all processes; a parameter that none of them used is left without one.

        Of a sharded model the backward pass has left the mean.
        """
        if self.is_sharded:
            self._scale_gradients(group.count)
            return
        parameters = [parameter for each in self.optimizer.param_groups for parameter in each["params"]]
        used = group.add_up(torch.tensor([float(parameter.grad is not None) for parameter in parameters]))
        gradients: dict[torch.dtype, list[Tensor]] = {}
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if count:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for alike in gradients.values():
            flat = group.add_up(torch.cat([gradient.reshape(-1) for gradient in alike]))
            for gradient, summed in zip(alike, torch.split(flat, [each.numel() for each in alike]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _scale_gradients(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def learning_rate_at(
        self, examples: int, batch_size: int, multiplier: float = 1.0, *, warmup: bool = True
    ) -> float:
        """The rate of a step of `batch_size` that begins at `examples`, with or without the task's warm-up."""
        rises_over = self.task.warmup_examples if warmup else 0
        # The ramp is read at the end of the step, so that the first step moves.
        ramp = min(1.0, (examples + batch_size) / rises_over) if rises_over else 1.0
        return self.learning_rate * ramp * multiplier

    def evaluate(self) -> float:
        """The loss alone of an `evaluation`."""
        return self.evaluation().loss

    def evaluation(self) -> Evaluation:
        """The (weighted) mean per-example loss at frozen weights in evaluation mode, and the task's metrics likewise.

        On `eval_data`, or else on a fixed sample of 1,024 training examples; of roll-outs by the scores of episodes.
        Whatever is random is drawn alike at every evaluation, and the run goes on as if it had not been evaluated.

        Raises:
            NonFiniteLossError: the loss or a metric is NaN or infinite.
        """
        found = evaluate(self.task, self.model, self.group, is_sharded=self.is_sharded)
        for name, value in {"evaluated loss": found.loss, **found.metrics}.items():
            if not math.isfinite(value):
                if self.steps:
                    raise NonFiniteLossError(f"the {name} became {value} {self._where()}")
                alone = self.model if self.group is None else None
                raise NonFiniteLossError(untrained_fault(self.task, alone, f"the {name}"))
        return found

    def _where(self) -> str:
        return (
            f"after {self.steps} steps ({self.examples_seen} examples seen, learning rate {self.learning_rate:g}): "
            "lower the learning rate, or look for what is not finite in the data or in the loss"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the run needs to go on: tensors and plain values only.

        Of several processes all must ask, and the first gets it: a sharded model's tensors in whole.
        """
        is_kept = self.group is None or self.group.rank == 0
        randomness = self._randomness.state_dict()
        return {
            "model": whole_on_cpu(self.model.state_dict(), is_kept=is_kept),
            "optimizer": whole_on_cpu(self.optimizer.state_dict(), is_kept=is_kept),
            "scaler": self.scaler.state_dict(),
            "randomness": randomness,
            "randomness_of_all": [] if self.group is None else self.group.gather(randomness),
            "examples_seen": self.examples_seen,
            "steps": self.steps,
            "mean_weight": self._mean_weight,
            "rollouts": None if self._collector is None else self._collector.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. The run keeps its own task, seed of the data order and learning rate.

        The optimizer's other settings become those of the state, as torch's optimizers have it.
        """
        model, optimizer = state["model"], state["optimizer"]
        if self.is_sharded:
            model = shard_model_state(model, self.model)
            optimizer = shard_optimizer_state(optimizer, self.optimizer)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self._rates.forget()
        self.scaler.load_state_dict(state["scaler"])
        self._randomness.load_state_dict(state["randomness"])
        self.examples_seen = state["examples_seen"]
        self.steps = state["steps"]
        self._mean_weight = state.get("mean_weight", 1.0)
        if self._collector is not None:
            self._collector.load_state_dict(state["rollouts"])
        of_all = state.get("randomness_of_all", [])
        if self.group is not None and len(of_all) == self.group.count:
            self._randomness.load_state_dict(of_all[self.group.rank])
        elif self.group is not None:
            self._draw_apart(self.group)


def _check_no_fsdp1(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TaskError("a model inside FullyShardedDataParallel cannot be trained here: shard it by fully_shard")


def _check_attached(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise TaskError("the loss must depend on the model's trainable parameters, and it is detached from them")
