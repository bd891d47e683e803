"""Accelerate: a loop of one's own as a task, and a plan as its loader."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, prepare_data_loader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from batchopt.errors import TaskError
from batchopt.planning.plan import Plan
from batchopt.probing.losses import Loss
from batchopt.probing.taken_over import (
    LOADER_OPTIONS,
    base_rate,
    copies_of,
    data_and_options,
    optimizer_like,
    rates_of,
    schedule_to_follow,
    task_of_loaders,
)
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule
from batchopt.training.loader import equal_share_loader
from batchopt.training.multipliers import scale_learning_rate

__all__ = ["apply_plan", "task_from_accelerator"]

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision of Accelerate that a task has too."""
SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")
"""Ways to distribute a model that a probe cannot copy."""


def task_from_accelerator(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    loss: Loss,
    *,
    eval_loader: DataLoader[Any] | None = None,
    **settings: Any,
) -> TrainingTask:
    """What a loop with Accelerate trains, as a task: probe it, plan, and give the plan back with `apply_plan`.

    Taken over are the model's weights as they are, the optimizer's kind, settings and groups with the ratios of their
    rates, the data set, collate function and sampler's weights of the loader, device and mixed precision. The prior is
    the batch size of a step, over all processes and accumulated micro-batches, at the optimizer's learning rate.

    Clipping is a call in the loop, which nothing tells of: give
    `before_step=lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`. A scheduler is left out: a plan
    has its own warm-up and decay.

    Args:
        accelerator: of the loop.
        model: as `prepare` gave it, not trained yet; it is copied for every run.
        optimizer: as `prepare` gave it.
        loader: of the training data, as `prepare` gave it.
        loss: (model, batch) -> the loss of every example, or their mean: what the loop calls `backward` with.
        eval_loader: of the data on which the loss is evaluated; prepared or not.
        settings: of the task, in place of what is taken over.

    Raises:
        TaskError: DeepSpeed, FSDP, Megatron-LM or fp8 are configured; the optimizer does not hold all trainable
            parameters, or there are several; or as for `TrainingTask.from_dataloader`.
    """
    _check(accelerator)
    inner = _inner_optimizer(optimizer)
    plain = _unwrapped(accelerator, model)
    taken: dict[str, Any] = {
        "model": copies_of(_without_precision(accelerator, plain)),
        "loss": loss,
        "device": accelerator.device,
        "autocast": AUTOCAST[accelerator.mixed_precision],
    }
    if "optimizer" not in settings:
        taken["optimizer"] = optimizer_like(inner, plain)
    size = getattr(loader, "total_batch_size", None) or getattr(loader, "batch_size", None)
    if size is not None and "optimizer" not in settings:
        taken["prior"] = (size * accelerator.gradient_accumulation_steps, base_rate(inner))
    evaluated = None if eval_loader is None else _unshared(eval_loader)
    return task_of_loaders(_unshared(loader), evaluated, taken | settings)


def apply_plan(
    plan: Plan | Schedule,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    *,
    seed: int = 0,
) -> DataLoader[Any]:
    """A prepared loader whose one pass is the plan's whole run, with its batch sizes; the optimizer takes its rates.

        loader = apply_plan(plan, accelerator, optimizer, loader)
        for batch in loader: ...  # the loop as it is, for one epoch

    The optimizer is changed: every step takes the plan's rate, warm-up and decay included, whatever a scheduler of the
    loop has set; groups keep the ratios of their rates. Each process gets its equal share of every batch; a last one
    that does not divide is left out. Whole batches are given, so gradients are not accumulated. The rate is that of the
    batch which the loader has handed out last, also where a step is left out (float16).

    Args:
        plan: or its schedule, with a learning rate.
        accelerator: of the loop.
        optimizer: as `prepare` gave it.
        loader: of the training data, as `prepare` gave it or not; its batch size and order are not kept.
        seed: of the order.

    Raises:
        ValueError: the accelerator accumulates gradients, or the schedule holds no learning rate.
        TaskError: as for `task_from_accelerator`, of the loader.
    """
    schedule, learning_rate = schedule_to_follow(plan)
    steps = accelerator.gradient_accumulation_steps
    if steps != 1:
        raise ValueError(
            f"gradients must not be accumulated under a schedule, whose loader gives whole batches, got {steps} steps: "
            "set accelerator.gradient_accumulation_steps = 1"
        )
    dataset, options = data_and_options(_unshared(loader))
    followed = equal_share_loader(
        dataset, schedule, seed=seed, rank=accelerator.process_index, ranks=accelerator.num_processes, **options
    )
    # The shares are taken already: one process, as far as Accelerate is concerned.
    prepared: DataLoader[Any] = prepare_data_loader(
        followed, device=accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )
    counted = CountingLoader(prepared, schedule)
    _take_rates(_inner_optimizer(optimizer), schedule, learning_rate, counted.examples_seen)
    return cast("DataLoader[Any]", counted)


