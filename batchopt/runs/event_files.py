"""Runs in the event files of TensorBoard: a folder for each run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchopt.errors import EvidenceError
from batchopt.runs.columns import is_named

EVENTS = "events.out.tfevents"
"""With which the names of event files begin."""
HPARAMS = "hparams"


def has_events(path: Path) -> bool:
    """Whether a path is an event file, or a folder with some, however deep."""
    return path.name.startswith(EVENTS) if path.is_file() else next(path.rglob(f"{EVENTS}*"), None) is not None


def tensorboard_rows(path: Path) -> list[dict[str, Any]]:
    """Points of the runs under a folder, each named by its folder, and the hyperparameters that were written with them.

    A folder within a run's that holds hyperparameters, and no scalar at more than one step, is that run's:
    `SummaryWriter.add_hparams` makes such ones. Any other folder is a run of its own.

    Raises:
        EvidenceError: the package is not installed.
    """
    folders = sorted({file.parent for file in path.rglob(f"{EVENTS}*")}) if path.is_dir() else [path]
    rows: list[dict[str, Any]] = []
    owners: dict[Path, Path] = {}
    for folder in folders:
        log = _loaded(folder)
        settings, points = list(_hparams(log)), list(_scalars(log))
        above = next((other for other in folder.parents if other in owners), None)
        is_part = above is not None and settings and len({point["step"] for point in points}) <= 1
        owners[folder] = owner = owners[above] if above is not None and is_part else folder
        name = owner.name if owner == path or owner.is_file() else owner.relative_to(path).as_posix()
        rows += [{"run": name, **row} for row in (settings if is_part else settings + points)]
    return rows


def _loaded(folder: Path) -> Any:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise EvidenceError(
            "reading TensorBoard's event files needs its package: pip install '.[tensorboard]' in a clone of batchopt"
        ) from error
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def _hparams(log: Any) -> Iterator[dict[str, Any]]:
    """Hyperparameters of a session."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    try:
        held = log.PluginTagToContent(HPARAMS)
    except KeyError:
        return
    for content in held.values():
        start = HParamsPluginData.FromString(content).session_start_info
        values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        if values:
            # The rate that was configured is the peak of the one that is logged, whatever their names.
            yield {"peak_learning_rate" if is_named(name, "learning_rate") else name: values[name] for name in values}


def _scalars(log: Any) -> Iterator[dict[str, Any]]:
    """Points of every scalar."""
    from tensorboard.util.tensor_util import make_ndarray

    for tag in log.Tags()["scalars"]:
        yield from ({"step": event.step, tag: event.value} for event in log.Scalars(tag))
    for tag in log.Tags()["tensors"]:
        if log.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            for event in log.Tensors(tag):
                yield {"step": event.step, tag: float(make_ndarray(event.tensor_proto))}
