"""The table of the latest runs under the bar of a probe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli.test_console import on_terminal

from batchopt.cli import live
from batchopt.cli.console import Console
from batchopt.cli.live import LatestRuns
from batchopt.evidence import Branch, LossCurve, Spending, TrainingLosses
from batchopt.probing.journal import Part


def keep(folder: Path, name: str, *, at: float, branch: Branch | None, part: str = "short runs") -> None:
    Part(spending=Spending(part, 100.0, 10, 1.0), branch=branch).save(folder / f"{name}.json")
    os.utime(folder / f"{name}.json", (at, at))


def run(size: int, rate: float, *, last: float | None = 0.5, outcome: str = "finished") -> Branch:
    training = None if last is None else TrainingLosses((32.0, 640.0), (2.0, last), (0.1, 0.1))
    curve = LossCurve((640,), (1.25,)) if last is None else LossCurve((), ())
    return Branch(size, rate, curve, outcome=outcome, training=training)  # type: ignore[arg-type]


def test_rows_are_the_latest_runs_in_the_order_of_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(live, "ROWS", 3)
    table = LatestRuns(tmp_path)
    assert table.rows() == []
    keep(tmp_path, "b", at=1.0, branch=run(64, 0.25))
    keep(tmp_path, "a", at=2.0, branch=run(32, 0.5, last=None))
    keep(tmp_path, "noise", at=3.0, branch=None)
    (tmp_path / "probe.json").write_text("{}")
    assert table.rows() == [
        ("short runs", "64", "0.25", "10", "0.5", "finished"),
        ("short runs", "32", "0.5", "20", "1.25", "finished"),
    ]
    keep(tmp_path, "c", at=4.0, branch=run(8, 3.0, outcome="diverged"))
    keep(tmp_path, "d", at=5.0, branch=run(8, 1.0), part="long runs")
    assert [row[1:3] for row in table.rows()] == [("32", "0.5"), ("8", "3"), ("8", "1")]
    assert LatestRuns(tmp_path / "gone").rows() == []


def test_the_table_stands_under_the_bar_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console = Console(as_json=False)
    keep(tmp_path, "a", at=1.0, branch=run(64, 0.25))
    console.show_below(LatestRuns(tmp_path))
    console.progress("short runs", 0.4)
    shown = terminal.getvalue()
    frame = shown[shown.rindex("40%") :]
    assert "peak rate" in frame
    assert "0.25" in frame
    console.end_progress()
    erased = terminal.getvalue()[len(shown) :].rpartition("finished")[2]
    assert erased.count("\x1b[1A\x1b[2K") >= frame.count("\n"), "all lines of it are wiped out"


def test_elsewhere_there_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, "a", at=1.0, branch=run(64, 0.25))
    console = Console(as_json=False)
    console.show_below(LatestRuns(tmp_path))
    console.progress("short runs", 0.4)
    assert capsys.readouterr().err == "   40%  short runs\n"
