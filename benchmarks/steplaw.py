"""How well the law chooses batch size and rate of language models, from runs of fewer tokens (Step Law's table).

Step Law's public table (arXiv 2503.04715) has the final loss of some 120 pairs of batch size and peak rate for each
model size N and number of tokens D: warm-up of 2,000 steps, cosine to a rate of 1e-5, sequences of 2,048 tokens. For
each N the final losses at its two smallest D are fitted, and the setting chosen that the law predicts to be the best
of the table's grid at each larger D. Its true loss over the best one's is the regret. The law is the product's own,
with no constant set for this table. Beside it the three-term law, which says nothing of the rate and takes the one that
was best at its batch size and the larger of the fitted D, and Step Law's own formula, which was fitted to all of these
runs.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, save
from rivals.three_term import fit_three_term

from batchopt.forecasting.schedule_fit import Points, ScheduleLaw, fit_schedule_law
from batchopt.forecasting.schedule_law import Course, Courses, course, frame_of, losses

RESULT = Path(__file__).parent / "results" / "steplaw.json"
TABLE = Path("steplaw") / "dense_lr_bs_loss.csv"
SEQUENCE = 2048
WARMUP_STEPS = 2000
LAST_RATE = 1e-5
INITIAL_LOSS = math.log(65_536)
"""Of a guess among as many tokens as the vocabulary has."""
FITTED = 2
"""Of a model size's numbers of tokens, the smallest."""
BROKEN = 0.15
"""A run that ends so far above the best of its N and D, in log loss, has broken or nearly so: it is not fitted. As in a
study of an earlier form of the law, in which 0.05 chose no better."""
EARLY_PIECES, LATE_PIECES = 14, 12


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of the table.

    Attributes:
        batch_size: in sequences.
        learning_rate: its peak.
        steps: of the run.
        loss: the final one, smoothed.
    """

    batch_size: float
    learning_rate: float
    steps: float
    loss: float


Tables = dict[float, dict[float, list[Cell]]]
"""By N and D."""


def read(path: Path) -> Tables:
    """Step Law's file."""
    found: Tables = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            size, rate, steps = (float(row[key]) for key in ("bs", "lr", "ti"))
            found[float(row["N"])][float(row["D"])].append(Cell(size, rate, steps, float(row["smooth loss"])))
    return found


def course_of(cell: Cell) -> Course:
    """Warm-up, then cosine: pieces that grow, and evenly spaced ones."""
    warmup = min(WARMUP_STEPS, 0.5 * cell.steps)
    floor = min(1.0, LAST_RATE / cell.learning_rate)

    def multiplier(steps: np.ndarray) -> np.ndarray:
        progress = np.clip((steps - warmup) / (cell.steps - warmup), 0.0, 1.0)
        cosine = floor + (1.0 - floor) * 0.5 * (1.0 + np.cos(np.pi * progress))
        return np.minimum(steps / warmup, cosine)

    early = np.geomspace(min(warmup, cell.steps) / 8.0, cell.steps, EARLY_PIECES)
    edges = np.unique(np.concatenate([[0.0], early, np.linspace(warmup, cell.steps, LATE_PIECES)]))
    edges = edges[np.concatenate([[True], np.diff(edges) > 1e-3 * edges[1:]])]
    return course(cell.batch_size, cell.learning_rate, [*edges[:-1], cell.steps], multiplier)


def points_of(cells: Sequence[Cell]) -> Points:
    """The final losses of runs."""
    courses = Courses([course_of(cell) for cell in cells])
    logs = np.log([cell.loss for cell in cells])
    return Points(courses, np.arange(len(cells)), courses.pieces - 1, logs, np.zeros(len(cells)))


def usable(cells: Sequence[Cell]) -> list[Cell]:
    """Without what has broken."""
    best = min(cell.loss for cell in cells)
    return [cell for cell in cells if math.log(cell.loss / best) < BROKEN]


def fitted(cells: Sequence[Cell]) -> ScheduleLaw:
    """The product's law of these final losses."""
    points = points_of(cells)
    frame = frame_of(
        points.courses,
        initial_loss=INITIAL_LOSS,
        lowest_loss=min(cell.loss for cell in cells),
        is_adaptive=True,
    )
    return fit_schedule_law(points, frame)


def three_term_choice(tables: Mapping[float, Sequence[Cell]], told: Sequence[float], cells: Sequence[Cell]) -> Cell:
    """The batch size by the three-term law, and the rate that was best there at the larger of the fitted D."""
    ends = {(d, size): _best(tables[d], size) for d in told for size in {cell.batch_size for cell in tables[d]}}
    law = fit_three_term(
        np.array([cell.batch_size for cell in ends.values()]),
        np.array([cell.steps for cell in ends.values()]),
        np.log([cell.loss for cell in ends.values()]),
    )
    steps = {cell.batch_size: cell.steps for cell in cells}
    found = law.log_losses(np.array(list(steps)), np.array(list(steps.values())))
    size = list(steps)[int(np.argmin(found))]
    near = min({cell.batch_size for cell in tables[told[-1]]}, key=lambda other: abs(math.log(other / size)))
    return _nearest(cells, size, ends[told[-1], near].learning_rate)


