"""Commands under torchrun: all processes do the work, the first one speaks and writes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def choose_device() -> None:
    """Give this process a CUDA device of its own, before a task asks for one."""
    import torch

    if count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def join(device: torch.device) -> None:
    """Join the other processes, by nccl for a task on CUDA and by gloo for others; nothing where this one is alone.

    Where the file of a task has done so by itself, that is left as it is.
    """
    from torch import distributed

    if count() > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave(code: int, *, together: bool) -> None:
    """End this process, where it is one of several.

    Args:
        code: to end with.
        together: whether all of them get here: they then wait for each other, since torchrun kills all when one fails.
    """
    if count() == 1:
        return
    from torch import distributed

    if together and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of torch that wants the interpreter while that ends takes the process down with SIGABRT, now and then.
    os._exit(code)
