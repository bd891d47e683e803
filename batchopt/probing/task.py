"""What to train: the only object that knows how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import DataLoader

from batchopt._checks import check_count, check_finite, check_one_of, check_positive
from batchopt.errors import TaskError
from batchopt.learning_rate_schedule import Shape, check_shape
from batchopt.probing.data import check_data, is_stream, population
from batchopt.probing.dataloaders import loaded_by
from batchopt.probing.losses import Batch, Loss, Metric, per_example_losses
from batchopt.probing.rescaling import RESCALED
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.set_metric import SetMetric
from batchopt.probing.sharding import is_sharded
from batchopt.probing.streams import SeededStream

SearchRange = tuple[float, float, str]
"""(lowest, highest, "log" or "linear")."""
TOLD = ("examples", "steps", "batch_size", "learning_rate", "loss", "seconds")
"""What a training tells of every evaluation, beside its metrics."""
SAME_RATE = 1e-6
"""Relative difference up to which learning rates are the same: a rate held in a float32 tensor is off by 6e-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """A model, its data, its loss and its optimizer.

    Attributes:
        model: makes a new model; called under a seed, so that the seed decides its initial weights.
        data: a tuple of tensors of one length (rows are examples), a map-style data set, a function that opens a stream
            of examples by a seed, or an iterable of batches (a stream: its noise can be measured, but it cannot be
            trained on from a given point). The function gives the same examples for a seed every time, and another
            order or other examples for another seed: `lambda seed: iter(dataset.shuffle(seed=seed))`. Where they end,
            it is called with a further seed. Noise is then that of an infinite population. `Rollouts` for reinforcement
            learning: what the model makes by acting.
        loss: (model, batch) -> losses of shape (batch,), one per example; or (losses, weights), and then the batch's
            loss is sum(w l) / sum(w), as for language models that average over unmasked tokens. In place of the losses
            it may return one number, their (weighted) mean over the batch.
        optimizer: (parameters, learning rate, further hyperparameters as keywords) -> optimizer with that rate, or
            with parameter groups that multiply it.
        eval_data: where the loss is evaluated; None evaluates on a fixed sample of 1,024 training examples.
        metrics: what else is evaluated there, by name, as goals of plans: (model, batch) -> one value per example, or
            (values, weights). {"accuracy": lambda model, batch: model(batch[0]).argmax(1) == batch[1]}. One that is no
            mean over examples, as F1 is none, is a `batchopt.probing.set_metric.SetMetric` of all together.
        collate_fn: makes a batch of a list of examples; torch's default_collate if None.
        device: where to train; None takes CUDA where there is one.
        autocast: dtype of mixed precision (torch.bfloat16 or torch.float16); None trains in the model's own.
        before_step: called with the model between the backward pass and the optimizer step (gradient clipping, say).
        warmup_examples: examples over which the learning rate rises linearly; 0 leaves it to the probe and to plans,
            which warm up over three tenths of a short run and a twentieth of the horizon. A plan whose run is shorter
            than five warm-ups cuts it to a fifth, and says so; `train` raises where the run ends within it.
        learning_rate_schedule: warm-up apart, what the learning rate does over a whole run: "constant", "linear",
            "cosine", "wsd", or a function from progress (0 to 1) to a multiplier. Forecasts and plans are for it unless
            told otherwise, and `train` follows it where a schedule holds none. None leaves the choice to the plan.
        prior: (batch size, learning rate) that is believed to work: a probe tries rates near it first, carried over to
            its own batch size, and searches all rates only where that one turns out to be wrong.
        search: further hyperparameters by name, each (lowest, highest, "log" or "linear").
        rescale: optimizer settings that change with the batch size, of "weight_decay" (in proportion) and "beta2" (to
            that power); none by default, so that what is probed is the task as it is written.
        base_batch_size: the batch size for which the optimizer's settings were chosen; needed with `rescale`.

    Example:
        >>> x, y = torch.randn(64, 3), torch.randn(64)
        >>> task = TrainingTask(
        ...     model=lambda: nn.Linear(3, 1),
        ...     data=(x, y),
        ...     loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        ...     optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        ... )
        >>> task.population
        64
    """

    model: Callable[[], nn.Module]
    data: Any
    loss: Loss
    optimizer: Callable[..., torch.optim.Optimizer]
    eval_data: Any = None
    metrics: Mapping[str, Metric | SetMetric] = field(default_factory=dict)
    collate_fn: Callable[[list[Any]], Batch] | None = None
    device: torch.device | str | None = None
    autocast: torch.dtype | None = None
    before_step: Callable[[nn.Module], object] | None = None
    warmup_examples: int = 0
    learning_rate_schedule: Shape | None = None
    prior: tuple[int, float] | None = None
    search: Mapping[str, SearchRange] = field(default_factory=dict)
    rescale: tuple[str, ...] = ()
    base_batch_size: int | None = None

    def __post_init__(self) -> None:
        self._check_modules()
        for name in ("model", "loss", "optimizer"):
            _check_callable(name, getattr(self, name))
        for name in ("collate_fn", "before_step"):
            if getattr(self, name) is not None:
                _check_callable(name, getattr(self, name))
        if self.learning_rate_schedule is not None:
            check_shape(self.learning_rate_schedule)
        if callable(self.data) and not isinstance(self.data, Iterable) and not hasattr(self.data, "__getitem__"):
            object.__setattr__(self, "data", SeededStream(self.data))
        check_data("data", self.data, least=2)
        if self.eval_data is not None and isinstance(self.data, Rollouts):
            raise ValueError("eval_data must be left out with Rollouts, which are evaluated by playing episodes")
        if self.eval_data is not None:
            check_data("eval_data", self.eval_data, least=1, streams=False)
        _check_metrics(self.metrics, of_rollouts=isinstance(self.data, Rollouts))
        check_autocast(self.autocast)
        check_count("warmup_examples", self.warmup_examples, least=0)
        _check_device(self.device)
        if self.prior is not None:
            _check_prior(self.prior)
        _check_search(self.search)
        self._check_rescale()

    def _check_modules(self) -> None:
        """Raise where a module stands for a function of it."""
        if isinstance(self.model, nn.Module):
            raise TypeError(
                "model must be a function that makes a new model, got a model: write lambda: make_it(), or make the "
                "task with TrainingTask.from_dataloader, which copies it"
            )
        if isinstance(self.loss, nn.modules.loss._Loss):
            raise TypeError(
                f"loss is called with (model, batch), got {type(self.loss).__name__}: write "
                "lambda model, batch: criterion(model(batch[0]), batch[1])"
            )

    def _check_rescale(self) -> None:
        for name in self.rescale:
            check_one_of("every name in rescale", name, RESCALED)
        if self.base_batch_size is not None:
            check_count("base_batch_size", self.base_batch_size)
        elif self.rescale:
            raise ValueError("rescale needs base_batch_size: the batch size for which the settings were chosen")

    @classmethod
    def from_dataloader(
        cls, loader: DataLoader[Any], *, eval_loader: DataLoader[Any] | None = None, **settings: Any
    ) -> TrainingTask:
        """A task on the data of a DataLoader: its data set, collate function, weights of its sampler.

        The loader's batch size is what is to be found; its workers are not used: examples are read in the process that
        trains. Its batch size and your learning rate make a good `prior`.

        Args:
            loader: of the training data.
            eval_loader: of the data on which the loss is evaluated; with the same collate function.
            settings: all else, as for `TrainingTask`: model, loss, optimizer, ...; eval_data where there is no
                eval_loader. `model` and `optimizer` may be those of a loop, not trained yet: they are copied for every
                run, and the rates of the optimizer's groups keep their ratios.

        Raises:
            TaskError: the data set is iterable, or a sampler of its own decides what is in a batch; the optimizer does
                not hold all trainable parameters of the model.

        Example:
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> loader = DataLoader(TensorDataset(torch.randn(64, 3), torch.randn(64)), batch_size=16, shuffle=True)
            >>> model = nn.Linear(3, 1)
            >>> task = TrainingTask.from_dataloader(
            ...     loader,
            ...     model=model,
            ...     loss=lambda model, batch: nn.functional.mse_loss(model(batch[0])[:, 0], batch[1]),
            ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            ...     prior=(loader.batch_size, 0.1),
            ... )
            >>> task.population
            64
        """
        own = {"data", "collate_fn"} if eval_loader is None else {"data", "collate_fn", "eval_data"}
        for name in own & set(settings):
            raise TypeError(f"{name} is that of the loader, leave it out")
        from batchopt.probing.taken_over import with_factories

        found = loaded_by(loader)
        evaluated = None if eval_loader is None else loaded_by(eval_loader, shuffles=False)
        if evaluated is not None and evaluated.collate_fn is not found.collate_fn:
            raise TaskError("loader and eval_loader must have the same collate_fn, since one serves for both")
        if evaluated is not None:
            settings["eval_data"] = evaluated.data
        return cls(data=found.data, collate_fn=found.collate_fn, **with_factories(settings))

    @property
    def is_stream(self) -> bool:
        """Whether the data are an iterable of batches, which has no seed."""
        return is_stream(self.data)

    @property
    def population(self) -> int | None:
        """Examples in the data set; None for a stream, with a seed or without, and for roll-outs."""
        return population(self.data)

    @property
    def torch_device(self) -> torch.device:
        """Where the task trains."""
        return resolve_device(self.device)

    def make_model(self) -> nn.Module:
        """A new model on the task's device, drawn from the global random generators.

        Raises:
            TaskError: the factory gives no `nn.Module`, or one without a trainable parameter.
        """
        model = self.model()
        if not isinstance(model, nn.Module):
            raise TaskError(f"model must make an nn.Module, got {type(model).__name__}: does the factory return it?")
        is_placed = is_sharded(trainable_parameters(model).values())
        return model if is_placed else model.to(self.torch_device)

    def make_optimizer(
        self, model: nn.Module, *, learning_rate: float, hyperparameters: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """A new optimizer over the model's trainable parameters.

        Raises:
            TaskError: the factory gives no torch optimizer, or one that does not take the learning rate. Parameter
                groups may multiply it, and some may keep a rate of their own.
        """
        parameters = list(trainable_parameters(model).values())

        def made(rate: float) -> tuple[torch.optim.Optimizer, list[float]]:
            optimizer = self.optimizer(parameters, rate, **(hyperparameters or {}))
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TaskError(f"optimizer must make a torch.optim.Optimizer, got {type(optimizer).__name__}")
            return optimizer, _rates_of(optimizer)

        optimizer, rates = made(learning_rate)
        if not any(math.isclose(rate, learning_rate, rel_tol=SAME_RATE) for rate in rates):
            # All groups may multiply the rate, which another rate shows.
            _, doubled = made(2.0 * learning_rate)
            if all(math.isclose(one, other, rel_tol=SAME_RATE) for one, other in zip(rates, doubled, strict=True)):
                raise TaskError(
                    f"optimizer must take the learning rate that it is given: asked for {learning_rate:g}, and for "
                    f"{2.0 * learning_rate:g}, it has {', '.join(f'{rate:g}' for rate in rates[:3])} both times; hand "
                    "it on, as in lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)"
                )
        return optimizer

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Losses of shape (batch,) and their weights (None where the loss gives none), under the task's autocast.

        Raises:
            TaskError: the loss does not return one value per example.
        """
        return per_example_losses(model, self.loss, batch, device=self.torch_device, autocast=self.autocast)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of `model` that require a gradient, by name, each tensor once.

    Raises:
        TaskError: there is none, or one is complex, without values yet, or on another device than the rest.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise TaskError(
            f"the model must have at least one trainable parameter, and {type(model).__name__} has none: "
            "set requires_grad on what should be trained"
        )
    first, device = next((name, parameter.device) for name, parameter in parameters.items())
    for name, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise TaskError(f"parameter {name!r} has no values yet: run one batch through the model first")
        if parameter.is_complex():
            raise TaskError(
                f"parameter {name!r} is complex, which is not supported: hold its real and imaginary parts in a real "
                "parameter (torch.view_as_complex in the forward pass)"
            )
        if parameter.device != device:
            raise TaskError(
                f"all trainable parameters must be on one device, and {first!r} is on {device}, {name!r} on "
                f"{parameter.device}: move the model to one device to measure"
            )
    return parameters


def whole_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters of a model of which this process holds all.

    Raises:
        TaskError: one is sharded over processes, or as for `trainable_parameters`.
    """
    parameters = trainable_parameters(model)
    for name, parameter in parameters.items():
        if is_sharded([parameter]):
            raise TaskError(
                f"parameter {name!r} is sharded over processes (DTensor), where the gradients of single examples, "
                "curvature and a running noise scale cannot be read: call measure_noise_scale, in all processes, with "
                "kind 'simple' or 'preconditioned'"
            )
    return parameters


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, so that reading it reduces nothing; any other as it is."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for; CUDA, or else the CPU, if None."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_autocast(autocast: torch.dtype | None) -> None:
    """Raise unless `autocast` is None or a dtype of mixed precision."""
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}")


