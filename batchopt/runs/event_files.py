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

    Hyperparameters in a folder within a run's, where `SummaryWriter.add_hparams` puts them, are that run's.

    Raises:
        EvidenceError: the package is not installed.
    """
    folders = sorted({file.parent for file in path.rglob(f"{EVENTS}*")}) if path.is_dir() else [path]
    rows = []
    for folder in folders:
        owner = next((other for other in folders if other in folder.parents), folder)
        name = owner.name if owner == path or owner.is_file() else owner.relative_to(path).as_posix()
        rows += [{"run": name, **row} for row in _events(folder, with_points=owner == folder)]
    return rows


def _events(folder: Path, *, with_points: bool) -> Iterator[dict[str, Any]]:
    """Hyperparameters and scalars of one run."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise EvidenceError(
            "reading TensorBoard's event files needs its package: pip install 'batchopt[tensorboard]'"
        ) from error
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    try:
        held = log.PluginTagToContent(HPARAMS)
    except KeyError:
        held = {}
    for content in held.values():
        start = HParamsPluginData.FromString(content).session_start_info
        values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        if values:
            # The rate that was configured is the peak of the one that is logged, whatever their names.
            yield {"peak_learning_rate" if is_named(name, "learning_rate") else name: values[name] for name in values}
    if not with_points:
        return
    for tag in log.Tags()["scalars"]:
        yield from ({"step": event.step, tag: event.value} for event in log.Scalars(tag))
    for tag in log.Tags()["tensors"]:
        if log.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            for event in log.Tensors(tag):
                yield {"step": event.step, tag: float(make_ndarray(event.tensor_proto))}
