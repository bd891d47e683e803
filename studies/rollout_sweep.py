"""Critical batch size of a task whose model acts, by brute force: batch sizes times learning rates times seeds.

Every run keeps its learning rate. Runs are kept as they end, and the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from batchopt import LossCurve, NonFiniteLossError, TrainingTask, fit_tradeoff
from batchopt.probing.run import TrainingRun
from batchopt.tradeoff import TradeoffFit


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept.

    Attributes:
        learning_rates: of every batch size, in examples.
        seeds: of every setting.
        most_steps: of a run.
        most_examples: of a run.
        scores: each rising; a run ends where it has reached the last.
        evaluation_ratio: evaluations are this factor apart in steps, or a step.
        first_evaluation: examples before the first one of a model that has been trained.
    """

    learning_rates: Mapping[int, tuple[float, ...]]
    seeds: tuple[int, ...]
    most_steps: int
    most_examples: int
    scores: tuple[float, ...]
    evaluation_ratio: float = 1.15
    first_evaluation: int = 0


def run_sweeps(description: str, folder: Path, tasks: Mapping[str, TrainingTask], grids: Mapping[str, Grid]) -> None:
    """Run the command line of a study: sweep games, and print what was found.

    Args:
        description: of the command.
        folder: the study's, for the file of the runs.
        tasks: by the name of a game.
        grids: likewise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--games", nargs="*", default=list(grids), choices=list(grids))
    parser.add_argument("--smoke", action="store_true", help="one step of one run, which only shows that it works")
    args = parser.parse_args()
    if args.smoke:
        name = args.games[0]
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(sweep(tasks[name], _smallest(grids[name]), Path(temporary) / "sweep.jsonl")))
        return
    for name in args.games:
        print(f"# {name}")
        tell(sweep(tasks[name], grids[name], folder / f"sweep-{name}.jsonl", workers=args.workers), grids[name])


def _smallest(grid: Grid) -> Grid:
    size, rates = next(iter(grid.learning_rates.items()))
    return replace(grid, learning_rates={size: rates[:1]}, seeds=(0,), most_steps=1, first_evaluation=0)


def sweep(task: TrainingTask, grid: Grid, path: Path, *, workers: int = 1) -> list[dict[str, Any]]:
    """All runs of a grid, as rows of batch size, rate, seed, and the examples at which each score was reached."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["batch_size"], row["learning_rate"], row["seed"]) for row in rows}
    ranks = list(zip_longest(*grid.learning_rates.values()))  # a rate of every batch size, then the next of every one
    settings = [(b, r) for rates in ranks for b, r in zip(grid.learning_rates, rates, strict=True) if r is not None]
    wanted = [(b, r, s) for s in grid.seeds for b, r in settings]
    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    for row in parallel(delayed(_run)(task, grid, *each) for each in wanted if each not in done):
        rows.append(row)
        path.parent.mkdir(exist_ok=True, parents=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return rows


def _run(task: TrainingTask, grid: Grid, batch_size: int, rate: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    began = time.process_time()
    run, rollouts = TrainingRun(task, learning_rate=rate, seed=seed), task.data
    losses = [rollouts.loss_of(score) for score in grid.scores]
    examples, measured, outcome = [0], [run.evaluate()], "finished"
    most = min(grid.most_steps, grid.most_examples // batch_size)
    try:
        while run.steps < most and LossCurve(tuple(examples), tuple(measured)).examples_to(losses[-1]) is None:
            before_first = math.ceil(grid.first_evaluation / batch_size) - run.steps
            for _ in range(max(1, round((grid.evaluation_ratio - 1.0) * run.steps), before_first)):
                run.step(batch_size)
            examples.append(run.examples_seen)
            measured.append(run.evaluate())
    except NonFiniteLossError:
        outcome = "diverged"
    curve = LossCurve(tuple(examples), tuple(measured))
    return {
        "batch_size": batch_size, "learning_rate": rate, "seed": seed, "outcome": outcome,
        "reached": {f"{score:g}": curve.examples_to(loss) for score, loss in zip(grid.scores, losses, strict=True)},
        "scores": [[n, round(rollouts.score_of(loss), 3)] for n, loss in zip(examples, measured, strict=True)],
        "examples": examples[-1], "best": rollouts.score_of(min(measured)), "seconds": time.process_time() - began,
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


def critical_batch_sizes(rows: Sequence[dict[str, Any]], scores: Sequence[float]) -> dict[float, TradeoffFit]:
    """The hyperbola through the fewest steps of each batch size, of every score that three of them reach.

    The rate of each batch size is that with the lowest median over seeds; all of its seeds that arrived are points.
    """
    found = {}
    for score in scores:
        points = [
            (size, examples / size)
            for size, seeds in fewest_examples(rows, score).items()
            for examples in seeds
            if math.isfinite(examples)
        ]
        if len({size for size, _ in points}) >= 3:
            found[score] = fit_tradeoff(*map(list, zip(*points, strict=True)))
    return found


def tell(rows: Sequence[dict[str, Any]], grid: Grid) -> None:
    """Print what each batch size took, and the critical batch sizes."""
    for score in grid.scores:
        for size, seeds in fewest_examples(rows, score).items():
            told = ", ".join("-" if math.isinf(n) else f"{n:,.0f}" for n in sorted(seeds))
            print(f"score {score:g}, batch size {size}: {told} examples")
    for score, fit in critical_batch_sizes(rows, grid.scores).items():
        print(say_fit(score, fit))


def say_fit(score: float, fit: TradeoffFit) -> str:
    """The critical batch size to a score, in words."""
    return f"score {score:g}: critical batch size {fit.critical_batch_size}"
