"""What changes on a terminal while a command works: a bar, and under it what a probe's runs came to so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchopt.errors import BatchoptError

if TYPE_CHECKING:
    import rich.console
    from rich.console import RenderableType
    from rich.padding import Padding
    from rich.progress import Progress, TaskID

STYLES = {"good": "green", "doubt": "yellow", "error": "bold red", "soft": "dim", "heading": "bold"}
"""Colours by what they stand for; none carries a meaning that the words do not."""
ROWS = 8
"""Runs that stand under the bar: the latest, in a few lines of a terminal."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the folder; the bar is drawn ten times a second."""


class LatestRuns:
    """The latest runs of a probe, as its journal has them.

    Args:
        journal: folder of the probe's finished parts.
    """

    headers = ("", "batch", "peak rate", "steps", "loss", "")

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._found: dict[str, tuple[str, ...] | None] = {}
        self._looked = -LOOK_EVERY

    def rows(self) -> Sequence[Sequence[str]]:
        """Part, batch size, peak rate, steps, last loss, and what became of it."""
        if time.monotonic() >= self._looked + LOOK_EVERY:
            new = [file for file in self._journal.glob("*.json") if file.name not in self._found]
            for file in sorted(new, key=_written):
                self._found[file.name] = _row_of(file)
            self._looked = time.monotonic()
        return [row for row in self._found.values() if row is not None][-ROWS:]


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # the probe has ended, and its journal is gone
        return 0.0


def _row_of(file: Path) -> tuple[str, ...] | None:
    """A run; None for a part that is none."""
    from batchopt.probing.journal import Part

    try:
        part = Part.load(file)
    except (OSError, BatchoptError):
        return None
    run = part.branch
    if run is None:
        return None
    losses = run.curve.losses if run.training is None else run.training.losses or run.curve.losses
    return (
        part.spending.part,
        str(run.batch_size),
        f"{run.learning_rate:.3g}",
        f"{run.examples / run.batch_size:,.0f}",
        f"{losses[-1]:.4g}" if losses else "-",
        run.outcome,
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Padding:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        drawn.add_column(Text(header), header_style=STYLES["soft"])
    for row in rows:
        drawn.add_row(*map(Text, row), style=STYLES["doubt"] if row[-1] == "diverged" else STYLES["soft"])
    return Padding(drawn, (1, 0, 0, 2), expand=False)


def bar_on(console: rich.console.Console, below: LatestRuns | None = None) -> tuple[Progress, TaskID]:
    """A bar with the part's name, what has passed and what is left, and a table under it that is drawn anew with it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    class WithTable(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            rows = () if below is None else below.rows()
            if below is not None and rows:
                yield _table(below.headers, rows)

    bar = WithTable(
        TextColumn("  {task.description:<24}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        _left_column(),
        console=console,
        transient=True,
    )
    bar.start()
    return bar, bar.add_task("", total=1.0)


def _left_column() -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Left(ProgressColumn):
        """The share that is done, and how long the rest takes if it goes as fast: parts differ, budgets are kept."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            left = ""
            if task.elapsed is not None and 0.02 < task.completed < 1.0:
                minutes, seconds = divmod(round(task.elapsed * (1.0 - task.completed) / task.completed), 60)
                hours, minutes = divmod(minutes, 60)
                left = f"  {hours}:{minutes:02}:{seconds:02} left"
            return Text(f"{task.completed:4.0%}{left}", style=STYLES["soft"])

    return Left()
