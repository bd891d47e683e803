"""Examples by index: the order in which a run sees them, and how a batch of them is put together.

Data come in five forms: a tuple of tensors of one length, a map-style data set (`__len__` and `__getitem__`), a
function from a seed to examples (`SeededStream`), what the model makes by acting (`Rollouts`, whose examples have no
index), or a stream, which is any other iterable of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate

from batchopt._checks import check_count
from batchopt.errors import TaskError
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.set_metric import n_passes
from batchopt.probing.streams import ENDLESS, SeededStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.probing.task import TrainingTask

EVALUATION_SAMPLE = 1024
"""Training examples on which the loss is evaluated where a task has no evaluation data."""
EVALUATION_BATCH = 256
EVALUATION_SEED = 20181214


def is_stream(data: object) -> bool:
    """Whether `data` gives batches in its own order only, so that no example can be asked for by its index."""
    if isinstance(data, SeededStream | Rollouts):
        return False
    return isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


def population(data: Any) -> int | None:
    """Examples in `data`; None for a stream, seeded or not, and for roll-outs."""
    if is_stream(data) or isinstance(data, SeededStream | Rollouts):
        return None
    return len(data[0]) if isinstance(data, tuple) else len(data)


def available(data: Any) -> int:
    """Examples that a run can have without seeing one twice; 0 of a stream without a seed."""
    return ENDLESS if isinstance(data, SeededStream | Rollouts) else population(data) or 0


def order_of(data: Any, *, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Indices of the examples that a run sees at positions `start` to `start + count`, (count,)."""
    if isinstance(data, SeededStream):
        return data.positions(seed=seed, start=start, count=count)
    return shuffled_indices(available(data), seed=seed, start=start, count=count)


def check_data(name: str, data: object, *, least: int, streams: bool = True) -> None:
    """Raise unless `data` has one of the forms and holds at least `least` examples.

    Raises:
        TypeError: `data` has another form.
        TaskError: too few examples, or tensors of unequal length.
    """
    if isinstance(data, SeededStream | Rollouts) and streams:
        return
    if isinstance(data, Tensor):
        raise TypeError(f"{name} must be a tuple of tensors or a data set, got one tensor: write ({name},)")
    if isinstance(data, tuple):
        _check_tensors(name, data)
    elif is_stream(data) or isinstance(data, SeededStream | Rollouts):
        if not (streams and isinstance(data, Iterable)):
            forms = "a tuple of tensors or a map-style data set" + (", or an iterable of batches" if streams else "")
            raise TypeError(f"{name} must be {forms}, got {type(data).__name__}")
        return
    size = population(data)
    if size is None or size < least:
        raise TaskError(f"{name} must hold at least {least} example{'s' if least > 1 else ''}, got {size}")


def _check_tensors(name: str, data: tuple[object, ...]) -> None:
    for part in data:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{name} as a tuple must hold tensors only, got {type(part).__name__}: convert it with torch.as_tensor"
            )
        if part.ndim == 0:
            raise TaskError(f"{name} must hold tensors with one row per example, got one without dimensions")
    lengths = [len(part) for part in data if isinstance(part, Tensor)]
    if not lengths:
        raise TaskError(f"{name} must hold at least one tensor, got an empty tuple")
    if len(set(lengths)) > 1:
        raise TaskError(f"tensors of {name} must be of one length, got lengths {', '.join(map(str, lengths))}")


