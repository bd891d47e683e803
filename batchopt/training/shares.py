"""How the ranks of a data-parallel training share a global batch: equal shares, and weights where they cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from batchopt._checks import check_count
from batchopt.schedules.schedule import Schedule
from batchopt.training.adaptive import AdaptiveSchedule


class Share(list[int]):
    """One rank's indices of a global batch, as many as every other rank's.

    Attributes:
        of: examples of the global batch.
        examples: how many of the indices count; those after them are padding.
    """

    def __init__(self, indices: Iterable[int], of: int, examples: int) -> None:
        super().__init__(indices)
        self.of, self.examples = of, examples

    def __reduce__(self) -> tuple[Any, ...]:
        return Share, (list(self), self.of, self.examples)


def check_ranks(schedule: Schedule | AdaptiveSchedule, rank: int, ranks: int) -> None:
    """Raise ValueError where there is no such rank, or where the schedule's batches do not divide."""
    check_count("ranks", ranks)
    check_count("rank", rank, least=0)
    if rank >= ranks:
        raise ValueError(f"rank must be less than ranks, got {rank} of {ranks}")
    for segment in schedule.segments:
        if segment.batch_size % ranks:
            raise ValueError(
                f"every batch size must divide into {ranks} ranks, got {segment.batch_size}: "
                f"plan with multiple_of={ranks}"
            )


def check_start(schedule: Schedule | AdaptiveSchedule, start_examples: int) -> None:
    """Raise where a run cannot go on from a number of examples."""
    check_count("start_examples", start_examples, least=0)
    if start_examples > schedule.examples:
        raise ValueError(f"start_examples must be at most the schedule's {schedule.examples}, got {start_examples}")


def width_of(examples: int, ranks: int) -> int:
    """Length of every rank's share of a global batch, padding included."""
    return -(-examples // ranks)


def weights_of(width: int, examples: int, of: int, ranks: int) -> Tensor:
    """What each example of a share counts, (width,): zero beyond `examples`.

    The mean over ranks of sum(weights * losses) is the mean loss of the global batch.
    """
    weights = torch.full((width,), ranks / of)
    weights[examples:] = 0.0
    return weights
