"""A Trainer of Hugging Face Transformers as a task, and a plan as its arguments."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from batchopt.errors import TaskError
from batchopt.integrations.transformers_metrics import metrics_of
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.plan import Plan
from batchopt.probing.losses import Loss
from batchopt.probing.taken_over import copies_of, schedule_to_follow
from batchopt.probing.task import TrainingTask, trainable_parameters
from batchopt.schedules.exporters.rates import check_ends_with_run, in_steps, known_shape
from batchopt.schedules.schedule import Schedule

IGNORED = -100
"""Label that does not count, in Transformers."""
SHAPES: Mapping[str, Shape] = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
"""Schedules of the arguments that have a name here."""


def task_from_trainer(trainer: Trainer, **settings: Any) -> TrainingTask:
    """What a Trainer trains, as a task: probe it, plan, and give the plan back with `apply_plan`.

    Taken over are the model's weights as they are (or `model_init`), the data sets, the collator, the loss of
    `compute_loss` (a mean over tokens whose label counts, or over examples), the optimizer of the arguments with its
    groups, clipping, bf16 and fp16, warm-up steps, and the kind of schedule where it is linear, cosine, constant or
    warmup_stable_decay. The prior is the arguments' batch size, accumulation counted, at their learning rate. What
    `compute_metrics` returns of the whole evaluated set are the task's metrics, by its names; what they are called is
    read from a first look at a few examples.

    A warning names what is not taken over: a schedule of another kind, a warm-up that is a share of the run, noise on
    embeddings, batches grouped by length. A plan then chooses its own schedule.

    Args:
        trainer: made, and not trained yet.
        settings: of the task, in place of what is taken over.

    Raises:
        TaskError: it has no training data, or iterable ones; it was given an optimizer instead of a class; or
            DeepSpeed or FSDP are configured.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    args = trainer.args
    _check(trainer, settings)
    _warn_of_what_is_left(trainer, settings)
    template = trainer.call_model_init() if trainer.model is None else trainer.model
    effective = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    taken: dict[str, Any] = {
        "model": _factory(trainer),
        "data": trainer.train_dataset,
        "eval_data": trainer.eval_dataset,
        "collate_fn": _collator(trainer),
        "loss": _loss(trainer, template),
        "optimizer": _optimizer(trainer, template),
        "device": args.device,
        "autocast": torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        "before_step": _clipping(args.max_grad_norm),
        "learning_rate_schedule": SHAPES.get(_scheduler_of(args)),
        "warmup_examples": _warmup_steps(args) * effective,
        "prior": (effective, args.learning_rate),
    }
    if "metrics" not in settings:
        taken["metrics"] = metrics_of(trainer, template, settings.get("eval_data", trainer.eval_dataset))
    return TrainingTask(**taken | settings)


def apply_plan(plan: Plan | Schedule, arguments: TrainingArguments) -> TrainingArguments:
    """Training arguments that follow a plan of one batch size: its size, rate, warm-up, decay and steps.

    The batch is shared by the processes, and taken in as few parts as the arguments' own batch size on a device
    allows. `max_steps` ends the run, whatever `num_train_epochs` says.

    Args:
        plan: or its schedule, of one batch size and with a learning rate; follow others with a `ScheduledTrainer`.
        arguments: everything else; they are left as they are.

    Raises:
        ValueError: the batch size changes, or does not divide into processes and devices; there is no learning rate; or
            the decay is of no shape that Transformers has.
    """
    schedule, learning_rate = schedule_to_follow(plan)
    if len(schedule.segments) > 1:
        raise ValueError("arguments have one batch size, and the plan's changes: train it with a ScheduledTrainer")
    size, world = schedule(0), arguments.world_size * max(1, arguments.n_gpu)
    if size % world:
        raise ValueError(f"the batch size must divide by the {world} devices, got {size}: plan with batch_sizes=...")
    share, most = size // world, arguments.per_device_train_batch_size
    parts = next(parts for parts in range(math.ceil(share / most), share + 1) if share % parts == 0)
    steps = round(schedule.steps)
    kind, warmup, more = _decay_of(schedule, steps)
    return dataclasses.replace(
        arguments,
        per_device_train_batch_size=share // parts,
        gradient_accumulation_steps=parts,
        learning_rate=learning_rate,
        max_steps=steps,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=more,
        warmup_steps=warmup,
    )


def _check(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Raise TaskError where a Trainer can't be taken over."""
    args = trainer.args
    data = settings.get("data", trainer.train_dataset)
    if data is None:
        raise TaskError("the Trainer must have a train_dataset, got None")
    is_opened = callable(data) and not hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset) or not (is_opened or hasattr(data, "__getitem__")):
        raise TaskError(
            "an iterable train_dataset cannot be read twice from one point: give the Trainer a map-style one, or "
            "task_from_trainer(trainer, data=lambda seed: iter(...)), a function that opens the examples by a seed"
        )
    evaluated = settings.get("eval_data", trainer.eval_dataset)
    if isinstance(evaluated, Mapping):
        raise TaskError(
            f"one eval_dataset is evaluated, got {len(evaluated)}: give eval_data=..., one of "
            f"{', '.join(map(repr, evaluated))}"
        )
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name):
            raise TaskError(
                f"{name} must be left out of the arguments: probe in one process, and train with it by the plan "
                "(apply_plan); a model that is sharded by fully_shard can be a TrainingTask of your own"
            )
    if trainer.optimizer is not None:
        raise TaskError(
            "a Trainer that was given an optimizer has one for its own model only: give the Trainer "
            "optimizer_cls_and_kwargs=(class, settings) in place of optimizers, or leave the arguments' optim"
        )


