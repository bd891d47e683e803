"""Short runs, in parallel: what a leg of a run is, and how a worker runs it.

Legs go through joblib, so any joblib backend serves (`joblib.parallel_config(backend=..., n_jobs=...)`). A worker gets
the task once, whatever the number of legs: in-process backends share the object; for others the task is written once,
by value, to a private folder, and each worker process reads it once.
"""

from __future__ import annotations

import math
import pickle
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import cloudpickle
from joblib import Parallel, delayed, effective_n_jobs

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.evidence import Branch, LossCurve, Spending, TrainingLosses
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.probing.data import evaluation_cost
from batchopt.probing.evaluation import HOPELESS, Evaluation, check_untrained
from batchopt.probing.journal import Journal, Part
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask
from batchopt.probing.training_losses import training_losses

EVALUATION_SHARE = 0.12
"""Share of a leg's budget that goes to evaluations; the rest of the curve is the losses of its own batches."""
EVALUATION_RATIO, MOST_EVALUATIONS = 2.0, 3
"""Evaluations of a leg are this factor apart in steps, and so many at most: what more of them would tell of the curve's
shape, the training losses do."""
FIRST_LOOK = 8
LOOK_RATIO = 1.5
"""Whether a run has diverged is looked at from its eighth step on, at steps this factor apart."""
COOLDOWN_WINDOWS = 8
"""Windows of a cooldown's training losses: of equal width, since the loss falls until the end."""
TIMED_STEPS = 8
"""Fewer steps say little of what a step takes: the first ones load and allocate what the others find."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One stretch of one run.

    Attributes:
        name: of the part in the journal.
        part: what the spending is filed under.
        batch_size: examples per step.
        learning_rate: the optimizer's, at its peak.
        budget: examples that the leg may spend, evaluations counted.
        step_price: what a step counts for, in examples.
        seed: of initialisation and data order.
        initial_loss: loss at initialisation; None if it is not known.
        continues: name of the leg that this one goes on from, or None.
        most_steps: steps that it may take at most, whatever its budget holds; None for no such bound.
        ends_evaluated: whether the loss is evaluated at the leg's end, even where that takes half of its budget; at a
            cooldown's only if so.
        cooldown_steps: steps over which the rate falls linearly to zero, from where `continues` ended; such a leg is
            a branch of its own, and leaves no snapshot. 0 for a leg at a constant rate.
        deadline: time.time() at which the leg stops; None for never.
    """

    name: str
    part: str
    batch_size: int
    learning_rate: float
    budget: float
    step_price: float
    seed: int
    initial_loss: float | None = None
    continues: str | None = None
    most_steps: int | None = None
    ends_evaluated: bool = False
    cooldown_steps: int = 0
    deadline: float | None = None


class SharedTask:
    """A task that is pickled at most once, however many legs are sent to workers."""

    _loaded: ClassVar[dict[str, TrainingTask]] = {}

    def __init__(self, task: TrainingTask, folder: Path) -> None:
        self.task = task
        self._file = folder / "task.pickle"

    def __getstate__(self) -> str:
        if not self._file.exists():
            self._file.write_bytes(cloudpickle.dumps(self.task))
        return str(self._file)

    def __setstate__(self, file: str) -> None:
        self._file = Path(file)
        if file not in self._loaded:
            self._loaded[file] = pickle.loads(self._file.read_bytes())
        self.task = self._loaded[file]


def run_legs(shared: SharedTask, legs: Sequence[Leg], journal: Journal) -> list[Part]:
    """Run the legs that have not finished, in parallel, and return all their results in order."""
    missing = [leg for leg in legs if journal.finished(leg.name) is None]
    if len(missing) == 1 or journal.group is not None:
        for leg in missing:
            _run_and_keep(shared, leg, journal)
    else:
        alone = effective_n_jobs(None) == 1
        Parallel()(delayed(_run_and_keep)(shared, leg, journal, alone=alone) for leg in missing)
    return [part for leg in legs if (part := journal.finished(leg.name)) is not None]


