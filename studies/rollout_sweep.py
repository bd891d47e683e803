"""Critical batch size of a task whose model acts, by brute force: batch sizes times learning rates times seeds.

Every run keeps its learning rate. Runs are kept as they end, in the order of the grid, and the same call goes on where
it stopped.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from batchopt import Schedule, TrainingTask, train
from batchopt.training.result import TrainingDivergedError


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept.

    Attributes:
        batch_sizes: in examples.
        learning_rates: of every batch size.
        seeds: of every setting.
        most_steps: of a run.
        most_examples: of a run.
        scores: each rising; a run ends where it has reached the last.
    """

    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    most_steps: int
    most_examples: int
    scores: tuple[float, ...]


def sweep(task: TrainingTask, grid: Grid, path: Path, *, workers: int = 1) -> list[dict[str, Any]]:
    """All runs of a grid, as rows of batch size, rate, seed, and the examples at which each score was reached."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["batch_size"], row["learning_rate"], row["seed"]) for row in rows}
    wanted = [(b, r, s) for s in grid.seeds for b in grid.batch_sizes for r in grid.learning_rates]
    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    for row in parallel(delayed(_run)(task, grid, *each) for each in wanted if each not in done):
        rows.append(row)
        path.parent.mkdir(exist_ok=True, parents=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return rows


def _run(task: TrainingTask, grid: Grid, batch_size: int, rate: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    examples = min(grid.most_examples, grid.most_steps * batch_size)
    schedule = Schedule.constant(batch_size, examples=examples, learning_rate=rate)
    losses = [task.data.loss_of(score) for score in grid.scores]
    try:
        result, outcome = train(task, schedule, seed=seed, until_loss=losses[-1]), "finished"
    except TrainingDivergedError as error:
        result, outcome = error.result, "diverged"
    curve = result.curve
    return {
        "batch_size": batch_size, "learning_rate": rate, "seed": seed, "outcome": outcome,
        "reached": {f"{score:g}": curve.examples_to(loss) for score, loss in zip(grid.scores, losses, strict=True)},
        "examples": list(curve.examples), "scores": [task.data.score_of(loss) for loss in curve.losses],
        "seconds": result.seconds,
    }  # fmt: skip


def fewest_examples(rows: Sequence[dict[str, Any]], score: float) -> dict[int, list[float]]:
    """Of every batch size, what the seeds took at the rate that is best over them; only where most seeds arrived."""
    found: dict[int, list[float]] = {}
    for size in sorted({row["batch_size"] for row in rows}):
        own = [row for row in rows if row["batch_size"] == size]
        of_rates = [
            [row["reached"][f"{score:g}"] or math.inf for row in own if row["learning_rate"] == rate]
            for rate in sorted({row["learning_rate"] for row in own})
        ]
        best = min(of_rates, key=statistics.median)
        if math.isfinite(statistics.median(best)):
            found[size] = best
    return found
