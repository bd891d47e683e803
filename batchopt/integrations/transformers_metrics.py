"""A Trainer's `compute_metrics` as the metrics of a task: as the Trainer calls it, on all predictions together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import nested_numpify

from batchopt.probing.set_metric import SetMetric
from batchopt.probing.state import evaluating
from batchopt.probing.task import TOLD

LOOKED_AT = 32
"""Examples of which `compute_metrics` is asked once for the names of what it returns."""
PADDING = -100
"""What the Trainer pads predictions and labels of unequal lengths with."""

Read = tuple[Any, Any]
"""Predictions and labels of a batch."""


def metrics_of(trainer: Trainer, model: nn.Module, data: Any) -> dict[str, SetMetric]:
    """What a Trainer's `compute_metrics` returns, by name; a warning says why where nothing is taken.

    Args:
        trainer: with `compute_metrics` or without.
        model: that it begins with.
        data: on which is evaluated.
    """
    compute = trainer.compute_metrics
    if compute is None:
        return {}
    if not _is_read_by_index(data):
        return _none_taken("the names of its metrics are read from an eval_dataset with a length")
    if trainer.args.batch_eval_metrics or trainer.args.include_for_metrics:
        return _none_taken("batch_eval_metrics and include_for_metrics ask for more than predictions and labels")
    read = _reader(trainer)
    try:
        found = dict(compute(_together([_first(trainer, model, data, read)])))
    except Exception as error:  # the user's function may ask for more than a few examples
        return _none_taken(f"on {min(LOOKED_AT, len(data))} examples it raises {type(error).__name__}: {error}")
    names = [name for name, value in found.items() if _is_number(value) and name not in TOLD]
    if not names:
        told = ", ".join(map(str, found)) or "nothing"
        return _none_taken(f"none of what it returns is a number with a name of its own, but {told}")

    def together(kept: Sequence[Read]) -> Any:
        return compute(_together(kept))

    return {name: SetMetric(read, itemgetter(name), together) for name in names}


def _none_taken(why: str) -> dict[str, SetMetric]:
    warnings.warn(
        f"compute_metrics is not taken over from the Trainer, because {why}: where you need a metric as a goal, give "
        "task_from_trainer(trainer, metrics={name: (model, batch) -> one value per example})",
        UserWarning,
        stacklevel=4,
    )
    return {}


def _is_read_by_index(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) or getattr(value, "size", 0) == 1


def _reader(trainer: Trainer) -> Callable[[nn.Module, Any], Read]:
    """What the Trainer keeps of a batch, on the host."""

    def read(model: nn.Module, batch: Any) -> Read:
        _, predictions, labels = trainer.prediction_step(model, dict(batch), prediction_loss_only=False)
        if trainer.preprocess_logits_for_metrics is not None and predictions is not None:
            predictions = trainer.preprocess_logits_for_metrics(predictions, labels)
        return _on_host(predictions), _on_host(labels)

    return read


def _on_host(values: Any) -> Any:
    return None if values is None else nested_numpify(values)


def _first(trainer: Trainer, model: nn.Module, data: Any, read: Callable[[nn.Module, Any], Read]) -> Read:
    """What is read of the first examples."""
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="Evaluation")
    batch = collate([data[i] for i in range(min(LOOKED_AT, len(data)))])
    device = trainer.args.device
    with evaluating(model):
        return read(
            model.to(device), {name: v.to(device) if isinstance(v, Tensor) else v for name, v in dict(batch).items()}
        )


def _together(kept: Sequence[Read]) -> EvalPrediction:
    """All predictions and labels, padded to one length as the Trainer does."""
    predictions, labels = (
        None if any(each is None for each in column) else _joined(column) for column in zip(*kept, strict=True)
    )
    return EvalPrediction(predictions=predictions, label_ids=labels)


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays of all batches, or lists, tuples and mappings of such, as the Trainer's `nested_concat` joins them.

    That joins two at a time, and copies all that came before with every batch.
    """
    first = parts[0]
    if isinstance(first, list | tuple):
        return type(first)(_joined(column) for column in zip(*parts, strict=True))
    if isinstance(first, Mapping):
        return type(first)({name: _joined([part[name] for part in parts]) for name in first})  # type: ignore[call-arg]
    arrays = [np.atleast_1d(part) for part in parts]
    widths = [array.shape[1] if array.ndim > 1 else 1 for array in arrays]
    if len(set(widths)) == 1:
        return np.concatenate(arrays)
    shape = (sum(map(len, arrays)), max(widths), *arrays[0].shape[2:])
    joined, begin = np.full_like(arrays[0], PADDING, shape=shape), 0
    for array, width in zip(arrays, widths, strict=True):
        joined[begin : begin + len(array), :width] = array
        begin += len(array)
    return joined
