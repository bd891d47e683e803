"""Runs from whatever holds them: one function for all kinds of logs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batchopt._codec import record_name
from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.runs.columns import SETTINGS, is_named, recognise
from batchopt.runs.csv_files import csv_rows, text_of
from batchopt.runs.event_files import has_events, tensorboard_rows
from batchopt.runs.json_files import json_rows
from batchopt.runs.rows import NOTHING, Settings, runs_of_rows

if TYPE_CHECKING:
    import optuna

CSVS, JSONS = (".csv", ".tsv"), (".jsonl", ".ndjson", ".json")
STORAGES = (".db", ".sqlite", ".sqlite3")
Kind = Literal["csv", "json", "study", "events", "record", "missing", "other"]


def read_runs(
    source: str | os.PathLike[str] | optuna.Study | Iterable[optuna.trial.FrozenTrial],
    *,
    columns: Mapping[str, str] | None = None,
    settings: Settings | str | os.PathLike[str] | None = None,
) -> tuple[Branch, ...]:
    r"""Runs that you have trained, from their logs, for `Forecast.fit(runs=...)`.

    Reads CSV files (a row for each logged point, or an exported chart of Weights & Biases with a column for each run),
    JSON lines, TensorBoard's event files (a file or a folder) and finished Optuna studies (a study, its SQLite file or
    storage URL; or trials that you pick). Nothing that is read is executed, and nothing is written.

    A log holds, by these or other usual names (`lr`, `global_step`, `train/loss`, `val_loss`, ...): `run` (else the log
    is of one run), `batch_size`, `learning_rate`, `step` or `examples`, `loss` (or `training_loss` and
    `evaluation_loss`); and optionally `peak_learning_rate`, `learning_rate_schedule`, `horizon_steps`, `warmup_steps`
    (or `_examples`), `cooldown`, `seed`, `diverged`. A learning rate that changes along a run is its schedule. Other
    columns are ignored. How points are read `logged_run` says: a training loss is taken to be that of the batch of its
    step, a restart from a checkpoint counts over what it did again. A `loss` beside an evaluated one is the training
    loss. The batch size is that of all devices and accumulated gradients together.

    Args:
        source: the log, an Optuna study, or trials that you pick from one: these may differ in any parameter, while the
            trials of a study must not in one that is no setting of a run.
        columns: names above -> the log's, where these are others: {"batch_size": "bs", "examples": "step"}.
        settings: what the log does not hold, for all runs, {"batch_size": 64}, or by run,
            {"run-a": {"batch_size": 64, "learning_rate": 0.1}}; or a file with such columns and a row for each run. It
            counts over the log.

    Raises:
        EvidenceError: the log cannot be read, or a value in it breaks a rule; names the file and the run.

    Example:
        >>> import pathlib, tempfile
        >>> log = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
        >>> rows = ["run,batch_size,lr,step,loss", "a,32,0.1,0,2.3", "a,32,0.1,100,1", "b,64,0.2,0,2.3", "b,64,0.2,9,2"]
        >>> _ = log.write_text("\n".join(rows))
        >>> [(run.batch_size, run.learning_rate, run.curve.examples) for run in read_runs(log)]
        [(32, 0.1, (0, 3200)), (64, 0.2, (0, 576))]
    """
    is_named_place = isinstance(source, str | os.PathLike)
    told = without_secrets(os.fspath(source)) if is_named_place else "the study"  # type: ignore[arg-type]
    try:
        known = _settings_in(settings)
        if not is_named_place or kind_of(source) == "study":  # type: ignore[arg-type]
            return _of_study(source, columns or {}, known)
        where = Path(source)  # type: ignore[arg-type]
        return runs_of_rows(_rows_in(where, columns or {}), columns=columns or {}, settings=known, only=where.stem)
    except EvidenceError as error:
        raise EvidenceError(f"{told}: {error}") from None


def kind_of(source: str | os.PathLike[str]) -> Kind:
    """What a name is of, by its ending, or by what the file holds: of a log of runs, or of a record of batchopt.

    A JSON file is a log where it lists points, or holds one on each line, and else is, or was meant to be, a record.
    """
    path = Path(source)
    ending = path.suffix.lower()
    if "://" in os.fspath(source) or ending in STORAGES:
        return "study"
    if path.is_dir():
        return "events" if has_events(path) else "other"
    if ending in CSVS:
        return "csv" if path.is_file() else "missing"
    if ending in (".jsonl", ".ndjson"):
        return "json" if path.is_file() else "missing"
    if ending == ".json":
        return "json" if path.is_file() and _holds_points(path) else "record"
    if not path.is_file():
        return "missing"
    if has_events(path):
        return "events"
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return "record" if (record_name(text) or "").startswith("batchopt.") else "other"


def _holds_points(path: Path) -> bool:
    text = path.read_text(encoding="utf-8-sig", errors="replace").lstrip()
    if re.match(r"\[\s*\{", text):
        return True
    try:
        first = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "schema" not in first


def without_secrets(place: str) -> str:
    """A path, or a storage's URL without the user, the password and the options in it."""
    return re.sub(r"\?.*", "", re.sub(r"://.*@", "://...@", place)) if "://" in place else place