class CountingLoader:
    """A prepared loader that knows how many examples came before the batch that it has handed out last.

    It is outside of Accelerate's own, which fetches batches ahead; in all else it is like that one.

    Args:
        loader: whose one pass is the run.
        schedule: that its batches follow.
    """

    def __init__(self, loader: DataLoader[Any], schedule: Schedule) -> None:
        self._loader = loader
        self._starts = [seen for seen, _ in schedule.batches()][: len(loader)]
        self._seen: int | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """A DataLoader for isinstance, as Accelerate's own loaders say of themselves."""
        return self._loader.__class__

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # asked for by copy.copy, before it is set
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        # Fewer where the batch sampler was told to go on in the middle of the run.
        remaining = self._starts[len(self._starts) - len(self) :]
        for seen, batch in zip(remaining, self._loader, strict=True):
            self._seen = seen
            yield batch

    def examples_seen(self) -> int:
        """Examples before the present batch.

        Raises:
            ValueError: none was handed out.
        """
        if self._seen is None:
            raise ValueError(
                "a step must be taken on a batch of the loader that apply_plan gave, which has handed out none: go "
                "through that loader itself, not one that is made of it, as skip_first_batches does"
            )
        return self._seen


def _take_rates(
    optimizer: torch.optim.Optimizer, schedule: Schedule, learning_rate: float, examples_seen: Callable[[], int]
) -> None:
    """Let every step take the schedule's rate, whatever the groups have then."""
    base = base_rate(optimizer)
    rates = [learning_rate * (rate / base) for rate in rates_of(optimizer)]

    def take(stepped: torch.optim.Optimizer, *_: Any) -> None:
        for group, rate in zip(stepped.param_groups, rates, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(take)
    scale_learning_rate(optimizer, schedule, examples_seen=examples_seen)


def _check(accelerator: Accelerator) -> None:
    """Raise TaskError where an accelerator trains in a way that a task does not have."""
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}")
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in SHARDED:
        raise TaskError(
            f"{kind} must be left out of the accelerator: probe in one process, and train with it by the plan; a model "
            "that is sharded by fully_shard can be a TrainingTask of your own"
        )
    if accelerator.mixed_precision not in AUTOCAST:
        raise TaskError(
            f"mixed_precision must be one of {', '.join(map(repr, AUTOCAST))}, got {accelerator.mixed_precision!r}: "
            "make the task with an Accelerator of one of these"
        )


def _inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside of what `prepare` gave."""
    if isinstance(optimizer, list | tuple):
        raise TaskError(f"one optimizer is trained with, got {len(optimizer)}: make a TrainingTask for each")
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, prepared or not, got {type(optimizer).__name__}")
    return inner


def _unwrapped(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model inside of what distributes it, with its own parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    found: nn.Module = accelerator.unwrap_model(model)
    return found


def _without_precision(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A copy whose forward pass is the model's own: a task has its own autocast."""
    found: nn.Module = accelerator.unwrap_model(copy.deepcopy(model), keep_fp32_wrapper=False)
    return found


def _unshared(loader: Any) -> DataLoader[Any]:
    """The loader of all processes together, as it was before `prepare`."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader  # type: ignore[no-any-return]
    batches: Any = loader.batch_sampler
    if isinstance(batches, BatchSamplerShard):
        batches = batches.batch_sampler
    if type(batches) is BatchSampler and isinstance(batches.sampler, SeedableRandomSampler):
        batches = BatchSampler(RandomSampler(batches.sampler), batches.batch_size, batches.drop_last)
    if batches is loader.batch_sampler:
        return loader
    options: dict[str, Any] = {name: getattr(loader, name) for name in ("collate_fn", *LOADER_OPTIONS)}
    return DataLoader(loader.dataset, batch_sampler=batches, **options)
