"""Measuring the gradient noise scale at frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from batchopt._checks import check_count, check_one_of, check_positive
from batchopt.errors import BudgetError, TaskError
from batchopt.noise_scale import MeasuredAt, NoiseScale, estimate_noise_scale
from batchopt.probing.data import check_data, gather, population, shuffled_indices, to_device
from batchopt.probing.distributed import Reads, process_group, reads
from batchopt.probing.gradients import Reading, batch_size_of, coupling_module, make_reader, rows
from batchopt.probing.kinds import KINDS
from batchopt.probing.moments import MomentAccumulator
from batchopt.probing.run import TrainingRun
from batchopt.probing.state import preserved, seed_generators
from batchopt.probing.stopping import FIRST_LOOK, collect_until_narrow
from batchopt.probing.task import Batch, Loss, check_autocast, trainable_parameters, unwrapped

FEWEST_UNITS = 3
"""Fewer gradients show too little of how they vary."""
SEEDS_APART = 1_000_003
"""Between the seeds of processes that measure together: what is random in the loss is drawn anew in each."""
COUPLED_GROUP = 32
"""Examples per unit where BatchNorm couples them and no group size is given."""

Stopped = Literal["width", "budget", "population"]


def measure_noise_scale(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    relative_width: float = 0.3,
    max_examples: int = 50_000,
    kind: str = "simple",
    group_size: int | None = None,
    seed: int = 0,
    collate_fn: Callable[[list[Any]], Batch] | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    infinite_population: bool | None = None,
    at: MeasuredAt | None = None,
) -> NoiseScale:
    """Measure the gradient noise scale of a model as it stands.

    Examples are drawn without replacement until the 90 % interval is narrow enough, the budget is spent or the data are
    used up; the reading says which. The model is measured in the mode that it is in: for the noise that an optimizer
    sees, dropout included, that is training mode. Weights, optimizer, buffers, modes, `.grad` and random generators are
    as before when this returns, or raises. Gradients are taken before any clipping; penalties that the optimizer adds
    (weight decay) are not in them.

    Where torch.distributed is initialised with several processes, all of them must call this, with the same seed: they
    share every batch of a data set, or each reads its own stream, and all return the same reading. A model inside
    `DistributedDataParallel` is measured without it: nothing is reduced, and the loss gets the inner model.

    Do not trust it as the critical batch size itself: it is a proxy that can be off by an order of magnitude.

    Args:
        model: parameters that do not require a gradient are left out.
        loss: (model, batch) -> losses of shape (batch,), or (losses, weights), as for `TrainingTask`.
        data: a tuple of tensors, a map-style data set, or an iterable of batches (a stream).
        optimizer: kept as it is; kinds other than "simple" read their metric from it.
        relative_width: measure until (high - low) / value is at most this.
        max_examples: examples that may get a gradient.
        kind: which noise scale, a name in `batchopt.probing.kinds.KINDS`.
        group_size: examples per measured gradient; None takes single examples, or groups of 32 (fewer in a small data
            set) where BatchNorm in training mode couples them: give the training batch size there.
        seed: of the draw, and of what is random in the loss.
        collate_fn: makes a batch of a list of examples; torch's default_collate if None.
        device: where batches go; None takes the model's.
        autocast: dtype of mixed precision; gradients are added up in float32 all the same. With float16 they are taken
            without loss scaling, so that small ones underflow: prefer bfloat16.
        infinite_population: whether examples are drawn anew every time, as by random augmentation; None says so for
            streams and for models with active dropout only.
        at: where along a run this is, for the record.

    Raises:
        TaskError: the loss does not return one value per example, or does not depend on the model; the model has no
            trainable parameter; or there are too few examples.
        BudgetError: `max_examples` does not hold three measured gradients.
        NonFiniteLossError: a gradient is NaN or infinite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 4, generator=generator)
        >>> y = x.sum(1) + torch.randn(1000, generator=generator)
        >>> model = nn.Linear(4, 1)
        >>> noise = measure_noise_scale(model, lambda model, batch: (model(batch[0])[:, 0] - batch[1]) ** 2, (x, y))
        >>> noise.resolved, noise.group_size
        (True, 1)
    """
    _check(data, relative_width=relative_width, max_examples=max_examples, kind=kind, autocast=autocast)
    model = unwrapped(model)
    parameters = list(trainable_parameters(model).values())
    target = parameters[0].device if device is None else torch.device(device)
    group = process_group(target)
    with preserved(model, optimizer), torch.enable_grad():
        seed_generators(seed if group is None else seed + SEEDS_APART * group.rank)
        reading = Reading(model, loss, target, autocast, factors=KINDS[kind](parameters, optimizer))
        reader = make_reader(reading, group_size=group_size, default_group=_coupled_group(population(data)))
        is_split = population(data) is not None
        together = reads(reader, parameters, group, split=is_split)
        budget = max_examples if group is None or is_split else max_examples // group.count
        source = _source(data, reader.group_size, budget, seed=seed, collate_fn=collate_fn, device=target)
        moments = MomentAccumulator(
            quota=source.first_quota,
            group_size=reader.group_size,
            gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        )
        infinite = has_dropout(model) if infinite_population is None else infinite_population
        drawn_from = None if infinite else source.population
        narrow = collect_until_narrow(
            lambda units: together.read(lambda: source.take(units)),
            moments,
            group_size=reader.group_size,
            population=drawn_from,
            relative_width=relative_width,
        )
        stopped: Stopped = "width" if narrow else _used_up(together, source)
        _check_enough(moments)
        return estimate_noise_scale(
            moments.moments(drawn_from), kind=kind, method=reader.method, stopped=stopped, at=at
        )


def measure_run(
    run: TrainingRun,
    *,
    batch_size: int | None = None,
    relative_width: float = 0.3,
    max_examples: int = 50_000,
    seed: int = 0,
    at: MeasuredAt | None = None,
) -> NoiseScale:
    """The noise scale of a run where it stands, as `measure_noise_scale`; the run itself is left as it was.

    Args:
        run: what to measure.
        batch_size: of the run's steps: a model whose BatchNorm couples examples is measured in groups of as many.
        relative_width: as for `measure_noise_scale`.
        max_examples: as for `measure_noise_scale`.
        seed: as for `measure_noise_scale`.
        at: as for `measure_noise_scale`.
    """
    task = run.task
    return measure_noise_scale(
        run.model,
        task.loss,
        task.data,
        optimizer=run.optimizer,
        relative_width=relative_width,
        max_examples=max_examples,
        group_size=batch_size if coupling_module(run.model) is not None else None,
        seed=seed,
        collate_fn=task.collate_fn,
        device=task.torch_device,
        autocast=task.autocast,
        at=at,
    )


def has_dropout(model: nn.Module) -> bool:
    """Whether the model draws dropout masks in its present mode, so that an example's gradient is new every time."""
    for module in model.modules():
        share = module.p if isinstance(module, _DropoutNd) else 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            share = module.dropout
        if module.training and share > 0:
            return True
    return False


