"""What a training in a framework is made of (a model, its optimizer, its loaders), as parts of a task."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from batchopt.errors import TaskError
from batchopt.planning.plan import Plan
from batchopt.probing.dataloaders import loaded_by
from batchopt.probing.task import TrainingTask, trainable_parameters
from batchopt.schedules.schedule import Schedule, check_schedule

OF_SCHEDULERS = frozenset(
    ("lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "params", "param_names")
)
"""Keys of a parameter group that are not settings of the optimizer."""
LOADER_OPTIONS = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "persistent_workers", "prefetch_factor")
SHOWN = 3
"""Names of parameters that a message shows."""


def copies_of(model: nn.Module) -> Callable[[], nn.Module]:
    """A factory of copies of a model with its weights as they are now."""
    template = copy.deepcopy(model).cpu()
    return lambda: copy.deepcopy(template)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The peak learning rate of every group, where a scheduler has set another one for now."""
    return [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in optimizer.param_groups]


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate that the others are ratios to: that of the first group which has one.

    Raises:
        TaskError: no group has a positive rate.
    """
    rates = rates_of(optimizer)
    found = next((rate for rate in rates if rate > 0.0), None)
    if found is None:
        raise TaskError(
            f"a parameter group of the optimizer must have a positive learning rate, got {rates}: give the "
            f"{type(optimizer).__name__} the rate that you would train with"
        )
    return found


def set_base_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give an optimizer another learning rate; its groups keep the ratios of theirs, and no scheduler's values."""
    base = base_rate(optimizer)
    for group, rate in zip(optimizer.param_groups, rates_of(optimizer), strict=True):
        group.update(_own_momentum(optimizer, group))
        group["lr"] = learning_rate * (rate / base)
        for name in ("initial_lr", "max_lr", "base_momentum", "max_momentum"):
            group.pop(name, None)


def _own_momentum(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """The momentum, or betas, of a group whose present one a scheduler has set; else nothing.

    OneCycleLR and CyclicLR keep no group's own, so it is that of the optimizer's constructor.
    """
    if "max_momentum" not in group:
        return {}
    if "betas" in optimizer.defaults:
        return {"betas": (optimizer.defaults["betas"][0], *group["betas"][1:])}
    return {"momentum": optimizer.defaults["momentum"]}


def optimizer_like(optimizer: torch.optim.Optimizer, model: nn.Module) -> Callable[..., torch.optim.Optimizer]:
    """A factory of optimizers of the same kind, settings and groups, for copies of the model.

    The rates of the groups keep their ratios; a group without a rate keeps none. The state is not taken over.

    Args:
        optimizer: of torch, or made like those: its constructor takes groups, and what is in `defaults` by keyword.
        model: whose trainable parameters it has.

    Raises:
        TaskError: a trainable parameter is in none of its groups, none has a positive rate, or it cannot be made anew.
    """
    kind, base = type(optimizer), base_rate(optimizer)
    named = trainable_parameters(model)
    places = {id(parameter): place for place, parameter in enumerate(named.values())}
    _check_all_held(optimizer, named)
    groups = [
        (
            [places[id(parameter)] for parameter in group["params"] if id(parameter) in places],
            {name: value for name, value in group.items() if name not in OF_SCHEDULERS}
            | _own_momentum(optimizer, group),
            rate / base,
        )
        for group, rate in zip(optimizer.param_groups, rates_of(optimizer), strict=True)
    ]
    known = inspect.signature(kind).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in known and name != "lr"}

    def make(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        made = [
            {**own, "params": [parameters[place] for place in held], "lr": lr * ratio} for held, own, ratio in groups
        ]
        return kind(made, **settings, lr=lr)  # type: ignore[call-arg]

    try:
        make(list(named.values()), base)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"a {kind.__name__} cannot be made of the groups and settings of another one ({error}): give "
            "optimizer=lambda parameters, lr: ..., which makes it"
        ) from None
    return make


def with_factories(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a task, with factories in place of a model and its optimizer.

    Raises:
        TypeError: there is an optimizer, and a factory of models, whose parameters it does not have.
    """
    model, optimizer = settings.get("model"), settings.get("optimizer")
    found = dict(settings)
    if isinstance(model, nn.Module):
        found["model"] = copies_of(model)
    if isinstance(optimizer, torch.optim.Optimizer):
        if not isinstance(model, nn.Module):
            raise TypeError(
                "an optimizer needs the model whose parameters it has, and model is a function: give the model, or "
                "optimizer=lambda parameters, lr: ..."
            )
        found["optimizer"] = optimizer_like(optimizer, model)
    return found


def task_of_loaders(
    loader: DataLoader[Any], eval_loader: DataLoader[Any] | None, settings: Mapping[str, Any]
) -> TrainingTask:
    """A task on the data of loaders, of which settings may take the place.

    Raises:
        TaskError: as for `TrainingTask.from_dataloader`, of what is read.
    """
    evaluated = None if "eval_data" in settings else eval_loader
    if not {"data", "collate_fn"} & set(settings):
        return TrainingTask.from_dataloader(loader, eval_loader=evaluated, **settings)
    read: dict[str, Any] = {"collate_fn": loader.collate_fn}
    if "data" not in settings:
        read["data"] = loaded_by(loader).data
    if evaluated is not None:
        read["eval_data"] = loaded_by(evaluated, shuffles=False).data
    return TrainingTask(**{**read, **settings})


def data_and_options(loader: DataLoader[Any]) -> tuple[Any, dict[str, Any]]:
    """Data set of a loader, map-style or a tuple of tensors, and its options beside batch size and order.

    Raises:
        TaskError: as for `loaded_by`, or the examples are drawn by weights.
    """
    data, collate_fn = loaded_by(loader)
    if not hasattr(data, "__getitem__"):
        raise TaskError(
            "a schedule is followed over a data set in an order of its own, and the DataLoader draws by weights: train "
            "with batchopt.train(task, plan.schedule), which draws as well"
        )
    return data, {"collate_fn": collate_fn, **{name: getattr(loader, name) for name in LOADER_OPTIONS}}


def schedule_to_follow(plan: Plan | Schedule) -> tuple[Schedule, float]:
    """The schedule of a plan, or the one that is given, and its learning rate.

    Raises:
        TypeError: it is something else.
        ValueError: it holds no learning rate.
    """
    schedule = plan.schedule if isinstance(plan, Plan) else plan
    check_schedule(schedule)
    if schedule.learning_rate is None:
        raise ValueError("the schedule must hold a learning rate, got None: give the plan that it is from")
    return schedule, schedule.learning_rate


def _check_all_held(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> None:
    """Raise unless the optimizer trains every trainable parameter."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = [name for name, parameter in named.items() if id(parameter) not in held]
    if left:
        shown = ", ".join(map(repr, left[:SHOWN])) + (", ..." if len(left) > SHOWN else "")
        raise TaskError(
            f"the optimizer must hold every trainable parameter of the model, and {len(left)} of {len(named)} "
            f"({shown}) are in none of its groups: set requires_grad=False on what is not trained; where two "
            "optimizers share a model, make a TrainingTask of your own"
        )