def _run_and_keep(shared: SharedTask, leg: Leg, journal: Journal, *, alone: bool = True) -> None:
    part = run_leg(shared.task, leg, journal)
    journal.keep(leg.name, part if alone else replace(part, step_seconds=None))


class _Trained(NamedTuple):
    """What a leg saw: losses of batches, seconds of their steps, evaluations by examples seen, and how it ended."""

    losses: list[float]
    seconds: list[float]
    evaluations: list[tuple[int, Evaluation]]
    outcome: Literal["finished", "stopped", "diverged"]
    failure: str | None


def run_leg(task: TrainingTask, leg: Leg, journal: Journal) -> Part:
    """Train one leg: the loss curve of its whole run so far, or of the cooldown, and what the leg spent."""
    began = time.perf_counter()
    run, before = _begin(task, leg, journal)
    cost, first_step = evaluation_cost(task), run.steps
    schedule = schedule_of(leg, warmup_examples=task.warmup_examples, begins_at=run.examples_seen)
    trained = _train(run, leg, schedule, cost)
    steps, evaluated = len(trained.losses), len(trained.evaluations) * cost
    spending = Spending(
        part=leg.part,
        examples=steps * float(leg.batch_size) + evaluated,
        steps=steps,
        seconds=time.perf_counter() - began,
        counted=steps * leg.step_price + evaluated,
    )
    if trained.outcome != "diverged" and not leg.cooldown_steps:
        save_snapshot(run, journal.snapshot(leg.name))
    windows = training_losses(
        trained.losses,
        batch_size=leg.batch_size,
        before=before.training if before else None,
        first_step=first_step,
        windows=COOLDOWN_WINDOWS if leg.cooldown_steps else None,
    )
    branch = _branch(leg, before, trained, windows, schedule)
    timed = statistics.median(trained.seconds) if steps >= TIMED_STEPS else None
    return Part(spending, branch=branch, examples_seen=run.examples_seen, step_seconds=timed, failure=trained.failure)


def _begin(task: TrainingTask, leg: Leg, journal: Journal) -> tuple[TrainingRun, Branch | None]:
    """The run, and its curve before this leg; a cooldown's holds only what comes after."""
    run = TrainingRun(task, learning_rate=leg.learning_rate, seed=leg.seed)
    if leg.continues is None:
        return run, None
    load_snapshot(run, journal.snapshot(leg.continues))
    part = None if leg.cooldown_steps else journal.finished(leg.continues)
    return run, part.branch if part else None


def schedule_of(leg: Leg, *, warmup_examples: int, begins_at: int) -> LearningRateSchedule | None:
    """The learning rate of a leg's run from initialisation on; None for a constant one.

    Args:
        leg: as it is meant, whether or not it gets that far.
        warmup_examples: of the task.
        begins_at: examples that the run has seen when the leg begins; a cooldown's come after the warm-up.
    """
    points = {0: 0.0, warmup_examples: 1.0} if warmup_examples else {0: 1.0}
    if leg.cooldown_steps:
        points |= {begins_at: 1.0, begins_at + leg.cooldown_steps * leg.batch_size: 0.0}
    elif not warmup_examples:
        return None
    return LearningRateSchedule(tuple(points), tuple(points.values()))


def _train(run: TrainingRun, leg: Leg, schedule: LearningRateSchedule | None, evaluation_cost: float) -> _Trained:
    first_step = run.steps
    losses: list[float] = []
    seconds: list[float] = []
    evaluations: list[tuple[int, Evaluation]] = []
    try:
        for until, evaluate in stops(leg, done=first_step, evaluation_cost=evaluation_cost):
            while run.steps < until and not _too_late(leg, run):
                began = time.perf_counter()
                losses.append(run.step(leg.batch_size, multiplier=_multiplier(leg, schedule, run.examples_seen)))
                seconds.append(time.perf_counter() - began)
            if evaluate and losses:
                evaluations.append((run.examples_seen, _evaluated(run)))
            if _has_diverged(losses, leg.initial_loss):
                return _Trained(losses, seconds, evaluations, "diverged", None)
            if _too_late(leg, run):
                return _Trained(losses, seconds, evaluations, "stopped", None)
    except NonFiniteLossError as error:
        check_untrained(run, leg.batch_size)
        return _Trained(losses, seconds, evaluations, "diverged", str(error))
    return _Trained(losses, seconds, evaluations, "finished", None)


