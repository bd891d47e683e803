"""Words for people on one stream, one JSON object for programs on the other."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import sys

import pytest

from batchopt.cli.arguments import UsageError
from batchopt.cli.console import LOADING, WIDTH, Console, show
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output and error of a terminal that takes colours."""
    terminal = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return terminal


UP_AND_ERASE = "\x1b[1A\x1b[2K"


def test_progress_on_a_terminal_is_a_bar_that_words_take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console = Console(as_json=False)
    console.progress("branches", 0.5)
    shown = terminal.getvalue()
    assert "50%" in shown
    assert "branches" in shown
    assert re.search(r"\d:\d\d:\d\d left", shown)
    console.say("a word")
    assert terminal.getvalue().endswith(f"{UP_AND_ERASE}a word\n"), "the bar is wiped out"


def test_work_of_unknown_length_names_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console = Console(as_json=False)
    console.progress("search", 0.9)
    console.progress("forecast", None)
    shown = terminal.getvalue().rpartition("forecast")[2]
    console.end_progress()
    assert "left" not in shown
    assert "%" not in shown


def test_work_that_begins_is_a_line_elsewhere_and_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Console(as_json=True).begin("planning")
    assert capsys.readouterr() == ("", "  planning\n")
    Console(as_json=False, is_silent=True).begin("planning")
    assert capsys.readouterr() == ("", "")
    terminal, console = on_terminal(monkeypatch), Console(as_json=False)
    console.begin("planning")
    console.end_progress()
    shown = terminal.getvalue()
    assert "planning" in shown
    assert shown.endswith(UP_AND_ERASE), "the bar is wiped out, and no line is left"


def test_work_of_unknown_length_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=False).progress("forecast", None)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_colours_by_what_words_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console = Console(as_json=False)
    console.item("may be wrong", "doubt")
    console.heading("Plan")
    console.error("batchopt: error: no file")
    shown = terminal.getvalue()
    assert "\x1b[33m  - may be wrong\x1b[0m" in shown
    assert "\x1b[1mPlan\x1b[0m" in shown
    assert "----" not in shown
    assert "\x1b[1;31mbatchopt: error:\x1b[0m no file" in shown


def test_markup_in_words_and_cells_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console = Console(as_json=False)
    console.say("[red]x[/red] [64]", "doubt")
    console.table(("a [b]",), [("[bold]cell",)])
    shown = terminal.getvalue()
    assert "[red]x[/red] [64]" in shown
    assert "[bold]cell" in shown


def test_a_drawn_table_marks_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    Console(as_json=False).table(("batch", "cost"), [(32, 2.0), (64, 1.0)], chosen=1)
    chosen, other = (line for line in reversed(terminal.getvalue().splitlines()[-2:]))
    assert "\x1b[1;36m64" in chosen
    assert "\x1b" not in other


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_whoever_wants_no_colours_has_plain_lines(monkeypatch: pytest.MonkeyPatch, plain: dict[str, str]) -> None:
    terminal = on_terminal(monkeypatch)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    console = Console(as_json=False)
    console.progress("training", 0.5)
    console.heading("Plan")
    console.item("may be wrong", "doubt")
    console.table(("a",), [(1,)], chosen=0)
    assert terminal.getvalue() == "   50%  training\n\nPlan\n----\n  - may be wrong\n  a\n  -\n  1\n"


def test_json_on_a_terminal_is_one_object_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, out = on_terminal(monkeypatch), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    console = Console(as_json=True)
    console.heading("words")
    console.result({"a": 1})
    assert out.getvalue() == '{"a": 1}\n'
    assert "words" in terminal.getvalue()


def test_a_table_without_headers_has_no_line_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=False).table(("", ""), [("steps", 3), ("seconds", 0.5)])
    assert capsys.readouterr().out == "  steps    3\n  seconds  0.5\n"


def test_a_question_has_its_answer_without_what_surrounds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("  net.py:Net \n"))
    console = Console(as_json=True)
    assert console.ask("model:") == "net.py:Net"
    assert capsys.readouterr() == ("", "model: ")
    with pytest.raises(UsageError, match="standard input ended"):
        console.ask("data:")


@pytest.mark.parametrize("verb", ["run", "probe", "train", "tune", "doctor"])
def test_a_command_says_at_once_that_it_loads(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Console, part: str, done: float | None) -> None:
        assert (part, done) == (LOADING, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(Console, "progress", stop)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(f"batchopt.cli.{verb}").run(argparse.Namespace(), Console(as_json=False))
