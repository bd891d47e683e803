"""What users wrap around a model, set aside while its gradients are read."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

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


@contextlib.contextmanager
def checkpoints_of_one_kind() -> Iterator[None]:
    """Activation checkpoints of the reentrant kind, which allow no `torch.autograd.grad`, run as the other kind."""

    class NotReentrant:
        @staticmethod
        def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
            return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    with mock.patch.object(checkpoint, "CheckpointFunction", NotReentrant):
        yield


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """Activation checkpoints keep what they would compute again: that would run outside of `torch.vmap`."""

    def kept(*_: Any, **__: Any) -> Iterator[None]:
        yield

    with mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", kept):
        yield


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Without word of functions that `torch.vmap` applies to one example after the other: slower, and as exact."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
