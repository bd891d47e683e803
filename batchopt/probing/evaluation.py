"""When and how to evaluate a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from batchopt._checks import check_count
from batchopt.errors import TaskError
from batchopt.probing.data import EVALUATION_SEED, available, evaluation_batches, evaluation_indices, fetch, order_of
from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.losses import Batch, check_mean, is_mean, metric_values, tolerance_in
from batchopt.probing.reading import rows
from batchopt.probing.rollouts import Collector, Rollouts
from batchopt.probing.set_metric import Kept, SetMetric
from batchopt.probing.sharding import is_sharded, reshard
from batchopt.probing.state import OwnRandomness, evaluating
from batchopt.probing.task import TrainingTask

if TYPE_CHECKING:
    from batchopt.probing.run import TrainingRun

LOOKED_AT = 16
"""Examples whose losses in both modes are compared: enough to tell one that counts from one that does not."""
HOPELESS = 3.0
"""A loss this many times the initial one counts as diverged."""
RATIO = 1.2
"""Evaluations of a run are this factor apart in examples."""


def evaluation_points(examples: int, *, first: int, ratio: float = RATIO) -> list[int]:
    """Numbers of examples at which to evaluate a run: 0, then geometric from `first`, and the end of the run.

    A loss falls over the logarithm of examples, so points that are evenly spaced there see every stretch of the curve
    equally well for a number of evaluations that grows with the logarithm of the run only.

    Args:
        examples: of the whole run; always the last point.
        first: the first point after 0. Below some ten steps the loss of a run says little.
        ratio: of neighbouring points. The last gap is between half and one and a half of that, in logarithms: a point
            close to the end would cost an evaluation and tell nothing.

    Returns:
        Whole numbers that rise strictly.

    Raises:
        ValueError: `ratio` does not exceed 1.

    Example:
        >>> evaluation_points(40, first=10, ratio=1.5)
        [0, 10, 15, 23, 40]
    """
    check_count("examples", examples)
    check_count("first", first)
    if not ratio > 1.0:
        raise ValueError(f"ratio must exceed 1, got {ratio!r}")
    points, latest = [0], examples / math.sqrt(ratio)
    point, k = first, 0
    while point <= latest:
        if point > points[-1]:
            points.append(point)
        k += 1
        point = math.ceil(first * ratio**k)
    return [*points, examples]


class Evaluation(NamedTuple):
    """What a model does on a task's evaluation examples: the mean loss, and the mean of each metric."""

    loss: float
    metrics: dict[str, float]


def evaluate(
    task: TrainingTask, model: nn.Module, group: DefaultGroup | None = None, *, is_sharded: bool = False
) -> Evaluation:
    """Evaluate a model by itself, or in several processes, which all get what the first one finds.

    Its running statistics (BatchNorm) become those of the model in all of them. A sharded model they evaluate together.
    """
    if group is None:
        return evaluated(task, model)
    group.share(list(model.buffers()))
    own = evaluated(task, model) if is_sharded else None
    return group.from_first(lambda: evaluated(task, model) if own is None else own)


def evaluated(task: TrainingTask, model: nn.Module) -> Evaluation:
    """The (weighted) mean per-example loss and metrics of a model in evaluation mode, on the task's examples for that.

    They may be NaN or infinite. Global random generators and the model's modes are as before.
    """
    fixed = OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True)
    if isinstance(task.data, Rollouts):
        with fixed.active():
            device, autocast = task.torch_device, task.autocast
            return Evaluation(task.data.evaluate(model, seed=EVALUATION_SEED, device=device, autocast=autocast), {})
    each = {name: metric for name, metric in task.metrics.items() if not isinstance(metric, SetMetric)}
    loss, means, together = _Mean(), {name: _Mean() for name in each}, Kept(task.metrics)
    with fixed.active(), evaluating(model):
        for batch in evaluation_batches(task):
            losses, weights = task.losses(model, batch)
            loss.add(losses, torch.ones_like(losses) if weights is None else weights)
            with torch.autocast(task.torch_device.type, dtype=task.autocast, enabled=task.autocast is not None):
                for name, mean in means.items():
                    mean.add(*metric_values(name, each[name](model, batch), losses))
                together.add(model, batch)
    reshard(model)
    found = {name: mean.value for name, mean in means.items()} | together.values
    return Evaluation(loss.value, {name: found[name] for name in task.metrics})


class _Mean:
    """A weighted mean over batches; NaN where nothing counts."""

    def __init__(self) -> None:
        self._total, self._weight = 0.0, 0.0

    def add(self, values: Tensor, weights: Tensor) -> None:
        self._total += (weights * values).sum(dtype=torch.float64).item()
        self._weight += weights.sum(dtype=torch.float64).item()

    @property
    def value(self) -> float:
        return self._total / self._weight if self._weight else math.nan


def collector_of(task: TrainingTask, seed: int) -> Collector | None:
    """Where a run of a task gets its batches from, if its model makes them."""
    if not isinstance(task.data, Rollouts):
        return None
    return Collector(task.data, seed, task.torch_device, task.autocast)