def _of_study(source: Any, columns: Mapping[str, str], settings: Settings) -> tuple[Branch, ...]:
    from batchopt.runs.optuna_study import load_only_study, runs_of_study

    if isinstance(source, str | os.PathLike):
        source = load_only_study(os.fspath(source))
    return runs_of_study(source, columns=columns, settings=settings)


def _rows_in(path: Path, columns: Mapping[str, str]) -> list[Any]:
    kind = kind_of(path)
    if kind == "csv":
        return list(csv_rows(path, tuple(columns.values())))
    if kind == "json" or (kind == "record" and path.is_file()):
        if (record_name(text_of(path)) or "").startswith("batchopt."):
            raise EvidenceError("it is a record of batchopt, no log of runs: a probe's is read by ProbeReport.load")
        return list(json_rows(path))
    if kind == "events":
        return list(tensorboard_rows(path))
    if not path.exists():
        raise EvidenceError("there is no such file or folder")
    kinds = ", ".join((*CSVS, *JSONS))
    raise EvidenceError(
        f"a log of runs must be a file that ends in {kinds}, a file or folder of TensorBoard's, or an Optuna study "
        f"({', '.join(STORAGES)}): write it as CSV with a row for each logged point"
    )


def _settings_in(given: Settings | str | os.PathLike[str] | None) -> Settings:
    """Settings as they were given, or from a table with a row for each run."""
    if given is None or isinstance(given, Mapping):
        return given or {}
    path = Path(given)
    ending = path.suffix.lower()
    if ending not in (*CSVS, *JSONS) or not path.is_file():
        raise EvidenceError(f"settings must be in a CSV or JSON file with a row for each run, got {str(path)!r}")
    rows: list[dict[str, Any]] = list(csv_rows(path) if ending in CSVS else json_rows(path))
    try:
        found = recognise((name for row in rows for name in row if is_named(name, "run", *SETTINGS)), {})
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from None
    if "run" not in found or any(row.get(found["run"]) in NOTHING for row in rows):
        raise EvidenceError(f"{path} must name the run of each row in a column 'run'")
    by_run: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, own = str(row[found["run"]]), _setting_of(row, found)
        known = by_run.setdefault(name, {})
        for ours in known.keys() & own.keys():
            if str(known[ours]) != str(own[ours]):
                raise EvidenceError(
                    f"{path} must hold one {ours} for each run, got {known[ours]!r} and {own[ours]!r} for run {name!r}"
                )
        known |= own
    return by_run


def _setting_of(row: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    held = {ours: row.get(theirs) for ours, theirs in found.items() if ours in SETTINGS}
    return {ours: value for ours, value in held.items() if value not in NOTHING}
