"""Runs from whatever holds them: one function for all kinds of logs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.runs.columns import SETTINGS, recognise
from batchopt.runs.csv_files import csv_rows
from batchopt.runs.event_files import has_events, tensorboard_rows
from batchopt.runs.json_files import json_rows
from batchopt.runs.rows import NOTHING, Settings, runs_of_rows

if TYPE_CHECKING:
    import optuna

TABLES = {".csv": csv_rows, ".tsv": csv_rows, ".jsonl": json_rows, ".ndjson": json_rows, ".json": json_rows}
STORAGES = (".db", ".sqlite", ".sqlite3")


def read_runs(
    source: str | os.PathLike[str] | optuna.Study,
    *,
    columns: Mapping[str, str] | None = None,
    settings: Settings | str | os.PathLike[str] | None = None,
) -> tuple[Branch, ...]:
    r"""Runs that you have trained, from their logs, for `Forecast.fit(runs=...)`.

    Reads CSV files (a row for each logged point, or an exported chart of Weights & Biases with a column for each run),
    JSON lines, TensorBoard's event files (a file or a folder) and finished Optuna studies (a study, its SQLite file or
    storage URL). Nothing that is read is executed.

    A log holds, by these or other usual names (`lr`, `global_step`, `train/loss`, `val_loss`, ...): `run` (else the log
    is of one run), `batch_size`, `learning_rate`, `step` or `examples`, `loss` (or `training_loss` and
    `evaluation_loss`); and optionally `peak_learning_rate`, `learning_rate_schedule`, `horizon_steps`, `warmup_steps`
    (or `_examples`), `cooldown`, `seed`, `diverged`. A learning rate that changes along a run is its schedule. Other
    columns are ignored. How points are read `logged_run` says.

    Args:
        source: the log.
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
    if isinstance(source, str | os.PathLike):
        told, where = os.fspath(source), Path(source)
    else:
        told, where = "the study", None
    try:
        known = _settings_in(settings)
        if where is None or "://" in told or where.suffix in STORAGES:
            return _of_study(source, where, columns or {}, known)
        return runs_of_rows(_rows_in(where), columns=columns or {}, settings=known, only=where.stem)
    except EvidenceError as error:
        raise EvidenceError(f"{told}: {error}") from None


def _of_study(source: Any, where: Path | None, columns: Mapping[str, str], settings: Settings) -> tuple[Branch, ...]:
    from batchopt.runs.optuna_study import load_only_study, runs_of_study

    if where is not None:
        if "://" not in str(source) and not where.is_file():
            raise EvidenceError("there is no such file")
        source = load_only_study(str(source) if "://" in str(source) else f"sqlite:///{where}")
    return runs_of_study(source, columns=columns, settings=settings)


def _rows_in(path: Path) -> list[Any]:
    if not path.exists():
        raise EvidenceError("there is no such file or folder")
    if path.is_file() and path.suffix.lower() in TABLES:
        return list(TABLES[path.suffix.lower()](path))
    if has_events(path):
        return list(tensorboard_rows(path))
    kinds = ", ".join(TABLES)
    raise EvidenceError(
        f"a log of runs must be a file that ends in {kinds}, a file or folder of TensorBoard's, or an Optuna study "
        f"({', '.join(STORAGES)}): write it as CSV with a row for each logged point"
    )


def _settings_in(given: Settings | str | os.PathLike[str] | None) -> Settings:
    """Settings as they were given, or from a table with a row for each run."""
    if given is None or isinstance(given, Mapping):
        return given or {}
    path = Path(given)
    if path.suffix.lower() not in TABLES or not path.is_file():
        raise EvidenceError(f"settings must be in a CSV or JSON file with a row for each run, got {str(path)!r}")
    rows = TABLES[path.suffix.lower()](path)
    found = recognise((name for row in rows for name in row), {})
    if "run" not in found:
        raise EvidenceError(f"{path} must name the run of each row in a column 'run'")
    return {str(row[found["run"]]): _setting_of(row, found) for row in rows}


def _setting_of(row: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    held = {ours: row.get(theirs) for ours, theirs in found.items() if ours in SETTINGS}
    return {ours: value for ours, value in held.items() if value not in NOTHING}
