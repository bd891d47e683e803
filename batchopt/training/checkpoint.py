"""A training that can be killed at any moment and goes on from its last evaluation.

A checkpoint is two files: the run's state under a name of its own (`<name>.<examples>.state`, tensors and plain
values), then the record `<name>`, which points to it. The record is replaced whole, and only after the new state is on
disk, so that a kill at any moment leaves a record with its state.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from batchopt._codec import Record
from batchopt.errors import RecordError
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.schedules.schedule import Schedule
from batchopt.training.adapted import Adapted
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.result import NOTHING_YET, Measured


@dataclass(frozen=True, slots=True)
class Settings(Record):
    """What makes a training the same training: a checkpoint is no use to another.

    Attributes:
        schedule: that it began with.
        learning_rate: base rate.
        seed: of initialisation and data order.
        hyperparameters: of the optimizer.
        population: examples in the data set.
        correction: fingerprint of what corrects an adaptive schedule; None of a fixed one.
    """

    SCHEMA: ClassVar[str] = "batchopt.training_settings/1"

    schedule: Schedule
    learning_rate: float
    seed: int
    hyperparameters: dict[str, float]
    population: int | None = None
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint(Record):
    """Where a training is.

    Attributes:
        settings: of the training.
        measured: the curve and the times so far.
        state: name of the file that holds the run's state, in the same folder.
        adapted: where an adaptive schedule is; None of a fixed one.
    """

    SCHEMA: ClassVar[str] = "batchopt.training_checkpoint/2"
    REMEDY_OF_OLDER: ClassVar[str] = "its schedule has no decay: delete it to begin anew"

    settings: Settings
    measured: Measured
    state: str
    adapted: Adapted | None = None


def save_checkpoint(
    path: Path, run: TrainingRun, measured: Measured, *, settings: Settings, adaptive: AdaptiveSchedule | None = None
) -> None:
    """Keep a training at `path`, and drop the states that an earlier checkpoint of the same path left.

    Of several processes, all of which must call it, the first writes, and the others wait for that.
    """
    state = path.with_name(f"{path.name}.{run.examples_seen}.state")
    save_snapshot(run, state)
    if run.group is None or run.group.rank == 0:
        _point_to(state, path, settings, measured, None if adaptive is None else adaptive.state())
    if run.group is not None:
        run.group.wait()


def _point_to(state: Path, path: Path, settings: Settings, measured: Measured, adapted: Adapted | None) -> None:
    Checkpoint(settings, measured, state.name, adapted).save(path)
    # Those that a kill has left half-written as well.
    ours = re.compile(r"\.?" + re.escape(path.name) + r"\.\d+\.state(\..*\.tmp)?")
    for file in path.parent.iterdir():
        if ours.fullmatch(file.name) and file.name != state.name:
            file.unlink(missing_ok=True)


def resume(path: Path, run: TrainingRun, settings: Settings, adaptive: AdaptiveSchedule | None = None) -> Measured:
    """Put a new run where the checkpoint at `path` is; nothing is measured yet where there is no such file.

    Raises:
        RecordError: the checkpoint belongs to another training, or its state cannot be read.
    """
    if not path.exists():
        return NOTHING_YET
    try:
        checkpoint = Checkpoint.load(path)
    except RecordError as error:
        raise RecordError(f"{error}: give another name, or delete it to begin anew") from None
    if (checkpoint.adapted is None) != (adaptive is None):
        held, got = ("a fixed", "an adaptive") if checkpoint.adapted is None else ("an adaptive", "a fixed")
        raise RecordError(f"{path} is the checkpoint of {held} schedule, not of {got} one: delete it to begin anew")
    for name in ("schedule", "learning_rate", "seed", "hyperparameters", "population", "correction"):
        if getattr(checkpoint.settings, name) != getattr(settings, name):
            raise RecordError(
                f"{path} is the checkpoint of a training with another {name}: repeat the call that began it, or delete "
                "it to begin anew"
            )
    names, own = set(checkpoint.measured.curve.metrics), set(run.task.metrics)
    if checkpoint.measured.curve.losses and names != own:
        raise RecordError(
            f"{path} is the checkpoint of a training with metrics {sorted(names)}, and the task has {sorted(own)}: "
            "give it the same, or delete the checkpoint to begin anew"
        )
    state = path.with_name(checkpoint.state)
    try:
        load_snapshot(run, state)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise RecordError(
            f"{state} does not hold the state of a run of this task ({type(error).__name__}: {error}): "
            f"delete {path} to begin anew"
        ) from error
    if adaptive is not None and checkpoint.adapted is not None:
        adaptive.load_state(checkpoint.adapted)
        run.learning_rate = adaptive.learning_rate
    return checkpoint.measured
