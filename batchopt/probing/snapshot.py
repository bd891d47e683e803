"""A run's state in a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from batchopt.probing.run import TrainingRun


def save_snapshot(run: TrainingRun, path: str | os.PathLike[str]) -> None:
    """Write a run's state to `path`, whole or not at all, readable by `torch.load(weights_only=True)`.

    Of several processes the first writes.
    """
    state = run.state_dict()
    if run.group is not None and run.group.rank > 0:
        return
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_snapshot_of_first(run: TrainingRun, path: str | os.PathLike[str]) -> None:
    """As `load_snapshot`, where the first of several processes alone may see the file: they may run on other nodes."""
    if run.group is None:
        load_snapshot(run, path)
    else:
        run.load_state_dict(run.group.from_first(lambda: _read(path)))


def load_snapshot(run: TrainingRun, path: str | os.PathLike[str]) -> None:
    """Put a run into the state that `save_snapshot` wrote; the file may come from another device."""
    run.load_state_dict(_read(path))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
