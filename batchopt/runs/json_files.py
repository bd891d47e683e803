"""Runs in JSON lines, an object for each logged point, or in a JSON file that lists such objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchopt.errors import EvidenceError
from batchopt.runs.csv_files import text_of


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Points of the runs in a file; NaN and Infinity are understood.

    Raises:
        EvidenceError: a line is no JSON object.
    """
    text = text_of(path)
    if text.lstrip().startswith("["):
        rows = _read(text, "it")
        if not all(isinstance(row, dict) for row in rows):
            raise EvidenceError("a JSON list must hold an object for each logged point")
        return [_flat(row) for row in rows]
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and not line.rstrip().endswith("}"):
            break  # a run that is still writing, or was killed
        row = _read(line, f"line {number}")
        if not isinstance(row, dict):
            raise EvidenceError(f"line {number} must hold a JSON object, a logged point, got {line[:60]!r}")
        found.append(_flat(row))
    return found


def _read(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{what} is no JSON: {error}") from None


def _flat(row: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Objects within a row by names with a slash, {"train": {"loss": 1}} as train/loss; lists are left out."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}/")
        elif not isinstance(value, list):
            flat[f"{above}{name}"] = value
    return flat
