"""The brute-force sweep: which runs a problem still needs, and running them, resumably and in parallel."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from truth.curves import FOLDER, Run, pack, unpack
from truth.problems import PROBLEMS, Problem
from truth.training import train

Config = tuple[int, float, int]
"""Batch size, learning rate, seed."""


def sweep(name: str, *, workers: int = 2) -> list[Run]:
    """Run what the sweep of a problem lacks, and pack its curves.

    Each run is kept as it ends, so that an interrupted sweep goes on where it stopped.
    """
    problem, kept = PROBLEMS[name], Kept(name)
    while wanted := missing(problem, kept.runs):
        print(f"{name}: {len(kept.runs)} runs done, {len(wanted)} to go", flush=True)
        # Jobs are made as workers become free, so that each knows the fastest run before it: high rates go first.
        jobs = (
            delayed(train)(
                name, batch_size=size, learning_rate=rate, seed=seed, pace=fastest(problem, kept.runs, size)
            )
            for size, rate, seed in _fast_first(wanted)
        )  # fmt: skip
        for run in Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="n_jobs")(jobs):
            kept.add(run)
    pack(kept.runs, FOLDER / f"{name}.npz")
    return kept.runs


def _fast_first(wanted: Sequence[Config]) -> list[Config]:
    """The highest learning rate of every batch size, then the second highest, and so on."""
    rates = {size: sorted({rate for s, rate, _ in wanted if s == size}, reverse=True) for size, _, _ in wanted}
    return sorted(wanted, key=lambda config: (config[2], rates[config[0]].index(config[1]), config[0]))


class Kept:
    """The runs of a sweep that are done: those packed in the repository, and a journal of those that are not yet."""

    def __init__(self, name: str) -> None:
        self._journal = Path(__file__).parent / "out" / f"{name}.jsonl"
        packed = FOLDER / f"{name}.npz"
        runs = {run.key: run for run in unpack(packed)} if packed.exists() else {}
        if self._journal.exists():
            for line in self._journal.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # an interrupted write leaves part of a line
                    run = _run(json.loads(line))
                    runs[run.key] = run
        self.runs = list(runs.values())

    def add(self, run: Run) -> None:
        """Keep a run."""
        self._journal.parent.mkdir(exist_ok=True)
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        self.runs.append(run)


def _run(fields: dict[str, object]) -> Run:
    return Run(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def missing(problem: Problem, runs: Sequence[Run]) -> list[Config]:
    """The runs that a sweep needs next: none when it is complete.

    For the first seed, the grid of learning rates of each batch size grows until the best rate for every loss has a
    neighbour on both sides. The other seeds run the same grid, which then grows until that holds for the mean over
    seeds.
    """
    return _missing_rates(problem, runs, seeds=problem.seeds[:1]) or _missing_rates(problem, runs, seeds=problem.seeds)


def _missing_rates(problem: Problem, runs: Sequence[Run], *, seeds: tuple[int, ...]) -> list[Config]:
    done = {run.key[:3] for run in runs}
    wanted = set()
    for size in problem.batch_sizes:
        own = [run for run in runs if run.batch_size == size and run.seed in seeds]
        rates = sorted({run.learning_rate for run in own} | _neighbours(problem, own, seeds)) or _first_rates(
            problem, size
        )
        wanted |= {(size, rate, seed) for rate in rates for seed in seeds} - done
    return sorted(wanted)


def _first_rates(problem: Problem, size: int) -> list[float]:
    """Three rates around the problem's first, which goes with the root of the batch size."""
    shift = round(0.5 * math.log2(size / problem.middle_batch_size))
    return [problem.learning_rate * 2.0 ** (shift + k) for k in (-1, 0, 1)]


def _neighbours(problem: Problem, runs: Sequence[Run], seeds: tuple[int, ...]) -> set[float]:
    """The best rate for every loss, and the rates beside it."""
    complete = _complete(runs, seeds)
    best = [min(complete, key=lambda rate: rank(complete[rate], loss)) for loss in problem.losses if complete]
    return {on_grid(problem, rate, step) for rate in best for step in (-1, 0, 1)}


def on_grid(problem: Problem, rate: float, step: int) -> float:
    """The rate so many steps beyond another, on the problem's grid: exactly the same number however it is reached."""
    per_octave = problem.rates_per_octave
    index = round(per_octave * math.log2(rate / problem.learning_rate)) + step
    return problem.learning_rate * 2.0 ** (index / per_octave)


def _complete(runs: Iterable[Run], seeds: tuple[int, ...]) -> dict[float, list[Run]]:
    """Runs by learning rate, of rates that all seeds have run."""
    by_rate: dict[float, list[Run]] = defaultdict(list)
    for run in runs:
        by_rate[run.learning_rate].append(run)
    return {rate: group for rate, group in by_rate.items() if {run.seed for run in group} >= set(seeds)}


def rank(runs: Sequence[Run], loss: float) -> tuple[bool, float]:
    """Sorts groups of runs of one configuration: by the mean log examples to a loss, those that miss it by how far."""
    reached = [run.examples_to(loss) for run in runs]
    if all(map(math.isfinite, reached)):
        return False, float(np.mean(np.log(np.maximum(reached, 1.0))))
    return True, float(np.mean([_last_loss(run) for run in runs]))


def _last_loss(run: Run) -> float:
    """Log of the lowest loss; a diverged run ranks by how soon it diverged, after all others."""
    return 1e3 - math.log(run.examples[-1] + 1.0) if run.outcome == "diverged" else math.log(min(run.losses))


def fastest(problem: Problem, runs: Sequence[Run], size: int) -> Run | None:
    """The run at a batch size that reached the lowest of the problem's losses, and did so first."""
    own = [run for run in runs if run.batch_size == size and run.outcome != "diverged"]
    for loss in reversed(problem.losses):
        reached = [run for run in own if math.isfinite(run.examples_to(loss))]
        if reached:
            return min(reached, key=lambda run: run.examples_to(loss))
    return None