def check_untrained(run: TrainingRun, count: int) -> None:
    """Raise TaskError where examples on which a loss was not finite have such a loss before any training too.

    Args:
        run: that has not gone on since.
        count: examples of the batch.
    """
    bad = not_finite_untrained(run, count)
    if bad:
        which = "" if run.task.population is None else f" (data[{bad[0]}]{' and others' if len(bad) > 1 else ''})"
        raise TaskError(
            f"losses must be finite before any training, and {len(bad)} of {count} examples{which} have one that is "
            "nan or infinite: look for NaN or infinite values in the data, for labels none of which counts, or in the "
            "loss"
        )


def untrained_fault(task: TrainingTask, model: nn.Module | None, what: str) -> str:
    """What to look for where an evaluation of an untrained model is not finite, with the first example at fault.

    Args:
        task: whose evaluation it is.
        model: before any training; None where this process cannot evaluate it alone, and no example is named.
        what: is not finite: the loss, or a metric.
    """
    bad = [] if model is None or isinstance(task.data, Rollouts) else _not_finite_evaluated(task, model)
    article, held = ("the ", "data") if task.eval_data is None else ("", "eval_data")
    named = task.eval_data is not None or task.population is not None
    which = f", as that of {held}[{bad[0]}]{' and others' if len(bad) > 1 else ''} is" if bad and named else ""
    return (
        f"losses and metrics must be finite before any training, and {what} is nan or infinite{which}: look for NaN or "
        f"infinite values in {article}{held}, or in what computes it"
    )


def _not_finite_evaluated(task: TrainingTask, model: nn.Module) -> list[int]:
    """Indices of evaluated examples whose loss is NaN or infinite; none where the loss is one number of a batch."""
    found: list[Tensor] = []
    with OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True).active(), evaluating(model):
        for batch in evaluation_batches(task):
            losses = task.losses(model, batch)[0]
            if is_mean(losses):
                return []
            found.append(~losses.isfinite().cpu())
    return [int(index) for index in evaluation_indices(task)[torch.cat(found).numpy()]]


def not_finite_untrained(run: TrainingRun, count: int) -> list[int]:
    """Indices of a run's next examples whose loss is NaN or infinite before any training; none of roll-outs."""
    task = run.task
    if isinstance(task.data, Rollouts) or run.group is not None:
        return []
    indices = order_of(task.data, seed=run.seed, start=run.examples_seen, count=count)
    try:
        with OwnRandomness(run.seed, device=task.torch_device, host=True).active():
            model = task.make_model()
            with evaluating(model):
                losses = losses_of_each(task, model, fetch(task, indices), count)
    except torch.OutOfMemoryError:  # a second model beside the run's
        return []
    return [int(index) for index in indices[~losses.isfinite().cpu().numpy()]]


def losses_of_each(task: TrainingTask, model: nn.Module, batch: Batch, count: int, *, size: int = 1) -> Tensor:
    """The losses of examples; where the loss is one number, of batches of `size` examples each."""
    losses = task.losses(model, batch)[0]
    if not is_mean(losses):
        return losses
    begins = range(0, count - size + 1, size)
    return torch.stack([task.losses(model, rows(batch, count, i, i + size))[0][0] for i in begins])


def _check_mean(task: TrainingTask, model: nn.Module, evaluated: Tensor, batch: Batch) -> None:
    """Raise where a loss that is one number is not the mean over the batch; one that is random is not looked at."""
    count = len(evaluated)
    with torch.no_grad():
        if not torch.equal(task.losses(model, batch)[0], evaluated):
            return
        alone = [task.losses(model, rows(batch, count, i, i + 1)) for i in range(count)]
    check_mean(evaluated, alone, tolerance=tolerance_in(task.autocast))


def check_evaluation(task: TrainingTask, model: nn.Module) -> None:
    """Raise TaskError where the loss is another one in evaluation mode: an error rate, as a way to a goal in accuracy.

    A loss from which no gradient comes and that takes two values at most, where in training mode it takes more, counts
    things. Training losses and evaluated ones then make no curve together.

    Args:
        task: as it is written.
        model: of the task, for this alone: its running statistics change.
    """
    if isinstance(task.data, Rollouts) or is_sharded(model.parameters()):
        return
    count = min(LOOKED_AT, available(task.data))
    indices = order_of(task.data, seed=EVALUATION_SEED, start=0, count=count)
    try:
        with OwnRandomness(EVALUATION_SEED, device=task.torch_device, host=True).active():
            batch = fetch(task, indices)
            with torch.no_grad():
                learned = losses_of_each(task, model.train(), batch, count, size=2)  # BatchNorm takes no fewer
                values = sorted(set(losses_of_each(task, model.eval(), batch, count).tolist()))
            with torch.enable_grad():
                evaluated = task.losses(model, batch)[0]
            if is_mean(evaluated):
                _check_mean(task, model, evaluated, batch)
    except torch.OutOfMemoryError:
        return
    if not evaluated.requires_grad and len(values) <= 2 < len(set(learned.tolist())):
        raise TaskError(
            "the loss must be the same in training and in evaluation mode, and in evaluation mode it counts (it is "
            f"{' or '.join(f'{value:g}' for value in values)} for every example, and has no gradient): return "
            "the loss that is trained on in both modes, and plan for a value of that"
        )
