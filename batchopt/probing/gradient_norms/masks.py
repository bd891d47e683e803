"""Writing a number where a mask is true: `labels[mask == 0] = -100`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchopt.probing.gradient_norms.interception import Recorder, Rule


def write(recorder: Recorder, target: Tensor, index: Any, value: Any) -> Any:
    """`target[mask] = number`, of which `torch.vmap` knows only the form with a broadcast mask."""
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and 0 < index.ndim <= target.ndim
    is_number = value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, (bool, int, float))
    if not (is_mask and is_number) or recorder.tape.key(target) is not None or recorder.tape.key(value) is not None:
        return NotImplemented
    target.masked_fill_(index.reshape(*index.shape, *(1,) * (target.ndim - index.ndim)), value)
    return None


ALWAYS: dict[Any, Rule] = {Tensor.__setitem__: write}
