"""TensorBoard scalars of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping


class Board:
    """Writes what is told of every evaluation, by examples seen.

    Args:
        folder: of the event files.
        first_examples: what an earlier run wrote from here on is dropped: it is trained again.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, first_examples: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboard=... needs TensorBoard: pip install tensorboard") from error
        self._writer = SummaryWriter(os.fspath(folder), purge_step=first_examples if first_examples > 0 else None)

    def add(self, told: Mapping[str, float]) -> None:
        """One evaluation."""
        for name, value in told.items():
            if name != "examples":
                self._writer.add_scalar(name, value, global_step=int(told["examples"]))
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
