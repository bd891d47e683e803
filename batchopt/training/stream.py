"""An iterable data set batched by a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from batchopt.errors import TaskError
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.shares import check_ranks, check_start, weights_of, width_of

READ_AHEAD = 64
"""Examples that a worker hands over at a time."""


class ScheduledStream(IterableDataset[Any]):
    """Batches of an iterable data set whose sizes follow a schedule: what `scheduled_loader` makes of one.

    Args: as for `scheduled_loader`.

    Raises:
        TypeError: the schedule is something else: a plan, or the name of a file.
        ValueError: a start beyond the end of the run, or a batch size that does not divide into the ranks.
        TaskError: in iteration: the data set gives no example.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        schedule: Schedule,
        *,
        drop_last: bool = False,
        start_examples: int = 0,
        rank: int = 0,
        ranks: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        **loader_options: Any,
    ) -> None:
        check_schedule(schedule)
        self._rank, self._ranks, self._is_shared = rank, 1 if ranks is None else ranks, ranks is not None
        check_ranks(schedule, rank, self._ranks)
        check_start(schedule, start_examples)
        self._dataset, self._schedule = dataset, schedule
        self._sizes = list(schedule.batches(start_examples))
        if drop_last and self._sizes and self._sizes[-1][1] < schedule(self._sizes[-1][0]):
            self._sizes.pop()
        self._collate = collate_fn or default_collate
        self._options = {"num_workers": num_workers, **loader_options}

    def __len__(self) -> int:
        """Steps from `start_examples` to the end of the run."""
        return len(self._sizes)

    def __iter__(self) -> Iterator[Any]:
        """The batches from `start_examples` to the end of the run, or this rank's shares of them."""
        examples = self._examples()
        before = self._sizes[0][0] if self._sizes else 0
        for _ in islice(examples, width_of(before, self._ranks)):
            pass
        for _, size in self._sizes:
            width = width_of(size, self._ranks)
            batch = self._collate(list(islice(examples, width)))
            own = len(range(self._rank, size, self._ranks))
            yield (batch, weights_of(width, own, size, self._ranks)) if self._is_shared else batch

    def _examples(self) -> Iterator[Any]:
        epoch = 0
        while True:
            set_epoch = getattr(self._dataset, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
            count = 0
            for chunk in DataLoader(self._dataset, batch_size=READ_AHEAD, collate_fn=list, **self._options):
                count += len(chunk)
                yield from chunk
            if count == 0:
                raise TaskError("the data set must give at least one example, and gave none")
            epoch += 1
