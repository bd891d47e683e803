"""What every benchmark's result says about its machine, and how it is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from machine import machine, save


def test_the_machine_is_json() -> None:
    words = machine()
    assert json.loads(json.dumps(words)) == words
    assert words["cpu"]
    assert words["threads"] >= 1
    assert words["numpy"].count(".") >= 1


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results" / "one.json"
    save(path, {"ratio": 1.5})
    with pytest.raises(ValueError, match="Out of range"):
        save(path, {"ratio": math.nan})
    assert json.loads(path.read_text()) == {"ratio": 1.5}
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]