def _used_up(together: Reads, source: _Source) -> Stopped:
    return "population" if together.agreed(source.end == "population") else "budget"


class _Source(Protocol):
    """Where units come from."""

    population: int | None
    first_quota: int

    @property
    def end(self) -> Stopped:
        """Why there are no more units."""

    def take(self, units: int) -> tuple[Batch, int] | None:
        """A batch of at most `units` units and its number of examples; None where there are no more."""


class _Drawn:
    """Units of a data set, in a seeded order without replacement."""

    def __init__(
        self, data: Any, group_size: int, max_examples: int, *, seed: int, fetch: Callable[[Any], Batch]
    ) -> None:
        self.population: int | None = len(data[0]) if isinstance(data, tuple) else len(data)
        self._order = shuffled_indices(self.population, seed=seed, start=0, count=self.population)
        self._group_size = group_size
        self._fetch = fetch
        self._position = 0
        self._units = min(self.population, max_examples) // group_size
        self.end: Stopped = "budget" if max_examples // group_size < self.population // group_size else "population"
        if self._units < FEWEST_UNITS:
            _refuse(group_size, self.population, max_examples)
        self.first_quota = max(1, min(self._units, FIRST_LOOK // group_size) // 16)

    def take(self, units: int) -> tuple[Batch, int] | None:
        count = min(units, self._units) * self._group_size
        if count == 0:
            return None
        chosen = self._order[self._position : self._position + count]
        self._position += count
        self._units -= count // self._group_size
        return self._fetch(chosen), count


class _Streamed:
    """Units of a stream's batches, in the order in which they come."""

    first_quota = 1

    def __init__(self, data: Iterable[Batch], group_size: int, max_examples: int, *, device: torch.device) -> None:
        self.population: int | None = None
        self._batches: Iterator[Batch] = iter(data)
        self._group_size = group_size
        self._device = device
        self._units = max_examples // group_size
        self._held: tuple[Batch, int] | None = None
        self.end: Stopped = "budget"
        if self._units < FEWEST_UNITS:
            _refuse(group_size, None, max_examples)

    def take(self, units: int) -> tuple[Batch, int] | None:
        wanted = min(units, self._units) * self._group_size
        if wanted == 0:
            return None
        if self._held is None:
            batch = next(self._batches, None)
            if batch is None:
                self.end = "population"
                return None
            self._held = to_device(batch, self._device), batch_size_of(batch)
        batch, size = self._held
        if size < self._group_size:
            raise TaskError(f"a stream's batches must hold a group of {self._group_size} examples at least, got {size}")
        count = min(wanted, size - size % self._group_size)
        left = size - count
        self._held = (rows(batch, size, count, size), left) if left >= self._group_size else None
        self._units -= count // self._group_size
        return rows(batch, size, 0, count), count


def _source(
    data: Any,
    group_size: int,
    max_examples: int,
    *,
    seed: int,
    collate_fn: Callable[[list[Any]], Batch] | None,
    device: torch.device,
) -> _Source:
    if population(data) is None:
        return _Streamed(data, group_size, max_examples, device=device)
    return _Drawn(
        data,
        group_size,
        max_examples,
        seed=seed,
        fetch=lambda indices: gather(data, indices, collate_fn=collate_fn, device=device),
    )


def _coupled_group(size: int | None) -> int:
    return COUPLED_GROUP if size is None else max(2, min(COUPLED_GROUP, size // 16))


def _refuse(group_size: int, size: int | None, max_examples: int) -> None:
    least = FEWEST_UNITS * group_size
    if max_examples < least:
        raise BudgetError(
            f"max_examples must be at least {least} (three gradients of {group_size}), got {max_examples}"
        )
    raise TaskError(f"data must hold at least {least} examples (three gradients of {group_size}), got {size}")


def _check_enough(moments: MomentAccumulator) -> None:
    if moments.units < FEWEST_UNITS:
        raise TaskError(f"the stream must hold at least three gradients' worth of examples, got {moments.units}")
    if moments.is_zero():
        raise TaskError("every gradient is exactly zero: does the loss depend on the model's trainable parameters?")


def _check(data: Any, *, relative_width: float, max_examples: int, kind: str, autocast: torch.dtype | None) -> None:
    check_data("data", data, least=FEWEST_UNITS)
    check_positive("relative_width", relative_width)
    check_count("max_examples", max_examples)
    check_one_of("kind", kind, tuple(KINDS))
    check_autocast(autocast)
