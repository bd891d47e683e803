"""Measuring with several processes: each reads a share, and all end up with the same sums.

A process that fails says so before the sums are exchanged, so that none waits for what will not come; but for a model
that is sharded, where already a forward pass takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

from batchopt.errors import TaskError
from batchopt.probing.gradient_norms.uses import wide
from batchopt.probing.losses import Batch
from batchopt.probing.moments import GradientSums
from batchopt.probing.reading import GradientReader, rows

Made = TypeVar("Made")
Drawn = tuple[Batch, int]
"""A batch and its number of examples."""
PATIENCE = timedelta(days=7)
"""How long processes wait for one that works alone."""
_alone: list[None] = []
"""As many as there are blocks in which this process works alone."""


@dataclass(frozen=True, slots=True)
class DefaultGroup:
    """The processes of torch's default group.

    Attributes:
        rank: this one's number.
        count: how many there are.
        device: where the group's backend wants tensors.
    """

    rank: int
    count: int
    device: torch.device

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        there = values.to(self.device)
        torch.distributed.all_reduce(there)
        return values if there is values else values.copy_(there)

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        there = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX)
        return int(there)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    def any_says(self, said: bool) -> bool:
        """Whether any process does: what clocks decide must be decided alike."""
        return self.largest(int(said)) > 0

    def first_failure(self, message: str | None) -> str:
        """Number and message of the first process that failed."""
        messages: list[str | None] = [None] * self.count
        torch.distributed.all_gather_object(messages, message)
        return next(f"process {rank} failed: {text}" for rank, text in enumerate(messages) if text is not None)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        for tensor in tensors:
            there = tensor.detach().to(self.device)
            torch.distributed.broadcast(there, src=0)
            tensor.data.copy_(there)

    def gather(self, value: object) -> list[Any]:
        """The values of all processes, in their order."""
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, settings: Mapping[str, object]) -> None:
        """Raise TaskError where the processes' settings differ, and say which.

        Raises:
            TaskError: a setting differs.
        """
        everyone: list[dict[str, object]] = [{} for _ in range(self.count)]
        torch.distributed.all_gather_object(everyone, dict(settings))
        for name in settings:
            values = [each[name] for each in everyone]
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise TaskError(
                        f"all processes must be in the same training, and process {rank} has another {name} than "
                        f"process 0: {value!r}, not {values[0]!r}"
                    )

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, which can be pickled, in all of them; the others wait, however long that takes.

        Raises:
            TaskError: in the others: the first failed.
        """
        patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                with alone():
                    told[0] = make()
            except Exception as error:  # held back until the others know
                failure, told[1] = error, f"{type(error).__name__}: {error}"
        torch.distributed.broadcast_object_list(told, src=0, group=patient)
        torch.distributed.destroy_process_group(patient)
        if failure is not None:
            raise failure
        if told[0] is None:
            raise TaskError(f"process 0 failed: {told[1]}")
        made: Made = told[0]
        return made


@contextmanager
def alone() -> Iterator[None]:
    """Work inside the block as if there were no other processes, in all threads of this one."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def process_group(device: torch.device, *, of_one: bool = False) -> DefaultGroup | None:
    """The default process group; None where it is not initialised, has one member, or is left alone.

    Args:
        device: of the model; a backend that moves CUDA tensors only is given this one.
        of_one: whether a group of one member is given too: a model may be sharded over that.
    """
    distributed = torch.distributed
    if _alone or not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() == 1 and not of_one:
        return None
    exchange = device if distributed.get_backend() == "nccl" else torch.device("cpu")
    return DefaultGroup(distributed.get_rank(), distributed.get_world_size(), exchange)


class Reads(Protocol):
    """Reads drawn batches, alone or with others."""

    @property
    def reader(self) -> GradientReader:
        """Of this process's share."""

    def read(self, draw: Callable[[], Drawn | None]) -> GradientSums | None:
        """Sums over the units of what is drawn; None where there is no more."""

    def agreed(self, said: bool) -> bool:
        """Whether all processes say so."""


