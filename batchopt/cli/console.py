"""What the commands show: tables and progress for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from batchopt.uncertainty import Estimate

WIDTH = 100
"""Columns that sentences are wrapped to."""


class Console:
    """Where a command's words go.

    With `as_json`, standard output holds exactly one JSON object, and everything said on the way goes to standard
    error.

    Args:
        as_json: whether the command was called with --json.
        is_silent: whether another process says all this.
    """

    def __init__(self, *, as_json: bool, is_silent: bool = False) -> None:
        self._as_json, self._is_silent = as_json, is_silent
        self._bar: Any = None
        self._shown = ("", -1.0)

    def say(self, text: str = "") -> None:
        """A line of text."""
        self.end_progress()
        if self._is_silent:
            return
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def item(self, text: str) -> None:
        """A sentence of a list, in lines of at most `WIDTH` characters."""
        self.say(textwrap.fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False))

    def heading(self, text: str) -> None:
        """A line that opens a step."""
        self.say(f"\n{text}\n{'-' * len(text)}")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Columns aligned by width; numbers and estimates formatted alike everywhere."""
        cells = [[show(cell) for cell in row] for row in rows]
        widths = [max(len(line[k]) for line in [list(headers), *cells]) for k in range(len(headers))]
        for line in [list(headers), ["-" * width for width in widths], *cells]:
            self.say("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def progress(self, part: str, done: float) -> None:
        """How far long work is: a bar on a terminal; elsewhere a plain line per part and per quarter of the work."""
        if self._is_silent:
            return
        if not sys.stderr.isatty():
            if part != self._shown[0] or done >= self._shown[1] + 0.25:
                print(f"  {done:4.0%}  {part}", file=sys.stderr, flush=True)
                self._shown = (part, done)
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=100, file=sys.stderr, leave=False, bar_format="  {l_bar}{bar:40}| {elapsed} {desc}")
        self._bar.set_description_str(f"{part:<26}", refresh=False)
        self._bar.n = round(100 * done)
        self._bar.refresh()

    def end_progress(self) -> None:
        """Take the bar away, so that words can follow."""
        self._shown = ("", -1.0)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def result(self, content: Mapping[str, object]) -> None:
        """The command's result, printed only with --json."""
        self.end_progress()
        if self._as_json and not self._is_silent:
            print(json.dumps(content, default=_plain))


def show(cell: object) -> str:
    """A cell as people read it: four digits at most, thousands grouped."""
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        if cell.high == float("inf"):
            return f"more than {show(cell.low)}"
        doubt = "" if cell.resolved else " ?"
        value, low, high = show(cell.value), show(cell.low), show(cell.high)
        # An interval that is narrower than what is shown of it says nothing.
        return f"{value}{doubt}" if low == value == high else f"{value} ({low} to {high}){doubt}"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}" if abs(cell) < 1e7 else f"{cell:.3g}"
    return f"{cell:.3g}"


def _plain(value: object) -> object:
    if isinstance(value, Estimate):
        return json.loads(value.to_json())
    raise TypeError(f"not JSON: {value!r}")
