"""Lightning: a module as a task, a plan as its data and its rate, and a noise scale in the log.

Changing `accumulate_grad_batches` in mid-run mis-scales a gradient, silently; a batch sampler does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batchopt.integrations.lightning_task import loaders_of, only_optimizer, task_from_module
from batchopt.planning.plan import Plan
from batchopt.probing.data import population
from batchopt.probing.taken_over import data_and_options, schedule_to_follow, set_base_rate
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.loader import ScheduledBatchSampler, equal_share_loader, scheduled_loader
from batchopt.training.monitor import NoiseScaleMonitor
from batchopt.training.multipliers import scale_learning_rate, warn_of_rate

__all__ = ["NoiseScaleCallback", "ScheduledDataModule", "apply_plan", "task_from_module"]


def apply_plan(
    plan: Plan | Schedule, module: LightningModule, data: LightningDataModule | DataLoader[Any], **more: Any
) -> ScheduledDataModule:
    """Let a module train by a plan: data by its batch sizes, and the module's optimizer at its rate, warm-up and decay.

        data = apply_plan(plan, module, data)
        Trainer(max_epochs=1).fit(module, datamodule=data)

    The module is changed: what its `configure_optimizers` makes gets the plan's learning rate, groups keep the ratios
    of theirs, and schedulers are left out.

    Args:
        plan: or its schedule, with a learning rate.
        module: to train.
        data: with a train_dataloader and, maybe, a val_dataloader; or the loader of the training data. Data set,
            collate function and workers are those of the loader; its batch size and its order are not.
        more: of `ScheduledDataModule`, in place of what is taken over: val_dataloaders, seed, ...

    Raises:
        ValueError: the schedule holds no learning rate.
        TaskError: as for `task_from_module`, of the loaders.
    """
    schedule, learning_rate = schedule_to_follow(plan)
    loader, validation = loaders_of(data)
    dataset, options = data_and_options(loader)
    module.configure_optimizers = partial(_at_rate, module.configure_optimizers, learning_rate)
    taken = {"val_dataloaders": validation, "weights": False, **options}
    return ScheduledDataModule(dataset, schedule, **taken | more)


def _at_rate(configure: Callable[[], Any], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of a module, without schedulers."""
    optimizer = only_optimizer(configure())
    set_base_rate(optimizer, learning_rate)
    return optimizer


