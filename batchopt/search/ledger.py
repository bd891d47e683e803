"""What a study holds, read once: a finished trial does not change, and no question reads ten thousand of them anew.

Kept beside the storage that it was read from, for as long as that lives. It is derived from the trials alone, so a
process that starts without it decides the same.
"""

from __future__ import annotations

import bisect
import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from batchopt.search.misreading import AT_ONCE, misread, reached_at_once, rises, the_other_way
from batchopt.search.observations import (
    AS_IT_IS,
    MOST_CURVES,
    Observation,
    counts_steps,
    diverged,
    memory_bound,
    observe_one,
    rank,
    reading_of,
    returns_loss,
    setting_of,
)
from batchopt.search.saying import warn_once

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

    from batchopt.planning.goal import LossGoal
    from batchopt.search.settings import StudySettings

EVERY_TRIAL_UNTIL, REFIT_SHARE = 48, 0.1
"""The fit is renewed with every trial in short studies, later when their number has grown by a share (5 to 10 %)."""
LEAST_ROSE = 3
"""Trials that must show it before a study is said to be the wrong way round."""
_KNOWN = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(slots=True)
class Ledger:
    """The finished trials of a study that have both parameters.

    Attributes:
        study_name: of the study.
        settings: that say which parameters those are.
        read: numbers of all finished trials so far, and their identity in the storage, which may give a deleted study's
            numbers to another.
        trials: those that completed or were pruned, by number.
        numbers: of those, rising.
        ranked: (value, number), the best first.
        longest: (minus the last step, number), the longest first.
        diverged: numbers, rising.
        shared: names of the parameters that all have which began to train; None before there is one. A trial that was
            pruned before compute may not have suggested them all.
        latest: the one of those with the highest number; None before there is one.
        largest_batch_size: largest that no trial has shown to exceed memory; None where none has.
        misread: how many completed trials report or return what cannot be.
        at_once: how many others were at the goal's loss at their first report.
        rose: how many trials reported what rose where it should fall.
        fell: how many others reported often enough to tell.
        observations: of trials that were asked for, by number.
    """

    study_name: str
    settings: StudySettings
    read: dict[int, tuple[int, datetime | None]] = field(default_factory=dict)
    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    ranked: list[tuple[float, int]] = field(default_factory=list)
    longest: list[tuple[int, int]] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)
    shared: frozenset[str] | None = None
    latest: FrozenTrial | None = None
    largest_batch_size: int | None = None
    misread: int = 0
    at_once: int = 0
    rose: int = 0
    fell: int = 0
    observations: dict[int, Observation] = field(default_factory=dict)

    def add(self, trial: FrozenTrial) -> None:
        """Read a finished trial."""
        self.read[trial.number] = _identity(trial)
        told, trial = trial, self.settings.in_losses(trial)
        setting = setting_of(trial, self.settings, self.study_name) if trial.state in _KNOWN else None
        if setting is None:
            return
        self.trials[trial.number] = trial
        bisect.insort(self.numbers, trial.number)
        bisect.insort(self.ranked, (rank(trial), trial.number))
        bisect.insort(self.longest, (-(trial.last_step or 0), trial.number))
        if diverged(trial):
            bisect.insort(self.diverged, trial.number)
        if _has_begun(trial):
            names = frozenset(trial.params)
            self.shared = names if self.shared is None else self.shared & names
            self.latest = trial if self.latest is None else max(self.latest, trial, key=lambda one: one.number)
        self.largest_batch_size = _least(self.largest_batch_size, memory_bound(trial, setting[0]))
        if trial.state == TrialState.COMPLETE:
            self._look_at(trial, told, setting[0])
        self._look_at_rise(trial)

    def _look_at_rise(self, trial: FrozenTrial) -> None:
        """Say that the study is the wrong way round, where most trials show it: a rate that is too high does, too."""
        rose = rises(trial, is_metric=self.settings.metric is not None)
        self.rose += rose is True
        self.fell += rose is False
        if self.rose >= LEAST_ROSE and self.rose > 2 * self.fell:
            warn_once(
                f"Study {self.study_name}: trial {trial.number}, as most before: {the_other_way(self.settings)}",
                about=f"{self.study_name} rises",
            )

    def _look_at(self, trial: FrozenTrial, told: FrozenTrial, batch_size: int) -> None:
        """Say what cannot be right in a completed trial, read as losses and as it was told."""
        goal, reading, metric = self.settings.goal, reading_of(self.settings), self.settings.metric
        if (least := min(trial.values)) <= 0:
            rule = f"it must be positive, got {least!r}" if metric is None else metric.rule(least)
            remedy = f": return it {AS_IT_IS}." if metric is None else "."
            warn_once(
                f"Study {self.study_name}: the value of trial {trial.number} does not count: {rule}. {reading}{remedy}",
                about=f"{self.study_name} value",
            )
        if returns_loss(trial, goal):
            what, other, value = "loss", "LowestLoss(", told.values[0]
            if metric is not None:
                what, other = "metric", f"BestMetric({metric.goal.metric!r}, "
            warn_once(
                f"Study {self.study_name}: the value of trial {trial.number} does not count: {value:.4g} is a {what} "
                f"that it reported. {reading}: return that cost. Where all trials train for as long and return their "
                f'{what}, the goal of the study is {other}within=..., of="examples"). Nor do others count.',
                about=f"{self.study_name} loss",
            )
        elif counts_steps(trial, batch_size) is None:
            self._look_at_reports(trial, batch_size, goal)

    def _look_at_reports(self, trial: FrozenTrial, batch_size: int, goal: LossGoal) -> None:
        """The same of its reports, only when it is the second such trial."""
        reading = reading_of(self.settings)
        wrong = misread(trial, batch_size, goal, self.settings.decay)
        self.misread += wrong is not None
        if wrong is not None and self.misread > 1:
            warn_once(
                f"Study {self.study_name}: trial {trial.number}, as one before: {wrong}. Report at the examples seen "
                f"(steps times batch size), not at steps or epochs, until the end. {reading}.",
                about=f"{self.study_name} examples",
            )
        at_once = wrong is None and reached_at_once(trial, goal)
        self.at_once += at_once
        if at_once and self.at_once > 1:
            warn_once(
                f"Study {self.study_name}: trial {trial.number}, as one before, was at the goal's loss at its first "
                f"report. {AT_ONCE}",
                about=f"{self.study_name} at once",
            )

    def most_telling(self, until: float = math.inf) -> list[Observation]:
        """The trials that say most, below a number, rising.

        The best completed trials and the longest runs take turns until the places are filled; the latest that diverged
        come on top, because they bound the learning rate.
        """
        chosen: set[int] = set()
        turns = zip(_below(self.ranked, until), _below(self.longest, until), strict=True)
        for number in (number for pair in turns for number in pair):
            if len(chosen) == MOST_CURVES:
                break
            chosen.add(number)
        chosen.update(self.diverged[: bisect.bisect_left(self.diverged, until)][-MOST_CURVES:])
        return [self._observation(number) for number in sorted(chosen)]

    def fitted_until(self) -> float:
        """The trial number below which trials are fitted: all at first, later only when their number has grown.

        One more trial among a hundred changes little, and a fit takes as long as a hundred proposals. What is the best
        trial and what fits in memory is read from all of them.
        """
        count = len(self.numbers)
        if count <= EVERY_TRIAL_UNTIL:
            return math.inf
        step = max(1, round(REFIT_SHARE * float(2 ** math.floor(math.log2(count)))))
        return float(self.numbers[count // step * step - 1] + 1)

    def _observation(self, number: int) -> Observation:
        if number not in self.observations:
            seen = observe_one(self.trials[number], self.settings, self.study_name)
            assert seen is not None  # it was read
            self.observations[number] = seen
        return self.observations[number]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the trials of a study that have both parameters say at one moment.

    Attributes:
        count: how many there are.
        told: the finished ones that say most, and those that are running, rising in number.
        fitted: those of them that the law is fitted to, and more of their age: a long study is not fitted anew for
            every trial. Of many that are running the longest are.
        latest: the trial that began to train with the highest number; None where there is none.
        shared: names of the parameters that all of those have.
        largest_batch_size: largest that no trial has shown to exceed memory; None where none has.
    """

    count: int
    told: tuple[Observation, ...]
    fitted: tuple[Observation, ...]
    latest: FrozenTrial | None
    shared: frozenset[str]
    largest_batch_size: int | None


_LEDGERS: weakref.WeakKeyDictionary[BaseStorage, dict[tuple[int, StudySettings], Ledger]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def seen_in(
    study: optuna.Study, settings: StudySettings, *, without: int | None = None, asking: int | None = None
) -> Seen:
    """What the whole study's trials say, whatever bracket of a pruner the caller sees.

    Args:
        study: or whatever stand-in of it a pruner's bracket shows.
        settings: of the study.
        without: number of a running trial to leave out.
        asking: number of a running trial that is fitted, however many others are.
    """
    every = study._storage.get_all_trials(study._study_id, deepcopy=False)
    with _LOCK:
        ledgers = _LEDGERS.setdefault(study._storage, {})
        key = (study._study_id, settings)
        ledger = ledgers.get(key)
        if ledger is None or not _is_of(ledger, every):
            ledger = ledgers[key] = Ledger(study.study_name, settings)
        running: list[tuple[FrozenTrial, Observation]] = []
        for trial in every:
            if trial.number in ledger.read:
                continue
            if trial.state.is_finished():
                ledger.add(trial)
            elif trial.state == TrialState.RUNNING and trial.number != without:
                seen = observe_one(settings.in_losses(trial), settings, study.study_name)
                running += [] if seen is None else [(trial, seen)]
        return _seen(ledger, running, asking)


def _seen(ledger: Ledger, running: Sequence[tuple[FrozenTrial, Observation]], asking: int | None) -> Seen:
    until = ledger.fitted_until()
    now = [seen for _, seen in running]
    furthest = sorted(now, key=lambda seen: (seen.number != asking, -max(seen.curve.examples, default=0), seen.number))
    told = ledger.most_telling()
    fitted = told if until == math.inf else ledger.most_telling(until)
    begun = [trial for trial, _ in running if _has_begun(trial)]
    latest = [*begun, *([] if ledger.latest is None else [ledger.latest])]
    shared = [frozenset(trial.params) for trial in begun] + ([] if ledger.shared is None else [ledger.shared])
    bounds = [memory_bound(trial, seen.batch_size) for trial, seen in running]
    return Seen(
        count=len(ledger.numbers) + len(running),
        told=_together(told, fitted, now),
        fitted=_together(fitted, furthest[:MOST_CURVES]),
        latest=max(latest, key=lambda trial: trial.number, default=None),
        shared=frozenset.intersection(*shared) if shared else frozenset(),
        largest_batch_size=_least(ledger.largest_batch_size, *bounds),
    )


def _together(*several: Iterable[Observation]) -> tuple[Observation, ...]:
    unique = {seen.number: seen for some in several for seen in some}
    return tuple(seen for _, seen in sorted(unique.items()))


def _has_begun(trial: FrozenTrial) -> bool:
    """Whether a trial began to train, so that all its parameters are there."""
    return trial.state == TrialState.COMPLETE or trial.last_step is not None


def _is_of(ledger: Ledger, every: Sequence[FrozenTrial]) -> bool:
    """Whether a ledger was read from these trials: a study that was deleted may have left its number to another."""
    last = next(reversed(ledger.read), None)
    return last is None or (last < len(every) and _identity(every[last]) == ledger.read[last])


def _identity(trial: FrozenTrial) -> tuple[int, datetime | None]:
    return trial._trial_id, trial.datetime_complete


def _below(order: Iterable[tuple[float, int]], until: float) -> Iterator[int]:
    return (number for _, number in order if number < until)


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)
