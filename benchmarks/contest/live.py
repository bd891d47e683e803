"""Trials that train while they are searched, on seeds that no sweep has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from truth.curves import Run
from truth.design import PRICE
from truth.problems import PROBLEMS, make
from truth.tradeoff import sweep_of
from truth.training import EVALUATION_RATIO, FIRST_EVALUATION_STEPS, ended, whole_steps

from batchopt.errors import NonFiniteLossError
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun
from contest.replay import BATCH_SIZE, LEARNING_RATE, MOST_COSTS, Arena, Report, Trace, sweep_arena, trace_of

FIRST_SEED = 100
"""Above those of sweeps and probes."""


def live_arena(name: str, seed: int) -> Arena:
    """A problem with a seed of its own, over the ranges of a replay.

    Costs are in units of the best configuration of the sweep, by its mean over the sweep's seeds: a lucky seed gets
    there sooner, an unlucky one may not get within 20 % at all.
    """
    best = _best(name)

    def play(params: Mapping[str, Any]) -> Trace:
        # It has what a trace has, and trains when it is asked.
        return cast(
            Trace, LiveTrace(name, 2 ** int(params[BATCH_SIZE]), params[LEARNING_RATE], FIRST_SEED + seed, best)
        )

    return replace(sweep_arena(name, seed), best=best, play=play)


@cache
def _best(name: str) -> float:
    logs: dict[tuple[int, float], list[float]] = {}
    for run in sweep_of(name).runs:
        cost = run.examples_to(PROBLEMS[name].losses[-1]) / run.batch_size * PRICE(run.batch_size)
        logs.setdefault((run.batch_size, run.learning_rate), []).append(math.log(cost))
    most = max(map(len, logs.values()))
    return math.exp(min(float(np.mean(costs)) for costs in logs.values() if len(costs) == most))


class LiveTrace:
    """A trial that trains as its reports are asked for: while they are iterated, and no further."""

    def __init__(self, problem: str, batch_size: int, learning_rate: float, seed: int, best: float) -> None:
        torch.set_num_threads(1)
        task, _ = make(problem)
        self.batch_size = batch_size
        self.reports = _Reports(self)
        self._run = TrainingRun(task, learning_rate=learning_rate, seed=seed)
        self._loss, self._best = PROBLEMS[problem].losses[-1], best
        most = math.ceil(MOST_COSTS * best / PRICE(batch_size)) * batch_size
        first = max(FIRST_EVALUATION_STEPS * batch_size, 64)
        points = evaluation_points(max(most, first), first=first, ratio=EVALUATION_RATIO)
        self._points = iter(whole_steps(points, batch_size))
        self._curve: list[tuple[int, float]] = []
        self._outcome: str | None = None

    @property
    def end(self) -> float:
        """As of a trace, once it has ended."""
        return self._so_far().end

    @property
    def reached(self) -> bool:
        """As of a trace, once it has ended."""
        return self._so_far().reached

    @property
    def ratio(self) -> float:
        """As of a trace, once it has ended."""
        return self._so_far().ratio

    @property
    def last_loss(self) -> float:
        """As of a trace, once it has ended."""
        return self._so_far().last_loss

    def train(self) -> Iterator[Report]:
        """The reports, as training comes to them."""
        told = 0
        while self._outcome is None:
            self._to_next_evaluation()
            losses = [loss for _, loss in self._curve]
            if not losses or (self._outcome is None and min(losses) <= self._loss):
                continue  # where the run reached the loss shows a little later
            reports = self._so_far().reports
            yield from reports[told:]
            told = max(told, len(reports))

    def _to_next_evaluation(self) -> None:
        until = next(self._points, None)
        if until is None:
            self._outcome = "stopped"
            return
        try:
            while self._run.examples_seen < until:
                self._run.step(self.batch_size)
            loss = self._run.evaluate()
        except NonFiniteLossError:
            self._outcome = "diverged"
            return
        self._curve.append((self._run.examples_seen, loss))
        self._outcome = ended([loss for _, loss in self._curve], self._run.examples_seen, self._loss, 0, None)

    def _so_far(self) -> Trace:
        examples, losses = zip(*self._curve, strict=True)
        run = Run(
            self.batch_size, self._run.learning_rate, self._run.seed, 0, self._outcome or "stopped",
            examples, losses, losses,
        )  # fmt: skip
        ratio = run.examples_to(self._loss) / self.batch_size * PRICE(self.batch_size) / self._best
        return trace_of(run, loss=self._loss, best=self._best, ratio=ratio)


class _Reports:
    def __init__(self, trace: LiveTrace) -> None:
        self._trace, self._told = trace, list[Report]()

    def __iter__(self) -> Iterator[Report]:
        for report in self._trace.train():
            self._told.append(report)
            yield report

    def __getitem__(self, index: int) -> Report:
        return self._told[index]
