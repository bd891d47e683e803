"""Hugging Face Transformers: a Trainer as a task, a plan as its arguments, a Trainer whose batches follow a schedule.

The Trainer steps whenever its count of micro-batches is a multiple of `gradient_accumulation_steps`, and does not reset
that count at a change, which mis-scales a gradient, silently; and it plans the learning rate's horizon by the first
batch size. A batch sampler has neither fault.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from batchopt._codec import Record
from batchopt.integrations.transformers_task import apply_plan, task_from_trainer
from batchopt.schedules.exporters.stages import stages_of
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.loader import ScheduledBatchSampler, equal_share_loader
from batchopt.training.multipliers import warn_of_rate

__all__ = ["ScheduleCallback", "ScheduledTrainer", "ScheduledTrainerMixin", "apply_plan", "task_from_trainer"]

FOLLOWED = "followed.json"
"""File in a checkpoint's folder."""


class ScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Adds to every log the batch size of the step that comes next, and the examples seen so far.

    A `ScheduledTrainer` does so by itself; give it to any other that follows the schedule by a loader of its own.

    Args:
        schedule: that is followed.
    """

    def __init__(self, schedule: Schedule) -> None:
        check_schedule(schedule)
        self._seen = [seen for seen, _ in schedule.batches()] + [schedule.examples]
        self._schedule = schedule

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        """Add them."""
        if logs is not None:
            logs |= self.position(state.global_step)

    def position(self, step: int) -> dict[str, int]:
        """Batch size and examples seen after so many steps."""
        seen = self._seen[min(step, len(self._seen) - 1)]
        return {"batch_size": self._schedule(seen), "examples_seen": seen}


@dataclass(frozen=True, slots=True)
class Followed(Record):
    """What a checkpoint must be gone on with.

    Attributes:
        schedule: of the training.
        seed: of the order.
        population: examples in the data set.
    """

    SCHEMA: ClassVar[str] = "batchopt.followed/1"

    schedule: Schedule
    seed: int
    population: int


class _KeepFollowed(TrainerCallback):  # type: ignore[misc]
    """Writes into every checkpoint what was followed."""

    def __init__(self, followed: Callable[[], Followed]) -> None:
        self._followed = followed

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self._followed().save(folder / FOLLOWED)


class ScheduledTrainerMixin:
    """Makes any `Trainer` follow a schedule: put it before the class, and give `schedule`.

    One epoch is the whole run, over as many passes through the data as the schedule takes. The schedule's batch sizes
    are global; each rank takes its equal share, and a last batch that does not divide is left out. The learning rate
    that the arguments ask for ends with the run, times the schedule's multipliers: give them
    `learning_rate=schedule.learning_rate`. Where the schedule holds warm-up and decay (`learning_rate_schedule`), these
    take the place of the arguments' lr_scheduler_type and warm-up. Going on from a checkpoint works as the Trainer's
    own. `per_device_train_batch_size` and `num_train_epochs` say nothing.

    Args:
        schedule: batch sizes over examples, of all processes together.

    Raises:
        TypeError: the schedule is something else: a plan, or the name of a file.
        ValueError: the arguments ask for gradient accumulation or max_steps, or a batch size does not divide into the
            processes; in `train`, the checkpoint is of another schedule, seed or data set.

    Example:
        class ScheduledSeq2SeqTrainer(ScheduledTrainerMixin, Seq2SeqTrainer): ...
        trainer = ScheduledSeq2SeqTrainer(model, args, train_dataset=data, schedule=Schedule.load("schedule.json"))
    """

    def __init__(self, *args: Any, schedule: Schedule, **kwargs: Any) -> None:
        check_schedule(schedule)
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        trainer: Any = self
        if trainer.args.gradient_accumulation_steps != 1:
            raise ValueError(
                "gradient_accumulation_steps must be 1 under a schedule, "
                f"got {trainer.args.gradient_accumulation_steps}: the loader gives whole batches"
            )
        if trainer.args.max_steps > 0:
            raise ValueError(
                f"max_steps must be left out under a schedule, got {trainer.args.max_steps}: "
                f"the schedule's {schedule.examples} examples say where the run ends"
            )
        trainer.args.num_train_epochs = 1
        self._place = ScheduleCallback(schedule)
        trainer.add_callback(_KeepFollowed(self._to_follow))
        remedy = "give the arguments learning_rate=schedule.learning_rate"
        warn_of_rate(schedule, [trainer.args.learning_rate], remedy)
        _warn_of_scheduler(schedule, trainer.args)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the checkpoint of another run is refused."""
        trainer: Any = self
        if resume_from_checkpoint:
            last = get_last_checkpoint(trainer.args.output_dir) if resume_from_checkpoint is True else None
            self._check_followed(Path(last or str(resume_from_checkpoint)) / FOLLOWED)
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the batch size of the step that comes next and the examples seen so far."""
        trainer: Any = self
        place = self._place.position(trainer.state.global_step)
        super().log({**logs, **place}, *args, **kwargs)  # type: ignore[misc]

    def _seed(self) -> int:
        trainer: Any = self
        return int(trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed)

    def _to_follow(self) -> Followed:
        trainer: Any = self
        return Followed(self.schedule, self._seed(), len(trainer.train_dataset))

    def _check_followed(self, file: Path) -> None:
        if not file.exists():
            return
        kept, now = Followed.load(file), self._to_follow()
        for name in ("schedule", "seed", "population"):
            if getattr(kept, name) != getattr(now, name):
                raise ValueError(
                    f"the checkpoint must be of a run of the same {name}, got one of {getattr(kept, name)}, now "
                    f"{getattr(now, name)}: examples would be repeated and lost"
                )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of the whole run."""
        trainer: Any = self
        args = trainer.args
        if trainer.train_dataset is None:
            raise ValueError("a Trainer needs a train_dataset to train")
        loader = equal_share_loader(
            trainer.train_dataset,
            self.schedule,
            seed=self._seed(),
            rank=args.process_index,
            ranks=args.world_size,
            collate_fn=trainer._get_collator_with_removed_columns(trainer.data_collator, description="Training"),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        # The shares are taken already: one process, as far as Accelerate is concerned.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, device=trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """As the Trainer's; of the training, all examples of the run, from which it tells samples per second."""
        if isinstance(getattr(dataloader, "batch_sampler", None), ScheduledBatchSampler):
            return self.schedule.examples
        return int(super().num_examples(dataloader))  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning-rate schedule of the arguments, times the schedule's multipliers; or the schedule's own."""
        if self.schedule.learning_rate_schedule is not None:
            return self._own_scheduler(optimizer)
        created: Any = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        stages = stages_of(self.schedule)
        if all(stage.multiplier == 1.0 for stage in stages):
            return created
        if not isinstance(created, torch.optim.lr_scheduler.LambdaLR):
            raise ValueError(
                f"the schedule's multipliers need a LambdaLR, which {type(created).__name__} is not: take another "
                "lr_scheduler_type, or a schedule without multipliers"
            )
        starts, multipliers = [stage.step for stage in stages], [stage.multiplier for stage in stages]

        def times(own: Callable[[int], float]) -> Callable[[int], float]:
            return lambda step: own(step) * multipliers[bisect_right(starts, step) - 1]

        created.lr_lambdas = [times(own) for own in created.lr_lambdas]
        for group, base, own in zip(created.optimizer.param_groups, created.base_lrs, created.lr_lambdas, strict=True):
            group["lr"] = base * own(created.last_epoch)
        return created

    def _own_scheduler(self, optimizer: torch.optim.Optimizer | None) -> torch.optim.lr_scheduler.LambdaLR:
        trainer: Any = self
        if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
            raise ValueError(
                "a schedule that holds warm-up and decay must be followed alone, and the Trainer was given "
                f"{type(trainer.lr_scheduler).__name__}: leave it out of optimizers, or take a schedule without "
                "learning_rate_schedule"
            )
        if trainer.lr_scheduler is None:
            of_steps = [self.schedule.multiplier_of(seen, size) for seen, size in self.schedule.batches()]
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                trainer.optimizer if optimizer is None else optimizer,
                lambda step: of_steps[min(step, len(of_steps) - 1)],
            )
            trainer._created_lr_scheduler = True
        own: torch.optim.lr_scheduler.LambdaLR = trainer.lr_scheduler
        return own


def _warn_of_scheduler(schedule: Schedule, args: Any) -> None:
    """Warn of arguments that the schedule's warm-up and decay take the place of."""
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    warmup = max(float(args.warmup_steps or 0.0), float(getattr(args, "warmup_ratio", None) or 0.0))
    if schedule.learning_rate_schedule is not None and (kind != "linear" or warmup > 0.0):
        warnings.warn(
            f"the schedule holds warm-up and decay, so lr_scheduler_type={kind!r} and a warm-up of {warmup:g} are not "
            "followed: leave them out, or take a schedule without learning_rate_schedule",
            UserWarning,
            stacklevel=3,
        )


class ScheduledTrainer(ScheduledTrainerMixin, Trainer):  # type: ignore[misc]
    """A `Trainer` whose batches follow a schedule: see `ScheduledTrainerMixin`."""