def _rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of every parameter group."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(rate is None for rate in rates):
        raise TaskError(
            "every parameter group of the optimizer must have a learning rate, and a group of "
            f"{type(optimizer).__name__} has none: give it as lr"
        )
    return [float(rate) for rate in rates if rate is not None]


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def _check_metrics(metrics: object, *, of_rollouts: bool) -> None:
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) and name for name in metrics):
        raise TypeError(f"metrics must map names to functions of (model, batch), got {metrics!r}")
    if metrics and of_rollouts:
        raise ValueError("metrics must be left out with Rollouts, whose goal is the score of their episodes")
    for name, metric in metrics.items():
        if name in TOLD:
            raise ValueError(f"a metric must not be named {name!r}, which is reported at every evaluation: rename it")
        if not isinstance(metric, SetMetric):
            _check_callable(f"metric {name!r}", metric)


def _check_device(device: torch.device | str | None) -> None:
    try:
        found = resolve_device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must name a torch device, got {device!r}: {error}") from None
    rule = f"device must be one that torch sees, got {str(device)!r}"
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(found.type, True):
        raise ValueError(
            f"{rule} and no {found.type.upper()} device: leave device out to train on the CPU, or install a torch that "
            "is built for it"
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{rule} and {torch.cuda.device_count()} CUDA devices, counted from cuda:0")


def _check_prior(prior: object) -> None:
    if not isinstance(prior, tuple) or len(prior) != 2:
        raise TypeError(f"prior must be a pair, (batch size, learning rate), got {prior!r}")
    check_count("prior's batch size", prior[0])
    check_positive("prior's learning rate", prior[1])


def _check_search(search: Mapping[str, SearchRange]) -> None:
    if not isinstance(search, Mapping):
        raise TypeError(f"search must map names to (lowest, highest, 'log' or 'linear'), got {type(search).__name__}")
    for name, spec in search.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"every name in search must be a keyword of the optimizer factory, got {name!r}")
        if not (isinstance(spec, Iterable) and len(tuple(spec)) == 3):
            raise ValueError(f"search[{name!r}] must be (lowest, highest, 'log' or 'linear'), got {spec!r}")
        low, high, scale = spec
        check_one_of(f"search[{name!r}]'s scale", scale, ("log", "linear"))
        (check_positive if scale == "log" else check_finite)(f"search[{name!r}]'s lowest", low)
        check_finite(f"search[{name!r}]'s highest", high)
        if not low < high:
            raise ValueError(f"search[{name!r}]'s highest must exceed its lowest, got {low!r} and {high!r}")
