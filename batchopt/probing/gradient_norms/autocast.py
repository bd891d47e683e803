"""Mixed precision as torch applies it to the functions that are replaced."""

from __future__ import annotations

import torch
from torch import Tensor


def as_in_autocast(tensor: Tensor) -> Tensor:
    """Cast as autocast casts the operands of matrix products and convolutions; as it is where autocast is off."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))