def shuffled_indices(population: int, *, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Which examples a run sees at positions `start` to `start + count` of its data order.

    The order is an endless stream of epochs, each its own permutation of all examples, so it can be read from any
    position and a batch may span the end of an epoch.

    Args:
        population: examples in the data set.
        seed: of the order.
        start: position in the stream, that is, examples seen.
        count: how many.

    Returns:
        Indices, shape (count,).

    Example:
        >>> first = shuffled_indices(5, seed=0, start=0, count=5)
        >>> sorted(first.tolist())
        [0, 1, 2, 3, 4]
        >>> bool((shuffled_indices(5, seed=0, start=3, count=4)[:2] == first[3:]).all())
        True
    """
    check_count("population", population)
    check_count("seed", seed, least=0)
    check_count("start", start, least=0)
    check_count("count", count, least=0)
    parts = []
    while count > 0:
        epoch, offset = divmod(start, population)
        part = _permutation(population, seed, epoch)[offset : offset + count]
        parts.append(part)
        start += len(part)
        count -= len(part)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


# Runs that interleave in one process are at different epochs; more than a few permutations would be memory for nothing.
@lru_cache(maxsize=4)
def _permutation(population: int, seed: int, epoch: int) -> NDArray[np.int64]:
    permutation = np.random.default_rng((seed, epoch)).permutation(population)
    permutation.setflags(write=False)
    return permutation


def fetch(task: TrainingTask, indices: NDArray[np.int64]) -> Any:
    """The batch of a task's training examples `indices`, on the task's device."""
    return gather(task.data, indices, collate_fn=task.collate_fn, device=task.torch_device)


def gather(
    data: Any, indices: NDArray[np.int64], *, collate_fn: Callable[[list[Any]], Any] | None, device: torch.device
) -> Any:
    """The batch of the examples `indices` of `data`, on `device`.

    Args:
        data: a tuple of tensors (rows are selected at once), a map-style data set or a seeded stream.
        indices: shape (batch,).
        collate_fn: makes a batch of a list of examples; torch's default_collate if None.
        device: where the batch goes.

    Returns:
        A tuple of tensors, or whatever `collate_fn` gives.
    """
    if isinstance(data, tuple) and collate_fn is None:
        rows = torch.from_numpy(np.array(indices, dtype=np.int64))
        return tuple(part.index_select(0, rows.to(part.device)).to(device, non_blocking=True) for part in data)
    if isinstance(data, SeededStream):
        examples = data.examples(indices)
    elif isinstance(data, tuple):
        examples = [tuple(part[i] for part in data) for i in indices.tolist()]
    else:
        examples = [data[i] for i in indices.tolist()]
    return to_device((collate_fn or default_collate)(examples), device)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`: tuples, lists and mappings are followed, and `.to` used where it exists."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(part, device) for part in batch)
    if type(batch) is dict:
        return {key: to_device(part, device) for key, part in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    return batch


def evaluation_examples(task: TrainingTask) -> int:
    """Examples in one evaluation of a task's loss."""
    if isinstance(task.data, Rollouts):
        return task.data.evaluation_examples
    if task.eval_data is not None:
        return population(task.eval_data) or 0
    return min(EVALUATION_SAMPLE, available(task.data))


def evaluation_cost(task: TrainingTask) -> float:
    """What one evaluation of a task counts for, in examples: a third of one for every forward pass of one."""
    return evaluation_examples(task) * (1 + n_passes(task.metrics)) / 3.0


def evaluation_batches(task: TrainingTask) -> Iterator[Any]:
    """Batches of the examples on which a task's loss is evaluated, on its device, the same in every run.

    They are `eval_data`, or a fixed seeded sample of 1,024 training examples (all, if fewer) where there is none.
    """
    data = task.data if task.eval_data is None else task.eval_data
    indices = evaluation_indices(task)
    for begin in range(0, len(indices), EVALUATION_BATCH):
        chunk = indices[begin : begin + EVALUATION_BATCH]
        yield gather(data, chunk, collate_fn=task.collate_fn, device=task.torch_device)


def evaluation_indices(task: TrainingTask) -> NDArray[np.int64]:
    """Of these examples, in `eval_data` or else in the training data."""
    count = evaluation_examples(task)
    if task.eval_data is not None:
        return np.arange(count)
    return order_of(task.data, seed=EVALUATION_SEED, start=0, count=count)
