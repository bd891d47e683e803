"""What users wrap around a model, set aside while its gradients are read."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import checkpoint


@contextlib.contextmanager
def without_compilation() -> Iterator[None]:
    """Compiled modules and functions run as they were written; what was compiled is kept."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Substitute:
    """A name of a module or class that means something else while any thread is inside; afterwards it is as it was.

    Args:
        module: that holds it, or a class.
        name: in there.
        value: what it means inside.
    """

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self._module, self._name = module, name
        self._values = {True: value, False: vars(module)[name]}
        self._inside = 0
        self._lock = threading.Lock()

    def _change(self, by: int) -> None:
        with self._lock:
            self._inside += by
            setattr(self._module, self._name, self._values[self._inside > 0])

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the name means the other value."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)


class _NotReentrant:
    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


def _kept(*_: Any, **__: Any) -> Iterator[None]:
    yield


_ONE_KIND = Substitute(checkpoint, "CheckpointFunction", _NotReentrant)
_KEPT = Substitute(checkpoint, "_checkpoint_without_reentrant_generator", _kept)


def checkpoints_of_one_kind() -> contextlib.AbstractContextManager[None]:
    """Activation checkpoints of the reentrant kind, which allow no `torch.autograd.grad`, run as the other kind."""
    return _ONE_KIND.active()


def without_checkpoints() -> contextlib.AbstractContextManager[None]:
    """Activation checkpoints keep what they would compute again: that would run outside of `torch.vmap`."""
    return _KEPT.active()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Without word of functions that `torch.vmap` applies to one example after the other: slower, and as exact."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
