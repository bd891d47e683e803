"""Runs in JSON lines and lists."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from batchopt.errors import EvidenceError
from batchopt.runs.json_files import json_rows


def written(folder: Path, text: str) -> Path:
    path = folder / "runs.jsonl"
    path.write_text(text)
    return path


def test_lines_and_lists_are_alike(tmp_path: Path) -> None:
    rows = [{"step": 0, "loss": 2.3}, {"step": 1, "train": {"loss": 1.0}, "histogram": [1, 2]}]
    expected = [{"step": 0, "loss": 2.3}, {"step": 1, "train/loss": 1.0}]
    assert json_rows(written(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n")) == expected
    assert json_rows(written(tmp_path, json.dumps(rows, indent=1))) == expected


def test_only_ends_of_lines_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"note": "a\u2028b", "loss": 1}\r\n{"loss": 2}\r\n', encoding="utf-8")
    assert [row["loss"] for row in json_rows(path)] == [1, 2]


def test_nan_is_understood(tmp_path: Path) -> None:
    (row,) = json_rows(written(tmp_path, '{"loss": NaN}\n'))
    assert math.isnan(row["loss"])


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    assert json_rows(written(tmp_path, '{"loss": 1}\n{"lo')) == [{"loss": 1}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"loss": 1}\n{"lo\n{"loss": 2}\n', "line 2 is no JSON"),
        ("3\n4\n", "line 1 must hold a JSON object, a logged point, got '3'"),
        ("[1, 2]", "a JSON list must hold an object for each logged point"),
        ("[1, 2", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
    ],
)
def test_what_is_no_log(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        json_rows(written(tmp_path, text))
