"""Rows of results that are done, one to a line of a file, so that a call goes on where another stopped."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, none where there is no file."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # an interrupted write leaves part of a line
                rows.append(json.loads(line))
    return rows


def add(path: Path, row: dict[str, Any]) -> None:
    """Keep a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(row, allow_nan=False) + "\n")
