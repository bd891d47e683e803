"""What a torch DataLoader loads, as data of a task: batchopt chooses the batch size and the order itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import data as torch_data
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from batchopt.errors import TaskError

DRAWN_AT_ONCE = 4_096
"""Examples that a weighted sampler draws in one call."""


class Loaded(NamedTuple):
    """What a loader loads.

    Attributes:
        data: a tuple of tensors, a map-style data set, or a function that opens a stream of examples by a seed.
        collate_fn: of the loader; None for torch's own.
    """

    data: Any
    collate_fn: Callable[[list[Any]], Any] | None


def loaded_by(loader: DataLoader[Any], *, shuffles: bool = True) -> Loaded:
    """The data and the collate function of a loader.

    Its batch size, workers and drop_last are left out. A weighted sampler becomes a stream that draws by its weights, a
    sampler of a subset a subset.

    Args:
        loader: a DataLoader.
        shuffles: whether the examples are drawn from; what is evaluated on is read in order.

    Raises:
        TypeError: it is no DataLoader.
        TaskError: its data set is iterable, or a sampler of its own decides what is in a batch.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch.utils.data.DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise TaskError(
            "a DataLoader of an iterable data set cannot be read twice from one point: make the task with "
            "data=lambda seed: iter(...), a function that opens the examples in an order that the seed decides"
        )
    if type(loader.batch_sampler) is not torch_data.BatchSampler:
        has = "batch_size=None" if loader.batch_sampler is None else f"a {type(loader.batch_sampler).__name__}"
        raise TaskError(
            f"the batch size is chosen here, and the DataLoader has {has}, which decides what a batch is: give it "
            "batch_size=..., or make the task with data=loader.dataset"
        )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Loaded(_drawn(loader.dataset, loader.sampler, shuffles=shuffles, collate=collate), collate)


def _drawn(dataset: Dataset[Any], sampler: Any, *, shuffles: bool, collate: Any) -> Any:
    """A data set as its sampler has it."""
    if isinstance(sampler, torch_data.WeightedRandomSampler):
        if not shuffles:
            raise TaskError("what is evaluated on must be read in order: leave the weighted sampler out of eval_loader")
        return _weighted(dataset, sampler)
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        return torch_data.Subset(dataset, list(sampler.indices))
    known = (torch_data.RandomSampler, torch_data.SequentialSampler, torch_data.DistributedSampler)
    if type(sampler) not in known:
        raise TaskError(
            f"the order of the examples is chosen here, and the DataLoader has a {type(sampler).__name__}: leave it "
            "out, or make the task with data=lambda seed: iter(...), a function that opens the examples by a seed"
        )
    if type(dataset) is TensorDataset and collate is None:
        return dataset.tensors
    return dataset


def _weighted(dataset: Any, sampler: torch_data.WeightedRandomSampler) -> Callable[[int], Iterator[Any]]:
    """A function that opens a stream of examples, drawn by the sampler's weights."""
    weights = torch.as_tensor(sampler.weights, dtype=torch.float64).numpy()
    chances = weights / weights.sum()
    if not sampler.replacement:
        raise TaskError("a weighted sampler must draw with replacement: set replacement=True")

    def opened(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            for index in rng.choice(len(chances), size=DRAWN_AT_ONCE, p=chances):
                yield dataset[int(index)]

    return opened
