"""Measuring the gradient noise scale at frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from batchopt._checks import check_count, check_positive
from batchopt.errors import TaskError
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.probing.data import check_data, is_stream, population
from batchopt.probing.distributed import DefaultGroup, Reads, process_group, reads
from batchopt.probing.gradient_norms.uses import wide
from batchopt.probing.gradients import coupling_module, make_reader
from batchopt.probing.kinds.kind import Kind, kind_of
from batchopt.probing.kinds.metric import Metric, MetricOf
from batchopt.probing.kinds.preconditioned import added_decay
from batchopt.probing.losses import Batch, Loss
from batchopt.probing.moments import MomentAccumulator
from batchopt.probing.reading import GradientReader, Reading
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.run import TrainingRun
from batchopt.probing.sharded_gradients import KINDS as SHARDED_KINDS
from batchopt.probing.sharded_gradients import ShardedGroupGradients, check_sharding
from batchopt.probing.sharding import is_sharded, own_part, reshard
from batchopt.probing.state import preserved, seed_generators
from batchopt.probing.stopping import collect_until_narrow, squared_norms
from batchopt.probing.task import check_autocast, trainable_parameters, unwrapped
from batchopt.probing.units import FEWEST_UNITS, Source, Stopped, source_of

SEEDS_APART = 1_000_003
"""Between the seeds of processes that measure together: what is random in the loss is drawn anew in each."""
COUPLED_GROUP = 32
"""Examples per unit where BatchNorm couples them and no group size is given."""


def measure_noise_scale(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    relative_width: float = 0.3,
    max_examples: int = 50_000,
    kind: str | MetricOf = "simple",
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
    `DistributedDataParallel` is measured without it: nothing is reduced, and the loss gets the inner model. A model
    that is sharded by FSDP2 (`fully_shard`) is measured by groups of examples, of which every process takes its share:
    the kinds "simple" and "preconditioned", on a data set.

    Do not trust it as the critical batch size itself: it is a proxy that can be off by an order of magnitude.

    Args:
        model: parameters that do not require a gradient are left out.
        loss: (model, batch) -> losses of shape (batch,), or (losses, weights), as for `TrainingTask`.
        data: a tuple of tensors, a map-style data set, `Rollouts` (the model acts at its present weights, every example
            in an environment of its own), or an iterable of batches (a stream, as a roll-out buffer is; a list counts
            as a data set of examples, `iter(batches)` makes a stream of it).
        optimizer: kept as it is; kinds other than "simple" read their metric from it.
        relative_width: measure until (high - low) / value is at most this.
        max_examples: examples that may get a gradient.
        kind: which noise scale.
            "simple": tr(Sigma) / |G|^2.
            "preconditioned": the same in the optimizer's own metric, as for Adam's coordinates over sqrt(v); the
            identity where the optimizer has none or is not known, and the record's `metric` says so.
            "hessian": weighed with the curvature of the loss, tr(H Sigma) / G'HG; unresolved where that is negative.
            "hessian_preconditioned": both.
            "sign": by sums of absolute values, for optimizers that step by the sign of the gradient.
            A function (trainable parameters, optimizer) -> factors by which gradients are multiplied, one for each
            parameter (or None for the identity): a metric of your own.
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
    _check(data, relative_width=relative_width, max_examples=max_examples, autocast=autocast)
    chosen = kind_of(kind)
    model = unwrapped(model)
    reshard(model)
    parameters = list(trainable_parameters(model).values())
    target = parameters[0].device if device is None else torch.device(device)
    group = process_group(target)
    if group is not None and isinstance(data, Rollouts):
        raise TaskError("the noise scale of roll-outs is measured by one process: start it without torchrun")
    sharded = _sharded_over(model, process_group(target, of_one=True), chosen, data)
    with preserved(model, optimizer), torch.enable_grad():
        seed_generators(seed if group is None else seed + SEEDS_APART * group.rank)
        metric = chosen.metric(parameters, optimizer)
        reading = Reading(model, loss, target, autocast, factors=metric.factors)
        is_split = not is_stream(data)
        default_group = _default_group(population(data), halves=chosen.curved)
        reader: GradientReader
        if sharded is None:
            reader = make_reader(reading, group_size=group_size, default_group=default_group, curved=chosen.curved)
        else:
            reader = ShardedGroupGradients(reading, sharded, group_size=group_size or default_group)
        # All processes that hold a sharded model read the same batches.
        together = reads(reader, parameters, group if sharded is None else None, split=is_split)
        budget = max_examples if group is None or is_split else max_examples // group.count
        source = source_of(
            model, data, reader, budget, seed=seed, collate_fn=collate_fn, device=target, autocast=autocast
        )
        moments = MomentAccumulator(
            quota=source.first_quota,
            group_size=reader.group_size,
            gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            add_up=None if sharded is None else sharded.add_up,
        )
        infinite = has_dropout(model) if infinite_population is None else infinite_population
        drawn_from = None if infinite else source.population
        narrow = collect_until_narrow(
            lambda units: together.read(lambda: source.take(units)),
            moments,
            group_size=reader.group_size,
            population=drawn_from,
            relative_width=relative_width,
            estimate=chosen.estimate,
        )
        stopped: Stopped = "width" if narrow else _used_up(together, source)
        _check_enough(moments)
        found = chosen.estimate(moments, drawn_from)
        return NoiseScale(
            kind=chosen.name,
            signal=found.signal,
            noise=found.noise,
            batch_size=found.batch_size,
            examples=moments.units * reader.cost,
            group_size=reader.group_size,
            population=drawn_from,
            method=reader.method if is_split else f"{reader.method}; of a stream, whose population is no data set",
            stopped=stopped,
            at=at,
            metric=metric.words,
            signal_with_decay=_signal_with_decay(chosen, moments, found.signal, metric, parameters, optimizer),
        )


def measure_run(
    run: TrainingRun,
    *,
    batch_size: int | None = None,
    relative_width: float = 0.3,
    max_examples: int = 50_000,
    kind: str | MetricOf = "simple",
    seed: int = 0,
    at: MeasuredAt | None = None,
) -> NoiseScale:
    """The noise scale of a run where it stands, as `measure_noise_scale`; the run itself is left as it was.

    Args:
        run: what to measure.
        batch_size: of the run's steps: a model whose BatchNorm couples examples is measured in groups of as many.
        relative_width: as for `measure_noise_scale`.
        max_examples: as for `measure_noise_scale`.
        kind: as for `measure_noise_scale`.
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
        kind=kind,
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


