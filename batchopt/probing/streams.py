"""Endless data that can be opened again: a function from a seed to examples, in place of a data set.

An example has an index like that of a data set: its position in the stream of a seed. A run that goes on from a
snapshot, or branches off one, therefore sees what it would have seen, at the price of reading past what came before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from batchopt.errors import TaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENDLESS = 2**36
"""Positions in the stream of one seed: more examples than any run sees."""
SEEDS = 2**26
"""Seeds that are told apart; larger ones are taken modulo this, so that an index fits 64 bits."""
OPEN = 4
"""Streams that are kept open: runs and evaluations take turns."""


class SeededStream:
    """Examples by the seed of their stream and their position in it.

    Args:
        open_stream: gives the examples of a seed, the same ones in the same order every time. Where they end, it is
            opened again with another seed.
    """

    def __init__(self, open_stream: Callable[[int], Iterable[Any]]) -> None:
        self._open_stream = open_stream
        self._readers: OrderedDict[int, _Reader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: another process opens its own."""
        return {"_open_stream": self._open_stream, "_readers": OrderedDict()}

    def positions(self, *, seed: int, start: int, count: int) -> NDArray[np.int64]:
        """Indices of the examples `start` to `start + count` of a seed, (count,)."""
        return (seed % SEEDS) * ENDLESS + start + np.arange(count, dtype=np.int64)

    def examples(self, indices: NDArray[np.int64]) -> list[Any]:
        """The examples with these indices.

        Raises:
            TaskError: the stream of a seed holds no example, or is not opened anew.
        """
        return [self._reader(*divmod(int(index), ENDLESS)).example() for index in indices]

    def _reader(self, seed: int, position: int) -> _Reader:
        """Of a seed, put to a position."""
        reader = self._readers.pop(seed, None)
        if reader is None or reader.position > position:
            reader = _Reader(self._open_stream, seed)
        while len(self._readers) >= OPEN:
            self._readers.popitem(last=False)
        self._readers[seed] = reader
        reader.pass_over(position - reader.position)
        return reader


class _Reader:
    """Reads the stream of one seed forwards, pass after pass."""

    def __init__(self, open_stream: Callable[[int], Iterable[Any]], seed: int) -> None:
        self._open_stream, self._seed = open_stream, seed
        self.position, self._passes = 0, 0
        self._examples = self._opened()

    def example(self) -> Any:
        """The next one."""
        for _ in range(2):
            for example in self._examples:
                self.position += 1
                return example
            self._passes += 1
            self._examples = self._opened()
        raise TaskError(
            f"data as a function of a seed must open a new stream of examples every time, and with the seed "
            f"{self._seed} it gave none: return a new iterator, not one that was read before"
        )

    def pass_over(self, count: int) -> None:
        """Read that many."""
        for _ in range(count):
            self.example()

    def _opened(self) -> Iterator[Any]:
        # Another pass is the stream of another seed.
        if not self._passes:
            return iter(self._open_stream(self._seed))
        seed = np.random.SeedSequence([self._seed, self._passes]).generate_state(1)[0]
        return iter(self._open_stream(int(seed) % SEEDS))
