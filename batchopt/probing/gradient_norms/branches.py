"""Control flow that depends on data: which way every example of a batch goes.

`if mask.all():`, `for _ in range(int(length)):` and the like read a value of the model's tensors. Where all examples
have the same value, that is what the program gets. Where they differ, `BranchesDivergeError` says which of them have a
value in common, so that those can be read in a pass of their own, where they do what each of them would do alone.

That holds if an example's value is the same in the second pass as in the first: it must not depend on random numbers,
or examples would be read more often the more of them draw alike. Under `torch.vmap` every random number is a value of
its own for every example, so a tensor that all examples share holds none. Of the others this is known of the batch's
own tensors, and of what functions that draw no number make of such tensors. Anything else is not settled, unless no
number at all was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from batchopt.probing.gradient_norms.examples import CannotVectoriseError, Examples

READS = frozenset(
    (
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.__complex__,
        Tensor.__contains__,
        Tensor.item,
        Tensor.tolist,
        Tensor.is_nonzero,
        Tensor.equal,
        Tensor.allclose,
        torch.is_nonzero,
        torch.equal,
        torch.allclose,
    )
)
"""Functions that make a value of the program of a tensor."""
_DEVICES = ("cpu", "cuda")
"""Whose random generators are known."""


class BranchesDivergeError(Exception):
    """The examples of a batch go different ways.

    Args:
        groups: positions of the examples that have a value in common, one list for each value.
    """

    def __init__(self, groups: list[list[int]]) -> None:
        super().__init__(f"control flow that depends on data takes {len(groups)} ways")
        self.groups = groups


class Branches:
    """What the program reads of the examples' tensors in one forward pass.

    Args:
        examples: the examples of the `torch.vmap` inside which this is made.
        given: tensors of the batch, as one example has them.
        devices: of the model.
    """

    def __init__(self, examples: Examples, given: Iterable[Tensor], devices: Iterable[torch.device]) -> None:
        self._examples = examples
        self._settled = WeakIdKeyDictionary()
        for tensor in given:
            self._settle(tensor)
        kinds = set(devices)
        self._known = all(device.type in _DEVICES for device in kinds)
        self._generators = [torch.default_generator]
        self._generators += [torch.cuda.default_generators[d.index or 0] for d in kinds if d.type == "cuda"]
        self._others_drew = False
        # Not the error itself: its traceback would keep the activations of the pass.
        self._failed: Callable[[], Exception] | None = None
        self._begin = self._drawn()
        self._host_begin = _host_randomness()

    def before(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
        """States of the generators before a function whose output will be settled; None where it will not be."""
        differ = False
        for value in _flat((*args, *kwargs.values())):
            if isinstance(value, torch.Generator):
                self._others_drew = True
                return None
            if isinstance(value, Tensor) and not self._is_shared(value):
                if not self._is_settled(value):
                    return None
                differ = True
        return self._drawn() if differ else None

    def after(self, states: list[Tensor] | None, output: Any) -> None:
        """Note what a function made, given what `before` said. What needs a gradient is not what programs branch on."""
        if states is None:
            return
        tensors = (value for value in _flat((output,)) if isinstance(value, Tensor) and not value.requires_grad)
        made = [t for t in tensors if self._examples.is_plain_in(t) and self._examples.differ_in(t)]
        if made and _equal(states, self._drawn()):
            for tensor in made:
                self._settle(tensor)

    def owned(self, tensor: Tensor) -> Tensor:
        """A copy for every example of what they share."""
        if not self._is_shared(tensor):
            return tensor
        with self._examples.together():
            copies = self._examples.all_of(tensor).clone()
        own = self._examples.one_of(copies)
        if not own.requires_grad:
            self._settle(own)
        return own

    def read(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call one of `READS`.

        Raises:
            BranchesDivergeError: the examples have different values.
            CannotVectoriseError: the value may depend on random numbers.
        """
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        plain = all(self._examples.is_plain_in(tensor) for tensor in tensors)
        differing = [tensor for tensor in tensors if not self._is_shared(tensor)]
        if not plain or not differing:
            return function(*args, **kwargs)
        if not self._known or _host_randomness() != self._host_begin or not all(map(self._is_certain, differing)):
            raise self._fails(lambda: CannotVectoriseError("control flow that may depend on random numbers"))
        with self._examples.together():
            every = {id(tensor): self._examples.all_of(tensor).detach().cpu() for tensor in differing}
            values = []
            for i in range(self._examples.count):
                of_one = {key: rows[i] for key, rows in every.items()}
                given = [of_one.get(id(arg), arg) for arg in args]
                values.append(function(*given, **{name: of_one.get(id(arg), arg) for name, arg in kwargs.items()}))
        groups: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            groups.setdefault(repr(value), []).append(i)  # unlike ==, tells -0.0 from 0.0, and is equal for NaN
        if len(groups) > 1:
            raise self._fails(lambda: BranchesDivergeError(list(groups.values())))
        return values[0]

    def check(self) -> None:
        """Raise again what `read` raised, as the program may have caught it and gone on."""
        if self._failed is not None:
            raise self._failed()

    def _fails(self, make: Callable[[], Exception]) -> Exception:
        self._failed = make
        return make()

    def _is_certain(self, tensor: Tensor) -> bool:
        nothing_drawn = not self._others_drew and _equal(self._begin, self._drawn())
        return nothing_drawn or self._is_settled(tensor)

    def _is_shared(self, tensor: Tensor) -> bool:
        return self._examples.is_plain_in(tensor) and not self._examples.differ_in(tensor)

    def _is_settled(self, tensor: Tensor) -> bool:
        version = self._settled.get(tensor)
        return version is not None and version == self._version(tensor)

    def _settle(self, tensor: Tensor) -> None:
        self._settled[tensor] = self._version(tensor)

    def _version(self, tensor: Tensor) -> int:
        """Counts what is written into a tensor, by any view of it; torch.vmap refuses `.data`, which is not counted."""
        return int(self._examples.inner(tensor)._version)

    def _drawn(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]


def _equal(states: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(state, other) for state, other in zip(states, others, strict=True))


def _host_randomness() -> tuple[Any, ...]:
    """States of the generators of python and numpy."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  (users draw from it)
    return random.getstate(), np.asarray(keys).tobytes(), *rest


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat(value.values())
        else:
            yield value
