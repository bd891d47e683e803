"""The benchmark of per-example gradients of Transformers: a tiny run, kept and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformer_gradients
from transformer_gradients import Row, text

ROW = Row("bert", "1", 8, "per-example gradients, all examples in one pass", 0, 40, 4.3, 1e-7, 7, 0.5, (1.2, 1.3, 1.4))


def test_a_tiny_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--quick", "--device=cpu", "--threads=1", f"--out={tmp_path / 'result.json'}", "--models"]
    transformer_gradients.main([*command, "distilbert"])
    transformer_gradients.main([*command, "vit"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["model"] for row in result["rows"]] == ["distilbert", "vit"]
    assert all(row["error"] < 5e-5 and row["ratio"][1] > 0 for row in result["rows"])
    assert result["settings"]["size"]["length"] == 7
    assert "copies of 2 of 40 tensors" in capsys.readouterr().out

    def again(*_: object, **__: object) -> Row:
        raise AssertionError("measured again")

    monkeypatch.setattr(transformer_gradients, "measured", again)
    transformer_gradients.main([*command, "vit"])


def test_a_missed_target_is_seen() -> None:
    assert "MISSED" not in text([ROW])
    slow = Row("bert", "1", 8, ROW.method, 0, 40, 4.3, 1e-7, 7, 0.5, (1.5, 1.7, 1.8))
    assert "MISSED: at most 1.6" in text([slow])