def step_law_choice(parameters: float, tokens: float, cells: Sequence[Cell]) -> Cell:
    """By Step Law's own formula."""
    rate = 1.79 * parameters**-0.713 * tokens**0.307
    return _nearest(cells, 0.58 * tokens**0.571 / SEQUENCE, rate)


def _best(cells: Sequence[Cell], batch_size: float) -> Cell:
    return min((cell for cell in cells if cell.batch_size == batch_size), key=lambda cell: cell.loss)


def _nearest(cells: Sequence[Cell], batch_size: float, learning_rate: float) -> Cell:
    def apart(cell: Cell) -> float:
        return math.hypot(math.log(cell.batch_size / batch_size), math.log(cell.learning_rate / learning_rate))

    return min(cells, key=apart)


def outcome(chosen: Cell, cells: Sequence[Cell]) -> dict[str, float]:
    """What a choice costs, and how far it is from the best setting."""
    best = min(cells, key=lambda cell: cell.loss)
    return {
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
        "regret": chosen.loss / best.loss - 1.0,
        "batch_octaves": math.log2(chosen.batch_size / best.batch_size),
        "rate_octaves": math.log2(chosen.learning_rate / best.learning_rate),
    }


def rows_of(parameters: float, tables: Mapping[float, Sequence[Cell]]) -> list[dict[str, Any]]:
    """All that is measured of one model size: a row for each D that was not fitted."""
    told = sorted(tables)[:FITTED]
    begin = time.process_time()
    law = fitted([cell for d in told for cell in usable(tables[d])])
    seconds = time.process_time() - begin
    rows = []
    for tokens in sorted(tables)[FITTED:]:
        cells = tables[tokens]
        points = points_of(cells)
        found = law.log_losses(points)[0]
        bare = points.of(losses(law.rows[:1], law.frame, points.courses))[0]
        near = points.log_losses < points.log_losses.min() + 0.02
        best = min(cells, key=lambda cell: cell.loss)
        rows.append({
            "parameters": parameters,
            "tokens": tokens,
            "fitted_tokens": told,
            "settings": len(cells),
            "best": {"batch_size": best.batch_size, "learning_rate": best.learning_rate, "loss": best.loss},
            "fit_seconds": seconds,
            "level_error": float(np.median((found - points.log_losses)[near])),
            "schedule_law": outcome(cells[int(np.argmin(found))], cells),
            "schedule_law_alone": outcome(cells[int(np.argmin(bare))], cells),
            "three_term_law": outcome(three_term_choice(tables, told, cells), cells),
            "step_law": outcome(step_law_choice(parameters, tokens, cells), cells),
        })  # fmt: skip
    return rows


CHOICES = ("schedule_law", "schedule_law_alone", "three_term_law", "step_law")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the rows, by law."""
    found = {}
    for law in CHOICES:
        regrets, rates, sizes = (
            np.array([row[law][key] for row in rows]) for key in ("regret", "rate_octaves", "batch_octaves")
        )
        found[law] = {
            "mean_regret": float(regrets.mean()),
            "worst_regret": float(regrets.max()),
            "rate_within_an_octave": float(np.mean(np.abs(rates) < 1.01)),
            "batch_within_an_octave": float(np.mean(np.abs(sizes) < 1.01)),
        }
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    path = Path(os.environ.get("BATCHOPT_DATA", ".")) / TABLE
    if not path.exists():
        print(f"skipped: no {path}; BATCHOPT_DATA names the folder that holds {TABLE}")
        return
    tables = read(path)
    rows = []
    for parameters in sorted(tables):
        for row in rows_of(parameters, tables[parameters]):
            rows.append(row)
            print(_line(row), flush=True)
    result = {"machine": machine(), "rows": rows, "summary": summary(rows)}
    for law, found in result["summary"].items():
        print(f"{law:20}", "  ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in found.items()))
    save(args.output, result)


def _line(row: Mapping[str, Any]) -> str:
    best = row["best"]
    parts = [
        f"N {row['parameters'] / 1e6:5.0f}M  D {row['tokens'] / 1e9:5.1f}B  best {best['batch_size']:5.0f} "
        f"{best['learning_rate']:.5f}  level {row['level_error']:+.3f}"
    ]
    for law in CHOICES:
        found = row[law]
        parts.append(
            f"{law} {found['batch_size']:.0f} {found['learning_rate']:.5f} regret {100.0 * found['regret']:.2f} %"
        )
    return "  ".join(parts)


if __name__ == "__main__":
    main()
