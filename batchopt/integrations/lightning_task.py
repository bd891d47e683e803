"""A LightningModule as a task."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from batchopt.errors import TaskError
from batchopt.probing.task import TrainingTask


def task_from_module(
    module: LightningModule, data: LightningDataModule | DataLoader[Any], **settings: Any
) -> TrainingTask:
    """What a LightningModule trains, as a task: probe it, plan, and follow the plan with a `ScheduledDataModule`.

    Taken over are the module's weights as they are, the loss of `training_step`, which must be the mean over the batch,
    the optimizer of `configure_optimizers` with the ratios of its groups' rates, and the data set, collate function and
    sampler's weights of the loaders. The loss is evaluated on the validation data, if there are any, by `training_step`
    as well. Schedulers are left out: a plan has its own warm-up and decay.

    Args:
        module: not trained yet; it is copied for every run.
        data: with a train_dataloader and, maybe, a val_dataloader; or the loader of the training data.
        settings: of the task, in place of what is taken over: device, autocast, before_step for clipping, ...

    Raises:
        TaskError: the module optimizes by hand or has several optimizers; or as for `TrainingTask.from_dataloader`.
    """
    if not module.automatic_optimization:
        raise TaskError(
            "a module that optimizes by hand (automatic_optimization=False) decides its steps itself: make a "
            "TrainingTask with its loss and its optimizer"
        )
    loader, evaluated = _loaders(data)
    factory = _Factory(module)
    taken: dict[str, Any] = {"model": factory.make, "loss": _loss, "optimizer": factory.optimizer}
    return TrainingTask.from_dataloader(loader, eval_loader=evaluated, **taken | settings)


class _Factory:
    """Makes copies of a module, and each copy's optimizer."""

    def __init__(self, module: LightningModule) -> None:
        self._template = copy.deepcopy(module).cpu()
        self._made: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes its own copies."""
        return _Factory, (self._template,)

    def make(self) -> nn.Module:
        """A copy that logs nothing: there is no Trainer."""
        module: Any = copy.deepcopy(self._template)
        module.log = module.log_dict = _nothing
        self._made[id(next(parameter for parameter in module.parameters() if parameter.requires_grad))] = module
        found: nn.Module = module
        return found

    def optimizer(self, parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        """That of the copy with these parameters; its groups keep the ratios of their rates."""
        module: Any = self._made[id(parameters[0])]
        optimizer = _only_optimizer(module.configure_optimizers())
        first = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr"] / first
        return optimizer


def _nothing(*_: Any, **__: Any) -> None:
    """In place of logging."""


def _loss(module: nn.Module, batch: Any) -> Tensor:
    step: Any = module
    result = step.training_step(batch, 0)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"training_step must return the loss, or a dict with it under 'loss', got {type(result).__name__}"
        )
    return loss


def _only_optimizer(configured: Any) -> torch.optim.Optimizer:
    """Of what `configure_optimizers` returns, whichever form that has."""
    if isinstance(configured, Mapping):
        configured = configured["optimizer"]
    while isinstance(configured, tuple | list):
        # ([optimizers], [schedulers]), or several optimizers
        first = configured[0]
        if not isinstance(first, tuple | list) and len(configured) > 1:
            raise TaskError(f"one optimizer is trained with, got {len(configured)}: make a TrainingTask for each")
        configured = first["optimizer"] if isinstance(first, Mapping) else first
    if not isinstance(configured, torch.optim.Optimizer):
        raise TaskError(f"configure_optimizers must return an optimizer, got {type(configured).__name__}")
    return configured


def _loaders(data: LightningDataModule | DataLoader[Any]) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Of training and, where there are any, of validation."""
    if isinstance(data, DataLoader):
        return data, None
    if not isinstance(data, LightningDataModule):
        raise TypeError(f"data must be a LightningDataModule or a DataLoader, got {type(data).__name__}")
    data.prepare_data()
    data.setup("fit")
    found = data.val_dataloader() if "val_dataloader" in type(data).__dict__ else None
    if isinstance(found, list | tuple):
        if len(found) > 1:
            raise TaskError(f"one validation loader is evaluated on, got {len(found)}: give eval_data=...")
        found = found[0] if found else None
    return data.train_dataloader(), found
