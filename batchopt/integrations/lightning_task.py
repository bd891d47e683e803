"""A LightningModule as a task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader

from batchopt.errors import TaskError
from batchopt.probing.taken_over import base_rate, copies_of, optimizer_like, task_of_loaders
from batchopt.probing.task import TrainingTask


def task_from_module(
    module: LightningModule,
    data: LightningDataModule | DataLoader[Any],
    *,
    eval_loader: DataLoader[Any] | None = None,
    **settings: Any,
) -> TrainingTask:
    """What a LightningModule trains, as a task: probe it, plan, and give the plan back with `apply_plan`.

    Taken over are the module's weights as they are, the loss of `training_step`, which must be the mean over the batch,
    the optimizer of `configure_optimizers` with the ratios of its groups' rates, and the data set, collate function and
    sampler's weights of the loaders. The loss is evaluated on the validation data, if there are any, by `training_step`
    as well. The prior is the loader's batch size at the optimizer's learning rate. Schedulers are left out: a plan has
    its own warm-up and decay.

    Args:
        module: not trained yet; it is copied for every run.
        data: with a train_dataloader and, maybe, a val_dataloader; or the loader of the training data.
        eval_loader: of the data on which the loss is evaluated, in place of the validation data.
        settings: of the task, in place of what is taken over: device, autocast, before_step for clipping, ...

    Raises:
        TaskError: the module optimizes by hand, has several optimizers or asks for its Trainer; or as for
            `TrainingTask.from_dataloader`.
    """
    if not isinstance(module, LightningModule):
        raise TypeError(f"module must be a LightningModule, got {type(module).__name__}")
    if not module.automatic_optimization:
        raise TaskError(
            "a module that optimizes by hand (automatic_optimization=False) decides its steps itself: make a "
            "TrainingTask with its loss and its optimizer"
        )
    loader, validation = loaders_of(data)
    template: Any = copy.deepcopy(module).cpu()
    template.log = template.log_dict = _nothing  # there is no Trainer
    taken: dict[str, Any] = {"model": copies_of(template), "loss": _loss}
    if "optimizer" not in settings:
        optimizer = _configured(template)
        taken["optimizer"] = optimizer_like(optimizer, template)
        if loader.batch_size is not None:
            taken["prior"] = (loader.batch_size, base_rate(optimizer))
    evaluated = _only_loader(validation, settings) if eval_loader is None else eval_loader
    return task_of_loaders(loader, evaluated, taken | settings)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of logging."""


def _loss(module: nn.Module, batch: Any) -> Tensor:
    step: Any = module
    with _without_trainer("training_step", "loss=lambda module, batch: ..."):
        result = step.training_step(batch, 0)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"training_step must return the loss, or a dict with it under 'loss', got {type(result).__name__}"
        )
    return loss


def _configured(module: Any) -> torch.optim.Optimizer:
    """The optimizer of a module that has no Trainer."""
    with _without_trainer("configure_optimizers", "optimizer=lambda parameters, lr: ..."):
        return only_optimizer(module.configure_optimizers())


@contextmanager
def _without_trainer(hook: str, remedy: str) -> Iterator[None]:
    """Say what to do where a hook asks for its Trainer."""
    try:
        yield
    except RuntimeError as error:
        if "not attached to a" not in str(error):
            raise
        raise TaskError(f"{hook} must do without self.trainer, since a probe has none: give {remedy}") from None


def only_optimizer(configured: Any) -> torch.optim.Optimizer:
    """Of what `configure_optimizers` returns, whichever form that has."""
    if isinstance(configured, Mapping):
        configured = configured["optimizer"]
    while isinstance(configured, tuple | list) and configured:
        # ([optimizers], [schedulers]), or several optimizers
        first = configured[0]
        if not isinstance(first, tuple | list) and len(configured) > 1:
            raise TaskError(f"one optimizer is trained with, got {len(configured)}: make a TrainingTask for each")
        configured = first["optimizer"] if isinstance(first, Mapping) else first
    if not isinstance(configured, torch.optim.Optimizer):
        raise TaskError(f"configure_optimizers must return an optimizer, got {type(configured).__name__}")
    return configured


def loaders_of(data: LightningDataModule | DataLoader[Any]) -> tuple[DataLoader[Any], Any]:
    """Of training, and what there is of validation: a loader, several, or None.

    Raises:
        TaskError: there are several loaders of training data.
    """
    if isinstance(data, DataLoader):
        return data, None
    if not isinstance(data, LightningDataModule):
        raise TypeError(f"data must be a LightningDataModule or a DataLoader, got {type(data).__name__}")
    data.prepare_data()
    data.setup("fit")
    training = data.train_dataloader()
    if not isinstance(training, DataLoader):
        raise TaskError(
            f"train_dataloader must give one DataLoader, got a {type(training).__name__}: give the DataLoader to train "
            "with in place of the data module"
        )
    return training, data.val_dataloader() if is_overridden("val_dataloader", data) else None


def _only_loader(validation: Any, settings: Mapping[str, Any]) -> DataLoader[Any] | None:
    """The loader of validation data, if there are any."""
    if "eval_data" in settings:
        return None
    if isinstance(validation, Mapping):
        validation = list(validation.values())
    if not isinstance(validation, list | tuple):
        found: DataLoader[Any] | None = validation
        return found
    if len(validation) > 1:
        raise TaskError(f"one validation loader is evaluated on, got {len(validation)}: give eval_loader=...")
    return validation[0] if validation else None
