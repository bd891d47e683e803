"""Words for people on one stream, one JSON object for programs on the other."""

from __future__ import annotations

import io
import json
import sys

import pytest

from batchopt.cli.console import WIDTH, Console, show
from batchopt.uncertainty import Estimate


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        ("word", "word"),
        (True, "True"),
        (1_234_567, "1,234,567"),
        (12_345_678_901, "1.23e+10"),
        (1234.6, "1,235"),
        (0.00012345, "0.000123"),
        (Estimate(1200.0, 900.0, 1500.0, True), "1,200 (900 to 1,500)"),
        (Estimate(1.0, 0.5, 80.0, False), "1 (0.5 to 80) ?"),
        (Estimate(5.0, 4.0, float("inf"), False), "more than 4"),
        (Estimate(529.0, 529.0, 529.0, True), "529"),
        (Estimate(529.0, 528.9, 529.4, False), "529 ?"),
        (Estimate(529.0, 529.0, 530.0, True), "529 (529 to 530)"),
    ],
)
def test_cells(cell: object, text: str) -> None:
    assert show(cell) == text


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=False).table(("a", "long header"), [(1000, None), ("x", 0.5)])
    assert capsys.readouterr().out.splitlines() == [
        "  a      long header",
        "  -----  -----------",
        "  1,000  -",
        "  x      0.5",
    ]


def test_sentences_are_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=False).item("word " * 60)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith("  - word")
    assert lines[1].startswith("    word")


def test_json_has_standard_output_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.say("words")
    console.result({"estimate": Estimate(5.0, 4.0, float("inf"), False)})
    captured = capsys.readouterr()
    assert captured.err == "words\n"
    assert json.loads(captured.out)["estimate"]["high"] == "inf"
    with pytest.raises(TypeError, match="not JSON"):
        console.result({"what": object()})


def test_progress_elsewhere_is_a_line_per_part_and_per_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=False)
    for done in range(0, 101, 5):
        console.progress("training", done / 100)
    console.progress("evaluation", 1.0)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines == [[f"{p}%", "training"] for p in (0, 25, 50, 75, 100)] + [["100%", "evaluation"]]


def test_progress_on_a_terminal_is_a_bar_that_words_take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console(as_json=False)
    console.progress("branches", 0.5)
    assert "50%" in terminal.getvalue()
    assert "branches" in terminal.getvalue()
    console.say("a word")
    assert terminal.getvalue().rpartition("\r")[2].strip() == "", "the bar is wiped out"
