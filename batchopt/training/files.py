"""What a training leaves on the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchopt._codec import write_text
from batchopt.probing.distributed import DefaultGroup
from batchopt.probing.run import TrainingRun
from batchopt.training.board import Board
from batchopt.training.loop import TrainingLoop
from batchopt.training.result import Measured


@dataclass(frozen=True)
class TrainingFiles:
    """What a training leaves on the disk; None of what it does not.

    Attributes:
        save: writes a checkpoint.
        metrics: file of JSON lines.
        board: of TensorBoard, Weights & Biases or MLflow.
    """

    save: Callable[[TrainingRun, Measured], None] | None
    metrics: str | os.PathLike[str] | None
    board: Board | None

    def begin(self, loop: TrainingLoop) -> None:
        """What a checkpoint holds is written again: it may not have been before an interruption."""
        if loop.measured.clock:
            self._tell(loop)

    def keep(self, loop: TrainingLoop) -> None:
        """After an evaluation, or when the run begins again."""
        if self.save is not None:
            self.save(loop.run, loop.measured)
        self._tell(loop)

    def end(self) -> None:
        """Close what is open."""
        if self.board is not None:
            self.board.close()

    def _tell(self, loop: TrainingLoop) -> None:
        if self.metrics is not None:
            write_text(self.metrics, loop.lines())
        if self.board is not None:
            self.board.add(loop.line(len(loop.measured.clock) - 1))


@contextlib.contextmanager
def room_for_state(checkpoint: Path | None, group: DefaultGroup | None) -> Iterator[Path]:
    """Where the state at the beginning of a decay is kept: beside a checkpoint, until the training ends."""
    if checkpoint is not None:
        state = checkpoint.with_name(f"{checkpoint.name}.decay.state")
        yield state
        if group is None or group.rank == 0:
            state.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="batchopt-") as folder:
        place = folder if group is None else group.from_first(lambda: folder)
        yield Path(place) / "decay.state"