def _warn_of_what_is_left(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Warn of what a task cannot follow."""
    args, left = trainer.args, []
    if _scheduler_of(args) not in SHAPES and "learning_rate_schedule" not in settings:
        left.append(f"lr_scheduler_type={_scheduler_of(args)!r}")
    if 0.0 < float(args.warmup_steps or 0.0) < 1.0 and "warmup_examples" not in settings:
        left.append(f"warmup_steps={args.warmup_steps} of a run whose length a plan chooses")
    if args.neftune_noise_alpha is not None:
        left.append(f"neftune_noise_alpha={args.neftune_noise_alpha}")
    if getattr(args, "group_by_length", False) or getattr(args, "train_sampling_strategy", "random") != "random":
        left.append("batches that are not drawn at random")
    if type(trainer).get_train_dataloader is not Trainer.get_train_dataloader and "data" not in settings:
        left.append(f"get_train_dataloader of {type(trainer).__name__}")
    if left:
        warnings.warn(f"not taken over from the Trainer: {', '.join(left)}", UserWarning, stacklevel=3)


def _factory(trainer: Trainer) -> Callable[[], nn.Module]:
    """Makes the model that the Trainer begins with."""
    if trainer.model_init is not None:
        make: Callable[[], nn.Module] = trainer.call_model_init
        return make
    return copies_of(trainer.model)


def _collator(trainer: Trainer) -> Callable[[list[Any]], dict[str, Any]]:
    """The Trainer's, whose batches are dicts: those of Transformers' own collators are mappings of another kind."""
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="Training")
    return lambda examples: dict(collate(examples))


def _loss(trainer: Trainer, model: nn.Module) -> Loss:
    """The Trainer's own loss of a batch, and how many tokens of each example count in it.

    The Trainer divides by a number of tokens where the model or the loss function takes one, and counts the first label
    of a sequence, which is never predicted, or does not (`_loss_shifts_labels`); else the model divides by itself.
    """
    is_given = bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None)
    is_causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    leaves_first = bool(getattr(trainer, "_loss_shifts_labels", False)) if is_given else is_causal

    def loss(model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, Tensor]:
        labels = batch.get("labels")
        if labels is None or labels.ndim < 2 or labels.is_floating_point():
            return _tensor(trainer.compute_loss(model, dict(batch)))
        counts = ((labels[:, 1:] if leaves_first else labels) != IGNORED).flatten(1).sum(dim=1)
        # Of a batch without a label that counts the loss is 0 / 0: any labels do, since its weight is zero.
        labels = torch.where(counts.sum() > 0, labels, torch.zeros_like(labels))
        number = {"num_items_in_batch": counts.sum().clamp(min=1)} if is_given else {}
        return _tensor(trainer.compute_loss(model, {**batch, "labels": labels}, **number)), counts

    return loss


def _tensor(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"compute_loss must return the loss alone where return_outputs is False, got a {type(loss).__name__}"
        )
    return loss


def _optimizer(trainer: Trainer, model: nn.Module) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer of the arguments, with weight decay where the Trainer has it."""
    kind, kwargs = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    for name in ("params", "model", "optimizer_dict"):
        if name in kwargs:
            raise TaskError(f"the optimizer {kind.__name__} needs the Trainer's own {name}: take another optim")
    decays = set(trainer.get_decay_parameter_names(model))
    decayed = [name in decays for name in trainable_parameters(model)]

    def make(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p, own in zip(parameters, decayed, strict=True) if own == which], "weight_decay": decay}
            for which, decay in ((True, trainer.args.weight_decay), (False, 0.0))
        ]
        optimizer: torch.optim.Optimizer = kind(groups, **{**kwargs, "lr": lr})
        return optimizer

    return make


def _clipping(norm: float | None) -> Callable[[nn.Module], object] | None:
    if not norm:
        return None
    return lambda model: nn.utils.clip_grad_norm_(model.parameters(), norm)


def _scheduler_of(args: TrainingArguments) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def _warmup_steps(args: TrainingArguments) -> int:
    """Of the arguments; 0 for a share of a run whose length is to be found, which plans choose then."""
    steps = float(args.warmup_steps or 0.0)
    return round(steps) if steps >= 1.0 else 0


def _decay_of(schedule: Schedule, steps: int) -> tuple[str, int, dict[str, Any]]:
    """Kind of schedule, steps of warm-up, and further settings."""
    shape = known_shape(schedule, "Transformers", ("constant", "linear", "cosine", "wsd"))
    if shape is None:
        return "constant", 0, {}
    check_ends_with_run(shape, schedule, "Transformers")
    shape = in_steps(shape, schedule)
    warmup = shape.warmup_examples
    if shape.name == "wsd":
        decay = max(1, steps - (shape.end_examples - shape.decay_examples))
        return "warmup_stable_decay", warmup, {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.0}
    return ("constant_with_warmup" if shape.name == "constant" else shape.name), warmup, {}
