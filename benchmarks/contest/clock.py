"""Trials of one study by several workers on a simulated clock: a trial lasts as long as it costs."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import optuna
from optuna.trial import TrialState

from contest.replay import Arena, Trace

MOST_TRIALS = 150
MORE_TRIALS = 5
"""After the first mark a search goes on for so many trials, to meet the second."""
WITHIN = (1.2, 1.1)


class Form(Protocol):
    """How a contestant is told of a trial: what it reports, and what it returns."""

    def report(self, trial: optuna.Trial, trace: Trace, index: int) -> None:
        """Report number `index` of the trace."""

    def value(self, trace: Trace) -> float | None:
        """The objective's value at the end; None for a trial that stopped short and is pruned."""

    def refuses(self, trial: optuna.Trial) -> bool:
        """Whether the trial ends before any compute."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search did.

    Attributes:
        spent: all training until a completed trial was within 20 and 10 % of the best configuration, in units of its
            cost; None where none was.
        total: all training in the end, in the same units.
        trials: number of trials.
    """

    spent: tuple[float | None, ...]
    total: float
    trials: int


def search(arena: Arena, study: optuna.Study, form: Form, *, workers: int = 1) -> Outcome:
    """Run a study until both marks are met, or for `MOST_TRIALS` trials, or `MORE_TRIALS` after the first mark."""
    spent, trials = [0.0], itertools.count()
    found: list[float | None] = [None] * len(WITHIN)
    order = itertools.count()  # trials that are due at the same time go in the order of their start
    due: list[tuple[float, int, Iterator[tuple[float, Trace | None]]]] = []
    for _ in range(workers):
        heapq.heappush(due, (0.0, next(order), _trials(arena, study, form, trials)))
    first_at = MOST_TRIALS
    while due and found[-1] is None and len(study.get_trials(deepcopy=False)) <= first_at + MORE_TRIALS:
        now, place, worker = heapq.heappop(due)
        step = next(worker, None)
        if step is None:
            continue
        cost, finished = step
        spent[0] += cost
        if finished is not None:
            for i, within in enumerate(WITHIN):
                if found[i] is None and finished.ratio <= within:
                    found[i] = spent[0] / arena.best
            if found[0] is not None and first_at == MOST_TRIALS:
                first_at = len(study.get_trials(deepcopy=False))
        heapq.heappush(due, (now + cost, place, worker))
    return Outcome(tuple(found), spent[0] / arena.best, len(study.get_trials(deepcopy=False)))


def _trials(
    arena: Arena, study: optuna.Study, form: Form, numbers: Iterator[int]
) -> Iterator[tuple[float, Trace | None]]:
    """One worker's trials, as (cost since the last event, the trace of a trial that completed just now)."""
    while next(numbers) < MOST_TRIALS:
        trial = study.ask()
        params = {name: _suggest(trial, name, space) for name, space in arena.space.items()}
        if form.refuses(trial):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        trace = arena.play(params)
        at, pruned = 0.0, False
        for index, report in enumerate(trace.reports):
            yield report.cost - at, None
            at = report.cost
            form.report(trial, trace, index)
            if trial.should_prune():
                pruned = True
                break
        if pruned:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        yield trace.end - at, None
        value = form.value(trace)
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
        yield 0.0, trace if trace.reached else None


def _suggest(trial: optuna.Trial, name: str, space: optuna.distributions.BaseDistribution) -> float:
    if isinstance(space, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    assert isinstance(space, optuna.distributions.FloatDistribution)
    return trial.suggest_float(name, space.low, space.high, log=space.log)