def _evaluated(run: TrainingRun) -> Evaluation:
    """The evaluated loss and metrics.

    Raises:
        NonFiniteLossError: one is NaN or infinite, and was not before any training: the run has diverged.
        TaskError: it is so before any training as well.
    """
    try:
        return run.evaluation()
    except NonFiniteLossError:
        _check_untrained(run)
        raise


def _check_untrained(run: TrainingRun) -> None:
    untrained = TrainingRun(run.task, learning_rate=run.learning_rate, seed=run.seed)
    try:
        untrained.evaluation()
    except NonFiniteLossError as error:
        raise TaskError(str(error)) from None


def _multiplier(leg: Leg, schedule: LearningRateSchedule | None, examples: int) -> float:
    """Of the step that begins after so many examples; the run warms up by itself."""
    if schedule is None or not leg.cooldown_steps:
        return 1.0
    return schedule(examples + 0.5 * leg.batch_size)


def stops(leg: Leg, *, done: int, evaluation_cost: float) -> list[tuple[int, bool]]:
    """Steps of the run at which a leg looks whether it has diverged, and whether it evaluates the loss there.

    Looks are geometric; the last is at the leg's end. Evaluations are at the last looks, each at twice the steps of the
    one before, as many as `EVALUATION_SHARE` of the budget pays for, three at most; of a cooldown only the end is
    evaluated.

    Args:
        leg: with its budget in examples, evaluations counted.
        done: steps that the run has taken.
        evaluation_cost: of one evaluation, in examples.
    """
    if leg.cooldown_steps:
        end, count = done + leg.cooldown_steps, int(leg.ends_evaluated)
    else:
        count = _evaluations(leg, evaluation_cost)
        steps = math.floor((leg.budget - count * evaluation_cost) / leg.step_price)
        end = done + (steps if leg.most_steps is None else min(steps, leg.most_steps))
    evaluated: set[int] = set()
    at = end
    while len(evaluated) < count and at > done:
        evaluated.add(at)
        at = min(at - 1, round(at / EVALUATION_RATIO))
    looks, at = set(evaluated) | {end}, max(done, FIRST_LOOK)
    while at < end:
        looks.add(at)
        at = math.ceil(at * LOOK_RATIO)
    return [(look, look in evaluated) for look in sorted(looks) if look > done]


def _evaluations(leg: Leg, cost: float) -> int:
    """How many a leg at a constant rate can pay for."""
    # No leg has room for more evaluations than examples, however little one costs.
    most = EVALUATION_SHARE * leg.budget
    count = math.floor(min(most / cost, leg.budget, MOST_EVALUATIONS)) if cost > 0 else 0
    return 1 if leg.ends_evaluated and count == 0 and cost <= 0.5 * leg.budget else count


def _has_diverged(losses: Sequence[float], initial: float | None) -> bool:
    """Whether the latest losses are far above those at initialisation."""
    if not losses:
        return False
    start = statistics.fmean(losses[:3]) if initial is None else initial
    latest = losses[-max(3, len(losses) // 4) :]
    return statistics.fmean(latest) > start + (HOPELESS - 1.0) * abs(start)


def _branch(
    leg: Leg, before: Branch | None, trained: _Trained, windows: TrainingLosses, schedule: LearningRateSchedule | None
) -> Branch:
    curve = LossCurve((), ()) if before is None else before.curve
    for examples, evaluation in trained.evaluations:
        if evaluation.loss > 0:
            curve = curve.after(examples, evaluation.loss, evaluation.metrics)
    return Branch(
        batch_size=leg.batch_size,
        learning_rate=leg.learning_rate,
        curve=curve,
        outcome=trained.outcome,
        seed=leg.seed,
        training=windows,
        learning_rate_schedule=schedule,
    )


def _too_late(leg: Leg, run: TrainingRun) -> bool:
    if leg.deadline is None:
        return False
    late = time.time() > leg.deadline
    return late if run.group is None else run.group.any_says(late)
