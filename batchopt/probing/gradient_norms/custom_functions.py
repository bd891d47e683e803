"""A model's own `torch.autograd.Function`s, which `torch.vmap` can't follow as they are mostly written.

Each example gets a call of its own, with a row of every input: what it would get in a batch of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils import _pytree as pytree

from batchopt.probing.gradient_norms.examples import CannotVectoriseError
from batchopt.probing.gradient_norms.interception import Recorder
from batchopt.probing.gradient_norms.wrappers import Substitute

_ACTIVE = threading.local()
_APPLY: Any = vars(Function)["apply"].__func__
_NO_VMAP = Function.vmap


@contextlib.contextmanager
def custom_functions(recorder: Recorder) -> Iterator[None]:
    """Inside, in this thread, they are called for one example after the other; not those that know `torch.vmap`."""
    _ACTIVE.recorder = recorder
    try:
        with _SUBSTITUTE.active():
            yield
    finally:
        _ACTIVE.recorder = None


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of `Function.apply`."""
    recorder: Recorder | None = getattr(_ACTIVE, "recorder", None)
    if recorder is None or not recorder.examples.are_apart():
        return _APPLY(cls, *args, **kwargs)
    reason = f"used by {cls.__name__}"
    if _holds_tensor([arg for arg in args if not isinstance(arg, Tensor)]) or _holds_tensor(kwargs):
        raise CannotVectoriseError(f"{cls.__name__} takes tensors in lists or by name")
    given = [recorder.apart(arg, reason) for arg in args]
    follows = cls.generate_vmap_rule or cls.vmap is not _NO_VMAP
    if follows or not any(isinstance(arg, Tensor) for arg in given):
        return _APPLY(cls, *given, **kwargs)
    with recorder.examples.together(), torch._C.DisableTorchFunction():
        together = _for_each(recorder, cls, given, kwargs)
    if isinstance(together, Tensor):
        return recorder.examples.one_of(together)
    return tuple(recorder.examples.one_of(value) if isinstance(value, Tensor) else value for value in together)


_SUBSTITUTE = Substitute(Function, "apply", classmethod(_apply))


def _holds_tensor(values: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(values))


def _for_each(recorder: Recorder, cls: Any, given: list[Any], kwargs: dict[str, Any]) -> Any:
    """Outputs of all examples, (examples, ...): one, or a tuple."""
    examples = recorder.examples
    inputs = [examples.all_of(arg) if isinstance(arg, Tensor) else None for arg in given]
    versions = [None if rows is None else rows._version for rows in inputs]
    outputs = [
        _APPLY(cls, *(arg if rows is None else rows[i] for arg, rows in zip(given, inputs, strict=True)), **kwargs)
        for i in range(examples.count)
    ]
    if versions != [None if rows is None else rows._version for rows in inputs]:
        raise CannotVectoriseError(f"{cls.__name__} writes into its inputs")
    if isinstance(outputs[0], tuple):
        return tuple(_stacked(cls, values) for values in zip(*outputs, strict=True))
    return _stacked(cls, outputs)


def _stacked(cls: Any, values: Any) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(tuple(values))
    if all(value is None for value in values):
        return None
    raise CannotVectoriseError(f"{cls.__name__} returns {type(values[0]).__name__}")
