"""A data loader whose batch size follows a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from batchopt._checks import check_count
from batchopt.probing.data import check_data, population, shuffled_indices
from batchopt.schedules.schedule import Schedule


class ScheduledBatchSampler(Sampler[list[int]]):
    """Batches of indices whose sizes follow a schedule at exact numbers of examples.

    One pass over it is the whole run, over as many epochs as the schedule's examples take; a batch may span the end of an
    epoch. It is a batch sampler, so that batches fetched ahead by workers have the size of their own place in the run.
    `shuffled_indices` decides the order: a `TrainingRun` of the same seed sees the same examples.

    Args:
        population: examples in the data set.
        schedule: batch sizes over examples seen.
        seed: of the order.
        shuffle: a fresh permutation every epoch; else the data set's own order.
        drop_last: leave out the last batch where the end of the run cuts it short.
        start_examples: examples that were seen already, to go on in mid-run. Count them in the loop that trains: the
            sampler itself is ahead of it by what workers fetch in advance.

    Example:
        >>> from batchopt.schedules.schedule import Schedule, Segment
        >>> schedule = Schedule((Segment(0, 2), Segment(4, 3)), examples=10)
        >>> [len(batch) for batch in ScheduledBatchSampler(5, schedule)]
        [2, 2, 3, 3]
    """

    def __init__(
        self,
        population: int,
        schedule: Schedule,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        start_examples: int = 0,
    ) -> None:
        check_count("population", population)
        check_count("start_examples", start_examples, least=0)
        if start_examples > schedule.examples:
            raise ValueError(
                f"start_examples must be at most the schedule's {schedule.examples} examples, got {start_examples}"
            )
        self._population, self._schedule = population, schedule
        self._seed, self._shuffle, self._drop_last = seed, shuffle, drop_last
        self._start = start_examples

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `start_examples` to the end of the run."""
        for seen, size in self._batches():
            if self._shuffle:
                indices = shuffled_indices(self._population, seed=self._seed, start=seen, count=size)
            else:
                indices = np.arange(seen, seen + size) % self._population
            yield indices.tolist()

    def __len__(self) -> int:
        """Steps from `start_examples` to the end of the run."""
        return sum(1 for _ in self._batches())

    def state_dict(self) -> dict[str, int]:
        """What a resumed sampler needs, beside the examples that the training loop has counted."""
        return {"start_examples": self._start, "seed": self._seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state; set its "start_examples" to the examples that the training loop has seen."""
        check_count("start_examples", state["start_examples"], least=0)
        self._start, self._seed = state["start_examples"], state["seed"]

    def _batches(self) -> Iterator[tuple[int, int]]:
        for seen, size in self._schedule.batches(self._start):
            if self._drop_last and size < self._schedule(seen):
                return
            yield seen, size


def scheduled_loader(
    dataset: Dataset[Any] | tuple[Tensor, ...],
    schedule: Schedule,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    start_examples: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A DataLoader whose one pass is the whole run, each batch of the size that the schedule says.

    Args:
        dataset: map-style data set, or a tuple of tensors.
        schedule: batch sizes over examples seen.
        seed: of the order.
        shuffle: as for `ScheduledBatchSampler`.
        drop_last: as for `ScheduledBatchSampler`.
        start_examples: as for `ScheduledBatchSampler`.
        collate_fn: makes a batch of a list of examples.
        **options: further arguments of `torch.utils.data.DataLoader` (num_workers, pin_memory, ...).

    Raises:
        TypeError: the data set is a stream: it has no index to draw from.
    """
    check_data("dataset", dataset, least=1, streams=False)
    data: Any = TensorDataset(*dataset) if isinstance(dataset, tuple) else dataset
    sampler = ScheduledBatchSampler(
        population(data) or 0,
        schedule,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        start_examples=start_examples,
    )
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate_fn, **options)
