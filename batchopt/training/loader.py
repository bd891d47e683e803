"""A data loader whose batch size follows a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, default_collate

from batchopt._checks import check_count
from batchopt.probing.data import check_data, population, shuffled_indices
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.shares import Share, check_ranks, check_start, weights_of, width_of
from batchopt.training.stream import ScheduledStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

_OURS = ("batch_size", "batch_sampler", "sampler")


class ScheduledBatchSampler(Sampler[list[int]]):
    """Batches of indices whose sizes follow a schedule at exact numbers of examples.

    One pass over it is the whole run, over as many epochs as the schedule's examples take; a batch may span the end of
    an epoch. It is a batch sampler, so that batches fetched ahead by workers have the size of their own place in the
    run. `shuffled_indices` decides the order: a `TrainingRun` of the same seed sees the same examples.

    To go on in mid-run, give `start_examples`, or load what `state_dict` gave. `state_dict` counts what the sampler has
    yielded; a DataLoader with workers fetches ahead of the loop, and then only the loop's own count is right.

    Among several ranks the schedule's batches are global, and each rank yields its equal `Share` of every one. Where
    the end of the run leaves a batch that does not divide, shares are padded, and say so. Counts are global too, so a
    run may go on with another number of ranks.

    Args:
        population: examples in the data set.
        schedule: batch sizes over examples seen, of all ranks together; one that is corrected on the way is followed as
            it is when a batch is drawn.
        seed: of the order, the same on all ranks.
        shuffle: a fresh permutation every epoch; else the data set's own order.
        drop_last: leave out the last batch where the end of the run cuts it short.
        start_examples: examples that the training loop has seen already, on all ranks together.
        rank: which share to yield, from 0.
        ranks: number of data-parallel ranks.

    Raises:
        TypeError: the schedule is something else: a plan, or the name of a file.
        ValueError: an empty data set, a start beyond the end of the run, or a batch size that does not divide into the
            ranks.

    Example:
        >>> from batchopt.schedules.schedule import Schedule, Segment
        >>> schedule = Schedule((Segment(0, 2), Segment(4, 3)), examples=10)
        >>> [len(batch) for batch in ScheduledBatchSampler(5, schedule)]
        [2, 2, 3, 3]
    """

    def __init__(
        self,
        population: int,
        schedule: Schedule | AdaptiveSchedule,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        start_examples: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        check_count("population", population)
        check_schedule(schedule, AdaptiveSchedule)
        check_count("seed", seed, least=0)
        self._population, self._schedule = population, schedule
        self._seed, self._shuffle, self._drop_last = seed, shuffle, drop_last
        check_start(schedule, start_examples)
        self._start = self._seen = start_examples
        check_ranks(schedule, rank, ranks)
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `start_examples` to the end of the run, or this rank's shares of them."""
        for seen, size in self._batches():
            if self._shuffle:
                indices = shuffled_indices(self._population, seed=self._seed, start=seen, count=size)
            else:
                indices = np.arange(seen, seen + size) % self._population
            # Before the batch is handed over: a state that is taken while the loop trains on it counts it.
            self._seen = seen + size
            if isinstance(self._schedule, AdaptiveSchedule):
                self._schedule.hand_out(self._seen)
            yield self._share(indices)

    def __len__(self) -> int:
        """Steps from `start_examples` to the end of the run."""
        if self._start == 0 and not self._drop_last:
            return self._schedule.steps
        return sum(1 for _ in self._batches())

    def _share(self, indices: NDArray[np.int64]) -> Share:
        own = indices[self._rank :: self._ranks].tolist()
        padding = [int(indices[0])] * (width_of(len(indices), self._ranks) - len(own))
        return Share([*own, *padding], of=len(indices), examples=len(own))

    def state_dict(self) -> dict[str, int]:
        """Where the current pass is: examples yielded, with the seed and the population that they belong to."""
        return {"examples_seen": self._seen, "seed": self._seed, "population": self._population}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass go on from a state. With workers, first set its "examples_seen" to the loop's own count.

        Raises:
            ValueError: the state lacks a key, or belongs to another data set, another seed or a longer run.
        """
        missing = {"examples_seen", "seed", "population"} - state.keys()
        if missing:
            raise ValueError(f"the state must be what state_dict() gave, and lacks {', '.join(sorted(missing))}")
        if state["population"] != self._population:
            raise ValueError(
                f"the state must belong to a data set of {self._population} examples, got one of {state['population']}"
            )
        if state["seed"] != self._seed:
            raise ValueError(
                f"the state must be of the same order, got one of seed {state['seed']} for a sampler of seed "
                f"{self._seed}: examples would be repeated and lost"
            )
        check_start(self._schedule, state["examples_seen"])
        self._start = self._seen = state["examples_seen"]

    def _batches(self) -> Iterator[tuple[int, int]]:
        for seen, size in self._schedule.batches(self._start):
            if self._drop_last and size < self._schedule(seen):
                return
            yield seen, size


def scheduled_loader(
    dataset: Dataset[Any] | tuple[Tensor, ...],
    schedule: Schedule | AdaptiveSchedule,
    *,
    seed: int = 0,
    shuffle: bool | None = None,
    drop_last: bool = False,
    start_examples: int = 0,
    rank: int = 0,
    ranks: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    **loader_options: Any,
) -> DataLoader[Any]:
    """A DataLoader whose one pass is the whole run, each batch of the size that the schedule says.

    A tuple of tensors gives tuples of tensors, rows selected at once, unless `collate_fn` asks for single examples.
    Its `batch_sampler` is a `ScheduledBatchSampler`.

    Where `ranks` is given it gives (batch, weights): this rank's share of every global batch, and what each example
    counts. Back-propagate `(weights * losses).sum()`: the mean of that over the ranks, which DistributedDataParallel
    takes, is the mean loss of the global batch, also of a last one that does not divide.

    An iterable data set of single examples is read in its own order, by the workers, and batched by the schedule in
    this process; it is read again, after its `set_epoch` if it has one, when it ends before the run does. To go on in
    mid-run the examples before are read and passed over. Among several ranks each must read a part of its own.

    Args:
        dataset: map-style or iterable data set, or a tuple of tensors of one length.
        schedule: batch sizes over examples seen; an `AdaptiveSchedule` only for data that are not iterable.
        seed: of the order.
        shuffle: as for `ScheduledBatchSampler`, where True is what None stands for; not for an iterable data set.
        drop_last: as for `ScheduledBatchSampler`.
        start_examples: as for `ScheduledBatchSampler`.
        rank: as for `ScheduledBatchSampler`.
        ranks: as for `ScheduledBatchSampler`; also one rank then gives (batch, weights).
        collate_fn: makes a batch of a list of examples; torch's default_collate if None.
        num_workers: processes that fetch ahead. The switches of batch size do not lag behind them.
        **loader_options: further arguments of `torch.utils.data.DataLoader` (pin_memory, ...).

    Raises:
        TypeError: the data set or the schedule has another form, or an option would override the schedule or its
            order.
        TaskError: the data set is empty, or its tensors differ in length.

    Example:
        >>> from batchopt.schedules.schedule import Schedule, Segment
        >>> schedule = Schedule((Segment(0, 2), Segment(4, 4)), examples=12)
        >>> [x.tolist() for x, in scheduled_loader((torch.arange(5),), schedule, shuffle=False)]
        [[0, 1], [2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]
    """
    for name in _OURS:
        if name in loader_options:
            raise TypeError(f"{name} must be left out: the schedule decides which examples make a batch")
    if isinstance(dataset, IterableDataset):
        if isinstance(schedule, AdaptiveSchedule):
            raise TypeError("an AdaptiveSchedule needs a map-style data set: an iterable one is batched beforehand")
        if shuffle:
            raise TypeError("shuffle must be left out for an iterable data set, which has an order of its own")
        stream = ScheduledStream(
            dataset, schedule, drop_last=drop_last, start_examples=start_examples, rank=rank, ranks=ranks,
            collate_fn=collate_fn, num_workers=num_workers, **loader_options,
        )  # fmt: skip
        return DataLoader(stream, batch_size=None, collate_fn=_unchanged)
    check_data("dataset", dataset, least=1, streams=False)
    sampler = ScheduledBatchSampler(
        population(dataset) or 0,
        schedule,
        seed=seed,
        shuffle=shuffle is None or shuffle,
        drop_last=drop_last,
        start_examples=start_examples,
        rank=rank,
        ranks=1 if ranks is None else ranks,
    )
    data: Any = dataset
    if isinstance(dataset, tuple):
        data, collate_fn = (_Rows(dataset), _unchanged) if collate_fn is None else (TensorDataset(*dataset), collate_fn)
    collate: Callable[[Any], Any] | None = collate_fn
    if ranks is not None:
        data, collate = _Shares(data, ranks), _WithWeights(collate or default_collate)
    return DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers, **loader_options)


def equal_share_loader(
    dataset: Dataset[Any] | tuple[Tensor, ...],
    schedule: Schedule,
    *,
    rank: int,
    ranks: int,
    **options: Any,
) -> DataLoader[Any]:
    """A rank's equal share of every batch of a schedule, for a loop that takes the mean over the ranks.

    Batches come without weights, so a last one that does not divide into the ranks is left out.

    Args:
        dataset: as for `scheduled_loader`, not iterable.
        schedule: likewise.
        rank: likewise.
        ranks: likewise.
        options: of `ScheduledBatchSampler` (seed, shuffle) and of `torch.utils.data.DataLoader`.
    """
    check_data("dataset", dataset, least=1, streams=False)
    *_, (_, last) = schedule.batches()
    order = {name: options.pop(name) for name in ("seed", "shuffle") if name in options}
    sampler = ScheduledBatchSampler(
        population(dataset) or 0, schedule, drop_last=last % ranks > 0, rank=rank, ranks=ranks, **order
    )
    data: Any = TensorDataset(*dataset) if isinstance(dataset, tuple) else dataset
    return DataLoader(data, batch_sampler=sampler, **options)


class _Shares(Dataset[Any]):
    """A data set that is asked for shares, and gives examples and weights."""

    def __init__(self, dataset: Any, ranks: int) -> None:
        self._dataset, self._ranks = dataset, ranks

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, share: Share) -> tuple[Any, Tensor]:
        fetch = getattr(self._dataset, "__getitems__", None)
        examples = fetch(share) if fetch is not None else [self._dataset[index] for index in share]
        return examples, weights_of(len(share), share.examples, share.of, self._ranks)


class _WithWeights:
    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, fetched: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        examples, weights = fetched
        return self._collate_fn(examples), weights


class _Rows(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors of one length, fetched a batch at a time: one by one they would cost more than a small step."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[index] for part in self._tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(indices, dtype=torch.int64)
        return tuple(part.index_select(0, rows.to(part.device)) for part in self._tensors)


def _unchanged(batch: T) -> T:
    return batch
