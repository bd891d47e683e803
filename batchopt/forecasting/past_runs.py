"""Runs that were trained before: whether they go together, and as what a probe's would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve, TrainingLosses
from batchopt.learning_rate_schedule import LearningRateSchedule

UNLIKE = 1.3
"""Runs of one task begin at losses that differ by less than this factor: nats and bits differ by 1.44."""
SURE = 3.0
"""Errors of the loss of a first batch by which it may be off."""
LEAST_POINTS = 3
"""Losses after initialisation that a run needs, to tell a course."""
EARLY_DECAY = 0.5
"""A rate that falls from before this share of the horizon on is looked at in two parts, cut there."""


def check_past_runs(runs: Sequence[Branch], *, initial_loss: float | None, probed: float | None = None) -> None:
    """Raise unless runs can be of one task, and say anything.

    Args:
        runs: as they were trained.
        initial_loss: at initialisation, where the caller says it.
        probed: what a probe measured of it; None where there are no runs beside these.

    Raises:
        EvidenceError: there are too few, one is given twice, they begin at losses too unlike each other or the probe's,
            or none of them falls.
        TypeError: one is no Branch.
    """
    for run in runs:
        if not isinstance(run, Branch):
            raise TypeError(f"runs must hold Branches, as logged_run and read_runs make them, got {type(run).__name__}")
    _check_once(runs)
    alive = [run for run in runs if run.outcome != "diverged" and _points(run) >= LEAST_POINTS]
    least = 2 if probed is None else 1
    if len(alive) < least:
        raise EvidenceError(
            f"a forecast needs {least} or more runs that did not diverge, with {LEAST_POINTS} losses each "
            f"after initialisation, got {len(alive)} of {len(runs)}: give more, or runs that were logged more often"
        )
    begun = [(*loss, f"that of {_named(run)}") for run in runs if (loss := _first_loss(run)) is not None]
    if probed is not None:
        begun.insert(0, (probed, 0.0, "the probe's"))
    if initial_loss is None and not begun:
        raise EvidenceError(
            "the loss at initialisation is needed, and no run has one at 0 examples or of its first batch: give "
            "initial_loss (--initial-loss), that of an untrained model (of even guesses among k classes it is log k)"
        )
    if initial_loss is None:
        _check_alike(begun)
        initial_loss = sorted(loss for loss, _, _ in begun)[len(begun) // 2]
    if all(run.last_loss >= (_first_loss(run) or (initial_loss,))[0] for run in alive):
        raise EvidenceError(
            f"no run's loss falls (that of {_named(alive[0])} ends at {alive[0].last_loss:.4g}): give a loss, which is "
            "better the lower it is, not an accuracy or a reward; or give runs at lower learning rates"
        )


def _check_once(runs: Sequence[Branch]) -> None:
    """Raise EvidenceError where two runs are one; that the same setting failed in the same way twice is no wonder."""
    seen = set()
    for run in runs:
        if run in seen and run.outcome != "diverged":
            raise EvidenceError(
                f"each run counts once, and that of {_named(run)} and seed {run.seed}, which ends at "
                f"{run.last_loss:.4g}, is given twice: leave one out"
            )
        seen.add(run)


def _check_alike(begun: Sequence[tuple[float, float, str]]) -> None:
    """Raise unless losses, each with its error and whose it is, are about the same."""
    low, above, lowest = min(begun, key=lambda each: each[0] + SURE * each[1])
    high, below, highest = max(begun, key=lambda each: each[0] - SURE * each[1])
    if high - SURE * below > UNLIKE * (low + SURE * above):
        raise EvidenceError(
            f"runs of one task must begin at about the same loss, and {lowest} begins at {low:.4g}, {highest} at "
            f"{high:.4g}: are some in bits, sums, or of other data? Bring them to one unit, or give initial_loss "
            "(--initial-loss) if they do belong together"
        )


def parted(runs: Sequence[Branch]) -> list[Branch]:
    """Runs as a probe makes them: a stable run, and what comes after it once the rate falls.

    The losses of a run's own batches are averaged over parts of its course, and a decay must not be averaged with what
    came before it.
    """
    return [part for run in runs for part in _parts(run)]


def _parts(run: Branch) -> list[Branch]:
    falls, schedule = run.falls, run.learning_rate_schedule
    if run.outcome == "diverged" or falls is None or schedule is None:
        return [run]
    cut = max(falls[0], EARLY_DECAY * min(falls[1], run.examples))
    before, after = _between(run, -1.0, cut), _between(run, cut, float("inf"))
    if cut == falls[0]:
        before = replace(before, learning_rate_schedule=_until(schedule, falls[0]))
    return [part for part in (before, after) if part.examples]


def _between(run: Branch, low: float, high: float) -> Branch:
    """A run with the losses above `low` examples, up to `high`."""
    curve = [pair for pair in zip(run.curve.examples, run.curve.losses, strict=True) if low < pair[0] <= high]
    training = run.training
    if training is not None:
        rows = zip(training.examples, training.losses, training.errors, strict=True)
        kept = [row for row in rows if low < row[0] <= high]
        training = TrainingLosses(*zip(*kept, strict=True)) if kept else None
    evaluated = LossCurve(tuple(n for n, _ in curve), tuple(loss for _, loss in curve))
    return replace(run, curve=evaluated, training=training)


def _until(schedule: LearningRateSchedule, end: int) -> LearningRateSchedule | None:
    """A schedule up to where it begins to fall; None where it is constant up to there."""
    kept = [pair for pair in zip(schedule.examples, schedule.multipliers, strict=True) if pair[0] <= end]
    if all(multiplier == 1.0 for _, multiplier in kept):
        return None
    return LearningRateSchedule(*zip(*kept, strict=True))


def _points(run: Branch) -> int:
    places = set(run.curve.examples) | set(run.training.examples if run.training else ())
    return sum(n > 0 for n in places)


def _first_loss(run: Branch) -> tuple[float, float] | None:
    """The loss at initialisation and its error; None where the run was not looked at by then."""
    if run.curve.examples[:1] == (0,):
        return run.curve.losses[0], 0.0
    training = run.training
    if training is not None and training.examples and training.examples[0] < run.batch_size:
        return training.losses[0], training.errors[0]
    return None


def _named(run: Branch) -> str:
    return f"batch size {run.batch_size} at learning rate {run.learning_rate:.3g}"
