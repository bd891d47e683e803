"""What the commands show: tables, colours and progress on a terminal, plain lines elsewhere, one JSON object."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from batchopt.cli.arguments import UsageError
from batchopt.cli.live import STYLES, bar_on
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    import rich.console
    from rich.progress import Progress, TaskID

    from batchopt.cli.live import LatestRuns

LOADING = "loading"
"""What a command does first that imports torch and the task's file, which takes seconds."""
FORECASTING, PLANNING = "fitting the forecast", "planning"
"""What takes seconds too, however the command is named that does it."""
WIDTH = 100
"""Columns that sentences are wrapped to."""


class Console:
    """Where a command's words go.

    With `as_json`, standard output holds exactly one JSON object, and everything said on the way goes to standard
    error. Colours, drawn tables and the bar are for terminals; NO_COLOR and TERM=dumb ask for plain lines there too.

    Args:
        as_json: whether the command was called with --json.
        is_silent: whether another process says all this.
    """

    def __init__(self, *, as_json: bool, is_silent: bool = False) -> None:
        self._as_json, self._is_silent = as_json, is_silent
        self._bar: tuple[Progress, TaskID] | None = None
        self._below: LatestRuns | None = None
        self._shown = ("", -1.0)

    def say(self, text: str = "", style: str | None = None) -> None:
        """A line of text, in one of `STYLES`."""
        self.end_progress()
        if self._is_silent:
            return
        stream = self._stream
        if style is not None and is_rich(stream):
            # Not wrapped a second time, and nothing in it is markup or a number to be coloured.
            _rich(stream).print(text, style=STYLES[style], markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=stream, flush=True)

    def item(self, text: str, style: str | None = None) -> None:
        """A sentence of a list, in lines of at most `WIDTH` characters."""
        lines = textwrap.fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
        self.say(lines, style)

    def heading(self, text: str) -> None:
        """A line that opens a step."""
        self.say()
        self.title(text)
        if not is_rich(self._stream):
            self.say("-" * len(text))

    def title(self, text: str) -> None:
        """A line above a table or a list."""
        self.say(text, "heading")

    def ask(self, question: str) -> str:
        """An answer from standard input, without what surrounds it; empty where only Enter was pressed.

        Raises:
            UsageError: standard input has ended.
        """
        self.end_progress()
        print(f"{question} ", end="", file=self._stream, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise UsageError("standard input ended before the question was answered: nothing was written")
        return answer.strip()

    def error(self, text: str) -> None:
        """The one line that a failing command leaves on standard error."""
        self.end_progress()
        if is_rich(sys.stderr):
            lead, _, rest = text.partition("error:")
            words = _rich(sys.stderr)
            words.print(f"{lead}error:", style=STYLES["error"], end="", markup=False, highlight=False)
            words.print(rest, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        chosen: int | None = None,
        styles: Sequence[str | None] = (),
    ) -> None:
        """Columns aligned by width; numbers and estimates formatted alike everywhere.

        Args:
            headers: of the columns; where all are empty there is no line of them.
            rows: of cells.
            chosen: number of the row that stands out on a terminal.
            styles: of the rows, on a terminal.
        """
        self.end_progress()
        cells = [[show(cell) for cell in row] for row in rows]
        if is_rich(self._stream):
            if not self._is_silent:
                self._draw(headers, cells, chosen, styles)
            return
        named = [list(headers)] if any(headers) else []
        widths = [max(len(line[k]) for line in [*named, *cells]) for k in range(len(headers))]
        rule = [["-" * width for width in widths]] if named else []
        for line in [*named, *rule, *cells]:
            self.say("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def _draw(
        self, headers: Sequence[str], cells: list[list[str]], chosen: int | None, styles: Sequence[str | None]
    ) -> None:
        from rich import box
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, show_header=any(headers), show_edge=False, pad_edge=False)
        for header in headers:
            drawn.add_column(Text(header), header_style=STYLES["heading"])
        for number, line in enumerate(cells):
            style = styles[number] if number < len(styles) else None
            look = STYLES[style] if style is not None else "bold cyan" if number == chosen else None
            drawn.add_row(*map(Text, line), style=look)
        _rich(self._stream).print(Padding(drawn, (0, 0, 0, 2), expand=False))

    def progress(self, part: str, done: float | None) -> None:
        """How far long work is: a bar on a terminal; elsewhere a plain line per part and per quarter of the work.

        Args:
            part: what is being done.
            done: share of the work; None where it is not known, which is shown on a terminal only.
        """
        if self._is_silent:
            return
        if not is_rich(sys.stderr):
            if done is not None and (part != self._shown[0] or done >= self._shown[1] + 0.25):
                print(f"  {done:4.0%}  {part}", file=sys.stderr, flush=True)
                self._shown = (part, done)
            return
        if self._bar is None:
            self._bar = bar_on(_rich(sys.stderr), self._below)
        bar, task = self._bar
        if (bar.tasks[0].total is None) != (done is None):  # the clock begins anew, and without a share the bar pulses
            bar.remove_task(task)
            task = bar.add_task(part, total=None if done is None else 1.0)
            self._bar = bar, task
        bar.update(task, completed=done or 0.0, description=part, refresh=True)

    def begin(self, work: str) -> None:
        """Say that work begins of which nobody knows how far it is: a moving bar on a terminal, elsewhere a line."""
        if not self._is_silent and not is_rich(sys.stderr):
            print(f"  {work}", file=sys.stderr, flush=True)
        self.progress(work, None)

    def show_below(self, below: LatestRuns | None) -> None:
        """What stands under the bar from its next beginning on, where there is one; None for nothing."""
        self._below = below

    def end_progress(self) -> None:
        """Take the bar away, so that words can follow."""
        self._shown = ("", -1.0)
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def result(self, content: Mapping[str, object]) -> None:
        """The command's result, printed only with --json."""
        self.end_progress()
        if self._as_json and not self._is_silent:
            print(json.dumps(content, default=_plain))

    @property
    def _stream(self) -> IO[str]:
        return sys.stderr if self._as_json else sys.stdout


def is_rich(stream: IO[str]) -> bool:
    """Whether a stream takes colours: a terminal, and nobody has asked for plain text."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _rich(stream: IO[str]) -> rich.console.Console:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream, force_terminal=True)


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