@dataclass(frozen=True, slots=True)
class ReadsAlone:
    """Reads in one process."""

    reader: GradientReader

    def read(self, draw: Callable[[], Drawn | None]) -> GradientSums | None:
        """Sums over the units of what is drawn; None where there is no more."""
        drawn = draw()
        return None if drawn is None else self.reader.read(*drawn)

    def agreed(self, said: bool) -> bool:
        """The same."""
        return said


@dataclass(frozen=True, slots=True)
class ReadsTogether:
    """Reads with the other processes of a group.

    Attributes:
        reader: of this process's share.
        group: the processes.
        split: whether all processes draw the same batch, of which each reads a share; else each reads its own.
        nothing: sum of no gradients, (parameters,).
    """

    reader: GradientReader
    group: DefaultGroup
    split: bool
    nothing: Tensor

    def read(self, draw: Callable[[], Drawn | None]) -> GradientSums | None:
        """Sums over the units of all processes; None where none has drawn any.

        Raises:
            TaskError: another process failed; where it is this one, what it raised.
        """
        sums: GradientSums | None = None
        failure: Exception | None = None
        try:
            sums = self._own(draw())
        except Exception as error:  # held back until the others know
            failure = error
        numbers = [float(failure is not None), *_numbers(sums)]
        failures, weighted, curved, *rest = self.group.add_up(torch.tensor(numbers, dtype=torch.float64)).tolist()
        if failures:
            self._raise(failure)
        units, weights, weights_squared, squares = rest
        if units == 0:
            return None
        total_squared = self._total(None if sums is None else sums.total_squared, sums) if weighted else None
        total = self._total(None if sums is None else sums.total, sums)
        products = self._total(None if sums is None else sums.curved, None) if curved else None
        return GradientSums(round(units), weights, weights_squared, total, total_squared, squares, products)

    def agreed(self, said: bool) -> bool:
        """Whether all processes say so."""
        return self.group.add_up(torch.tensor(float(said))).item() == self.group.count

    def _own(self, drawn: Drawn | None) -> GradientSums | None:
        if drawn is None:
            return None
        batch, count = drawn
        if not self.split:
            return self.reader.read(batch, count)
        size = self.reader.drawn
        begin, end = (units * size for units in share(count // size, rank=self.group.rank, count=self.group.count))
        return self.reader.read(rows(batch, count, begin, end), end - begin) if end > begin else None

    def _total(self, total: Tensor | None, sums: GradientSums | None) -> Tensor:
        """Sum over all processes; where all weights of one are 1, both of its totals are the same."""
        if total is None:
            total = self.nothing if sums is None else sums.total
        return self.group.add_up(total.clone())

    def _raise(self, failure: Exception | None) -> None:
        message = self.group.first_failure(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        raise TaskError(f"the noise scale could not be measured, since {message}")


def reads(reader: GradientReader, parameters: Sequence[Tensor], group: DefaultGroup | None, *, split: bool) -> Reads:
    """Reads with the other processes of a group; alone where there is none.

    Args:
        reader: of batches in this process.
        parameters: those that get a gradient.
        group: the processes.
        split: whether all processes draw the same batches; else each draws its own.
    """
    if group is None:
        return ReadsAlone(reader)
    nothing = wide(parameters[0].detach()).new_zeros(sum(parameter.numel() for parameter in parameters))
    return ReadsTogether(reader, group, split, nothing)


def _numbers(sums: GradientSums | None) -> list[float]:
    if sums is None:
        return [0.0] * 6
    flags = [float(sums.total_squared is not None), float(sums.curved is not None)]
    return [*flags, sums.units, sums.weights, sums.weights_squared, sums.squares]


def share(units: int, *, rank: int, count: int) -> tuple[int, int]:
    """The units that a process reads, from the first to before the last: equal shares, the first ones one larger.

    Example:
        >>> [share(5, rank=rank, count=3) for rank in range(3)]
        [(0, 2), (2, 4), (4, 5)]
    """
    each, more = divmod(units, count)
    begin = rank * each + min(rank, more)
    return begin, begin + each + (rank < more)