def _used_up(together: Reads, source: Source) -> Stopped:
    return "population" if together.agreed(source.end == "population") else "budget"


def _signal_with_decay(
    kind: Kind,
    moments: MomentAccumulator,
    signal: float,
    metric: Metric,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
) -> float | None:
    """|G + decay theta|^2 in the metric; unbiased, as it is linear in the measured mean beside |G|^2."""
    decay = added_decay(parameters, optimizer)
    if decay is None or kind.curved or kind.estimate is not squared_norms:
        return None
    factors = [None] * len(parameters) if metric.factors is None else metric.factors
    pull = torch.cat(
        [
            (rate * wide(own_part(parameter.detach())) * (1.0 if factor is None else factor)).flatten().double()
            for rate, parameter, factor in zip(decay, parameters, factors, strict=True)
        ]
    )
    total = sum((group.total.double() for group in moments.groups), start=torch.zeros_like(pull))
    mean = total / sum(group.weights for group in moments.groups)
    return signal + float(moments.over_coordinates(2.0 * mean @ pull + pull @ pull))


def _sharded_over(model: nn.Module, group: DefaultGroup | None, kind: Kind, data: Any) -> DefaultGroup | None:
    """The processes that a model is sharded over; None where this one holds all of it.

    Raises:
        TaskError: it is sharded in a way, or of a kind, or the data are such, that it cannot be measured.
    """
    if not is_sharded(model.parameters()):
        return None
    check_sharding(model, group)
    if kind.name not in SHARDED_KINDS:
        raise TaskError(
            f"of a sharded model the kind must be one of {', '.join(SHARDED_KINDS)}, got {kind.name!r}: single "
            "coordinates and curvature are whole in no process"
        )
    if is_stream(data):
        raise TaskError("a sharded model is measured on a data set that all processes see, not on a stream")
    return group


def _default_group(size: int | None, *, halves: bool) -> int:
    """Examples per unit where single ones can't be read: fewer in a small data set, so that there are enough units."""
    return COUPLED_GROUP if size is None else max(2, min(COUPLED_GROUP, size // (32 if halves else 16)))


def _check_enough(moments: MomentAccumulator) -> None:
    if moments.units < FEWEST_UNITS:
        raise TaskError(f"the stream must hold at least three gradients' worth of examples, got {moments.units}")
    if moments.is_zero():
        raise TaskError("every gradient is exactly zero: does the loss depend on the model's trainable parameters?")


def _check(data: Any, *, relative_width: float, max_examples: int, autocast: torch.dtype | None) -> None:
    check_data("data", data, least=FEWEST_UNITS)
    check_positive("relative_width", relative_width)
    check_count("max_examples", max_examples)
    check_autocast(autocast)