class ScheduledDataModule(LightningDataModule):  # type: ignore[misc]
    """Training data by a schedule, one epoch of which is the whole run, beside validation and test data of your own.

    Use `Trainer(max_epochs=1, use_distributed_sampler=False)`. With several processes a batch is (batch, weights), as
    `scheduled_loader` gives it, unless `weights=False`. A checkpoint of any step is gone on with, without repeating or
    losing an example. Every step takes the learning rate that the module's own optimizers and schedulers say, times the
    schedule's multiplier. A schedule that holds warm-up and decay (`learning_rate_schedule`) is followed alone, so the
    module must have no scheduler of its own.

    Args:
        dataset: map-style, or a tuple of tensors.
        schedule: batch sizes over examples, of all processes together.
        val_dataloaders: for validation, handed to the trainer as they are: a loader, or several in a list or dict.
        test_dataloaders: likewise, for `Trainer.test`.
        predict_dataloaders: likewise, for `Trainer.predict`.
        weights: whether batches come with weights where there are several processes; without, a last batch that does
            not divide into the processes is left out.
        **loader_options: of `scheduled_loader` (seed, shuffle, collate_fn, num_workers, ...).

    Raises:
        TypeError: the schedule is something else: a plan, or the name of a file.
        ValueError: when training begins: the trainer accumulates gradients, runs another length than the schedule's, or
            would put a sampler of its own in place of the schedule's; a checkpoint of another data set or order; a
            learning-rate scheduler beside a schedule that holds warm-up and decay.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | tuple[Tensor, ...],
        schedule: Schedule,
        *,
        val_dataloaders: Any = None,
        test_dataloaders: Any = None,
        predict_dataloaders: Any = None,
        weights: bool = True,
        **loader_options: Any,
    ) -> None:
        check_schedule(schedule)
        super().__init__()
        # A hook that is there tells Lightning that there are such data, so it is made only where there are.
        if val_dataloaders is not None:
            self.val_dataloader = lambda: val_dataloaders
        if test_dataloaders is not None:
            self.test_dataloader = lambda: test_dataloaders
        if predict_dataloaders is not None:
            self.predict_dataloader = lambda: predict_dataloaders
        self.schedule = schedule
        self._dataset, self._options, self._weights = dataset, loader_options, weights

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must be gone on with."""
        return {"schedule": self.schedule.to_json(), "examples": population(self._dataset), "seed": self._seed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run."""
        for name, now in self.state_dict().items():
            if state.get(name) != now:
                raise ValueError(
                    f"the checkpoint must be of a run of the same {name}, got one of {state.get(name)}, now {now}: "
                    "examples would be repeated and lost"
                )

    def _seed(self) -> int:
        return int(self._options.get("seed", 0))

    def train_dataloader(self) -> WholeRun:
        """The loader of the whole run."""
        trainer = self.trainer
        assert trainer is not None
        _check(trainer)
        share: dict[str, Any] = {"rank": trainer.global_rank, "ranks": trainer.world_size}
        if trainer.world_size == 1:
            loader = scheduled_loader(self._dataset, self.schedule, **self._options)
        elif self._weights:
            loader = scheduled_loader(self._dataset, self.schedule, **self._options, **share)
        else:
            loader = equal_share_loader(self._dataset, self.schedule, **self._options, **share)
        return WholeRun(trainer, self.schedule, loader)


class WholeRun:
    """A loader that begins where the trainer is: at its count of batches, when the first one is asked for.

    Its length is that of the whole run also where it goes on in the middle, as Lightning counts. What it would keep in
    a checkpoint is in the trainer's already.
    """

    def __init__(self, trainer: Trainer, schedule: Schedule, loader: DataLoader[Any]) -> None:
        self._trainer, self._schedule, self._loader = trainer, schedule, loader
        self._steps = len(loader)
        self._starts = [seen for seen, _ in schedule.batches()]

    def __len__(self) -> int:
        """Steps of the whole run."""
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        """The batches from where the run is."""
        # Lightning asks for an iterator before it has read the checkpoint, and for a batch after that.
        batches = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        done = self._starts[batches] if batches < len(self._starts) else self._schedule.examples
        if done:
            sampler = self._loader.batch_sampler
            if not isinstance(sampler, ScheduledBatchSampler):
                raise ValueError("a run over an iterable data set cannot go on in the middle: train on a map-style one")
            sampler.load_state_dict({**sampler.state_dict(), "examples_seen": done})
        optimizers = self._trainer.optimizers
        _check_schedulers(self._trainer, self._schedule)
        rates = [group.get("initial_lr", group["lr"]) for each in optimizers for group in each.param_groups]
        warn_of_rate(self._schedule, map(float, rates), "make the optimizer with schedule.learning_rate")
        hooks = [
            hook
            for each in optimizers
            for hook in scale_learning_rate(each, self._schedule, examples_seen=self._examples_seen)
        ]
        try:
            yield from self._loader
        finally:
            for hook in hooks:
                hook.remove()

    def _examples_seen(self) -> int:
        """When the step of the present batch begins."""
        batches = int(self._trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        return self._starts[max(0, batches - 1)]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it says that the loader goes on in the middle."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def _check(trainer: Trainer) -> None:
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"accumulate_grad_batches must be 1 under a schedule, got {trainer.accumulate_grad_batches}: "
            "the loader gives whole batches"
        )
    if trainer.max_epochs != 1:
        raise ValueError(
            f"max_epochs must be 1 under a schedule, whose one pass is the whole run, got {trainer.max_epochs}"
        )
    if trainer.max_steps != -1 or trainer.limit_train_batches != 1.0:
        raise ValueError(
            "max_steps and limit_train_batches must be left out under a schedule, which says where the run ends, got "
            f"{trainer.max_steps} and {trainer.limit_train_batches} (fast_dev_run and overfit_batches set them too)"
        )
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ValueError(
            "use_distributed_sampler must be False under a schedule, whose loader gives each process its share"
        )


def _check_schedulers(trainer: Trainer, schedule: Schedule) -> None:
    if schedule.learning_rate_schedule is not None and trainer.lr_scheduler_configs:
        names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
        raise ValueError(
            f"a schedule that holds warm-up and decay must be followed alone, and the module has {names} as well: "
            "leave it out of configure_optimizers, or take a schedule without learning_rate_schedule"
        )


class NoiseScaleCallback(Callback):  # type: ignore[misc]
    """Logs the running noise scale as `noise_scale`, of a training that accumulates gradients, in one process or more.

    It compares the micro-batches of a step, so a schedule's whole batches tell it nothing: with those, call
    `NoiseScaleMonitor.backward` in a manual optimization.

    Args:
        examples: batch size of a micro-batch, if it is not the length of its first tensor.
        **monitor_options: of `NoiseScaleMonitor` (overhead, every, window, population).

    Raises:
        ValueError: when training begins: the trainer does not accumulate gradients.
    """

    def __init__(self, examples: int | None = None, **monitor_options: Any) -> None:
        self._examples, self._options = examples, monitor_options
        self._monitor: NoiseScaleMonitor | None = None
        self._size = 0

    @property
    def monitor(self) -> NoiseScaleMonitor | None:
        """None before training begins."""
        return self._monitor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the model."""
        if trainer.accumulate_grad_batches < 2:
            raise ValueError(
                f"accumulate_grad_batches must be 2 or more for a noise scale, got {trainer.accumulate_grad_batches}: "
                "the micro-batches of a step are what is compared"
            )
        wrapped = trainer.strategy.model  # in DistributedDataParallel, where there are several processes
        self._monitor = NoiseScaleMonitor(pl_module if wrapped is None else wrapped, **self._options)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the micro-batch."""
        self._size = self._examples or _length(batch)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the micro-batch added."""
        assert self._monitor is not None
        self._monitor.micro_batch(self._size)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Log the reading."""
        assert self._monitor is not None
        self._monitor.step()
        reading = self._monitor.reading
        if reading is not None and reading.resolved:
            pl_module.log("noise_scale", float(reading.batch_size.value))


def _length(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return _length(next(iter(parts)))
