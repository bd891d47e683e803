"""Where the units of a measurement come from: a data set, without replacement, a stream, or the model's own acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import nn

from batchopt.errors import BudgetError, TaskError
from batchopt.probing.data import available, gather, is_stream, order_of, population, to_device
from batchopt.probing.losses import Batch, rows_of
from batchopt.probing.reading import GradientReader, rows
from batchopt.probing.rollouts import Rollouts, collect
from batchopt.probing.stopping import FIRST_LOOK

UNSEEN = 15_485_863
"""From the seed of a run to that of a stream that it has not seen: a prime, far from the next seeds."""
FEWEST_UNITS = 3
"""Fewer gradients show too little of how they vary."""

Stopped = Literal["width", "budget", "population"]


class Source(Protocol):
    """Where units come from."""

    population: int | None
    first_quota: int

    @property
    def end(self) -> Stopped:
        """Why there are no more units."""

    def take(self, units: int) -> tuple[Batch, int] | None:
        """A batch of at most `units` units and its number of examples; None where there are no more."""


class _Drawn:
    """Units of a data set, in a seeded order without replacement, or of a seeded stream."""

    def __init__(self, data: Any, drawn: int, affordable: int, *, seed: int, fetch: Callable[[Any], Batch]) -> None:
        size = available(data)
        if size < FEWEST_UNITS * drawn:
            raise TaskError(
                f"data must hold at least {FEWEST_UNITS * drawn} examples ({FEWEST_UNITS} gradients, {drawn} examples "
                f"for each), got {size}"
            )
        self.population: int | None = population(data)
        # Of a stream there are always examples that the run of this seed has not been trained on.
        self._data, self._seed = data, seed if self.population is not None else seed + UNSEEN
        self._drawn = drawn
        self._fetch = fetch
        self._position = 0
        self._units = min(affordable, size // drawn)
        self.end: Stopped = "budget" if affordable < size // drawn else "population"
        self.first_quota = max(1, min(self._units, FIRST_LOOK // drawn) // 16)

    def take(self, units: int) -> tuple[Batch, int] | None:
        count = min(units, self._units) * self._drawn
        if count == 0:
            return None
        chosen = order_of(self._data, seed=self._seed, start=self._position, count=count)
        self._position += count
        self._units -= count // self._drawn
        return self._fetch(chosen), count


class _Streamed:
    """Units of a stream's batches, in the order in which they come."""

    first_quota = 1

    def __init__(self, data: Iterable[Batch], drawn: int, affordable: int, *, device: torch.device) -> None:
        self.population: int | None = None
        self._batches: Iterator[Batch] = iter(data)
        self._drawn = drawn
        self._device = device
        self._units = affordable
        self._held: tuple[Batch, int] | None = None
        self.end: Stopped = "budget"

    def take(self, units: int) -> tuple[Batch, int] | None:
        wanted = min(units, self._units) * self._drawn
        if wanted == 0:
            return None
        if self._held is None:
            batch = next(self._batches, None)
            if batch is None:
                self.end = "population"
                return None
            self._held = to_device(batch, self._device), rows_of(batch)
        batch, size = self._held
        if size < self._drawn:
            raise TaskError(f"a stream's batches must hold the {self._drawn} examples of a unit at least, got {size}")
        count = min(wanted, size - size % self._drawn)
        left = size - count
        self._held = (rows(batch, size, count, size), left) if left >= self._drawn else None
        self._units -= count // self._drawn
        return rows(batch, size, 0, count), count


class _Collected:
    """Units of what the model does at its present weights, each example in an environment of its own."""

    def __init__(
        self,
        data: Rollouts,
        model: nn.Module,
        drawn: int,
        affordable: int,
        *,
        seed: int,
        device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:
        self.population: int | None = None
        self.end: Stopped = "budget"
        self.first_quota = max(1, min(affordable, FIRST_LOOK // drawn) // 16)
        self._rollouts, self._model, self._place = data, model, (device, autocast)
        self._key = seed, UNSEEN
        self._taken, self._drawn, self._units = 0, drawn, affordable

    def take(self, units: int) -> tuple[Batch, int] | None:
        count = min(units, self._units) * self._drawn
        if count == 0:
            return None
        environments = self._rollouts.open(*self._key, self._taken)
        self._taken += count
        self._units -= count // self._drawn
        return collect(environments, self._model, count, *self._place).batch, count


def source_of(
    model: nn.Module,
    data: Any,
    reader: GradientReader,
    max_examples: int,
    *,
    seed: int,
    collate_fn: Callable[[list[Any]], Batch] | None,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Source:
    """Where a reader's units come from.

    Args:
        model: acts, where the data are roll-outs.
        data: a tuple of tensors, a map-style data set, an iterable of batches, or roll-outs.
        reader: of the units.
        max_examples: examples' worth of gradients that they may cost.
        seed: of the order of a data set's examples.
        collate_fn: makes a batch of a list of examples.
        device: where batches go.
        autocast: dtype of mixed precision in which a model acts, or None.

    Raises:
        BudgetError: the budget does not hold three units.
        TaskError: the data set does not.
    """
    least = FEWEST_UNITS * reader.cost
    if max_examples < least:
        raise BudgetError(
            f"max_examples must be at least {least} ({FEWEST_UNITS} gradients of {reader.cost} examples' cost each), "
            f"got {max_examples}"
        )
    affordable = max_examples // reader.cost
    if isinstance(data, Rollouts):
        return _Collected(data, model, reader.drawn, affordable, seed=seed, device=device, autocast=autocast)
    if is_stream(data):
        return _Streamed(data, reader.drawn, affordable, device=device)
    return _Drawn(
        data,
        reader.drawn,
        affordable,
        seed=seed,
        fetch=lambda indices: gather(data, indices, collate_fn=collate_fn, device=device),
    )
