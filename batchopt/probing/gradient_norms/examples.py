"""The examples inside `torch.vmap`: from the tensor of one example to the tensor of all of them, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter


class CannotVectoriseError(Exception):
    """A model does what can't be followed for all examples at once; the message says what."""


class Examples:
    """The level of `torch.vmap` at which the examples of a batch are; made inside of it.

    Args:
        count: examples in the batch.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._level: int = functorch.maybe_current_level() or 0

    def all_of(self, tensor: Tensor) -> Tensor:
        """The values of all examples, (examples, ...); one that is shared by them is repeated (without a copy)."""
        inner, dimension = functorch._unwrap_batched(tensor, self._level)
        return inner.expand(self.count, *inner.shape) if dimension is None else inner.movedim(dimension, 0)

    def one_of(self, tensor: Tensor) -> Tensor:
        """The other way round: (examples, ...) as the value of one example."""
        return functorch._add_batch_dim(tensor, 0, self._level)

    def differ_in(self, tensor: Tensor) -> bool:
        """Whether every example has a value of its own."""
        return functorch._unwrap_batched(tensor, self._level)[1] is not None

    def are_apart(self) -> bool:
        """Whether the code that runs sees one example: not inside of `together`, nor of another transform."""
        return functorch.maybe_current_level() == self._level

    def is_plain_in(self, tensor: Tensor) -> bool:
        """Whether no other transform of `torch.func` than this one acts on a tensor, such as one of the model's own."""
        return functorch.maybe_get_level(tensor) in (None, -1, -2, self._level)

    def inner(self, tensor: Tensor) -> Tensor:
        """What holds the values of a tensor: of all examples, or the tensor itself where they share it."""
        return functorch._unwrap_batched(tensor, self._level)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, functions act on tensors of all examples, and autograd sees them."""
        interpreter = retrieve_current_functorch_interpreter()
        if interpreter.level() != self._level:
            raise CannotVectoriseError("a layer runs inside a torch.func transform of the model's own")
        with interpreter.lower():
            yield
