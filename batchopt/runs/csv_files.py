"""Runs in CSV files: a row for each logged point, or a column for each run as Weights & Biases exports charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from batchopt.errors import EvidenceError
from batchopt.runs.columns import counts_calls, is_named

BETWEEN = " - "
"""Between the run and the metric in the columns of an exported chart."""
CALLS = "Step"
"""What an exported chart calls the count of calls of the logger."""
LOSSES = ("loss", "training_loss", "evaluation_loss")
EXTREMES = ("__MIN", "__MAX")
"""Columns of an exported chart that hold the extremes of what was averaged."""


def csv_rows(path: Path, wanted: Collection[str] = ()) -> list[dict[str, str]]:
    """Points of the runs in a CSV file, separated by commas, semicolons or tabs.

    Args:
        path: of the file.
        wanted: the log's names that the caller says hold something. A table whose columns are called after a run and
            one of these, or a loss, is an exported chart.

    Raises:
        EvidenceError: it has no header, or a row of another length; a chart has no count but of calls.
    """
    text = text_of(path)
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        return _rows_of(reader, text, wanted)
    except csv.Error as error:
        raise EvidenceError(f"line {reader.line_num} cannot be read as CSV: {error}") from None


def _rows_of(reader: Any, text: str, wanted: Collection[str]) -> list[dict[str, str]]:
    names = [name.strip() for name in next(reader, [])]
    if len(set(names)) < len(names) or not any(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise EvidenceError(f"the first line must name the columns, each once, got {twice or names}")
    lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    if lines and len(lines[-1][1]) < len(names) and not text.endswith("\n"):
        del lines[-1]  # of a run that is still writing, or was killed
    for number, cells in lines:
        if len(cells) != len(names):
            raise EvidenceError(f"line {number} has {len(cells)} cells, and the first line names {len(names)}")
    rows = [dict(zip(names, cells, strict=True)) for _, cells in lines]
    wide = _columns_of_runs(names, wanted)
    return list(_long(rows, wide, wanted)) if wide else rows


def _columns_of_runs(names: list[str], wanted: Collection[str]) -> list[str]:
    """Columns of an exported chart, each of a run and a metric; none of another table."""
    wide = [name for name in names if BETWEEN in name]
    if any(name in wanted for name in wide) or any(is_named(name, *LOSSES) for name in names if name not in wide):
        return []
    metrics = {name.rsplit(BETWEEN, 1)[1] for name in wide}
    if not any(metric in wanted or is_named(metric, *LOSSES) for metric in metrics):
        return []
    own = [name for name in names if name not in wide]
    counts = [name for name in (*own, *metrics & set(wanted)) if name in wanted or is_named(name, "steps", "examples")]
    if counts == [CALLS] and CALLS not in wanted:
        raise counts_calls(CALLS)
    return wide


def text_of(path: Path) -> str:
    """A text file.

    Raises:
        EvidenceError: it is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise EvidenceError("it is not UTF-8 text: is it a log of runs?") from None


def _long(rows: list[dict[str, str]], wide: list[str], wanted: Collection[str]) -> Iterator[dict[str, str]]:
    """A chart's rows, one for each run."""
    parts = {name: name.rsplit(BETWEEN, 1) for name in wide if not name.endswith(EXTREMES)}
    for row in rows:
        shared = {name: value for name, value in row.items() if name not in wide}
        of_run: dict[str, dict[str, str]] = {}
        for name, (run, metric) in parts.items():
            if row.get(name, "") and (metric in wanted or not is_named(metric, "steps")):
                of_run.setdefault(run, {"run": run, **shared})[metric] = row[name]
        yield from of_run.values()
