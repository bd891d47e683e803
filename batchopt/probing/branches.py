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
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cloudpickle
from joblib import Parallel, delayed

from batchopt.errors import NonFiniteLossError
from batchopt.evidence import Branch, LossCurve, Spending, TrainingLosses
from batchopt.probing.data import evaluation_examples
from batchopt.probing.journal import Journal, Part
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask
from batchopt.probing.training_losses import training_losses

EVALUATION_SHARE = 0.12
"""Share of a leg's budget that goes to evaluations; the rest of the curve is the losses of its own batches."""
EVALUATION_RATIO = 2.0
"""Evaluations of a leg are this factor apart in steps."""
FIRST_LOOK = 8
LOOK_RATIO = 1.5
"""Whether a run has diverged is looked at from its eighth step on, at steps this factor apart."""
HOPELESS = 3.0
"""A loss this many times the initial one counts as diverged."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One stretch of one run.

    Attributes:
        name: of the part in the journal.
        part: what the spending is filed under.
        batch_size: examples per step.
        learning_rate: the optimizer's.
        budget: examples that the leg may spend, evaluations counted.
        seed: of initialisation and data order.
        initial_loss: loss at initialisation; None if it is not known.
        continues: name of the leg that this one goes on from, or None.
        ends_evaluated: whether the loss is evaluated at the leg's end, even where that takes half of its budget.
        deadline: time.time() at which the leg stops; None for never.
    """

    name: str
    part: str
    batch_size: int
    learning_rate: float
    budget: float
    seed: int
    initial_loss: float | None = None
    continues: str | None = None
    ends_evaluated: bool = False
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
        Parallel()(delayed(_run_and_keep)(shared, leg, journal) for leg in missing)
    return [part for leg in legs if (part := journal.finished(leg.name)) is not None]


def _run_and_keep(shared: SharedTask, leg: Leg, journal: Journal) -> None:
    journal.keep(leg.name, run_leg(shared.task, leg, journal))


def run_leg(task: TrainingTask, leg: Leg, journal: Journal) -> Part:
    """Train one leg: the loss curve of its whole run so far, and what the leg spent."""
    began = time.perf_counter()
    run, before = _begin(task, leg, journal)
    cost, first_step = evaluation_examples(task) / 3.0, run.steps
    losses: list[float] = []
    evaluations: list[tuple[int, float]] = []
    outcome, failure = "finished", None
    try:
        for until, evaluate in stops(leg, done=first_step, evaluation_cost=cost):
            while first_step + len(losses) < until and not _too_late(leg, run):
                losses.append(run.step(leg.batch_size))
            if evaluate:
                evaluations.append((run.examples_seen, run.evaluate()))
            if _has_diverged(losses, leg.initial_loss):
                outcome = "diverged"
                break
            if _too_late(leg, run):
                outcome = "stopped"
                break
    except NonFiniteLossError as error:
        outcome, failure = "diverged", str(error)
    spending = Spending(
        part=leg.part,
        examples=len(losses) * float(leg.batch_size) + len(evaluations) * cost,
        steps=len(losses),
        seconds=time.perf_counter() - began,
    )
    if outcome != "diverged":
        save_snapshot(run, journal.snapshot(leg.name))
    windows = training_losses(
        losses, batch_size=leg.batch_size, before=before.training if before else None, first_step=first_step
    )
    return Part(spending, branch=_branch(leg, before, evaluations, windows, outcome), failure=failure)


def _begin(task: TrainingTask, leg: Leg, journal: Journal) -> tuple[TrainingRun, Branch | None]:
    run = TrainingRun(task, learning_rate=leg.learning_rate, seed=leg.seed)
    if leg.continues is None:
        return run, None
    load_snapshot(run, journal.snapshot(leg.continues))
    part = journal.finished(leg.continues)
    return run, part.branch if part else None


def stops(leg: Leg, *, done: int, evaluation_cost: float) -> list[tuple[int, bool]]:
    """Steps of the run at which a leg looks whether it has diverged, and whether it evaluates the loss there.

    Looks are geometric; the last is at the leg's end. Evaluations are at the last looks, each at twice the steps of the
    one before, as many as `EVALUATION_SHARE` of the budget pays for.

    Args:
        leg: with its budget in examples, evaluations counted.
        done: steps that the run has taken.
        evaluation_cost: of one evaluation, in examples.
    """
    # No leg has room for more evaluations than examples, however little one costs.
    most = EVALUATION_SHARE * leg.budget
    count = math.floor(min(most / evaluation_cost, leg.budget)) if evaluation_cost > 0 else 0
    if leg.ends_evaluated and count == 0 and evaluation_cost <= 0.5 * leg.budget:
        count = 1
    end = done + math.floor((leg.budget - count * evaluation_cost) / leg.batch_size)
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


def _has_diverged(losses: Sequence[float], initial: float | None) -> bool:
    """Whether the latest losses are far above those at initialisation."""
    if not losses:
        return False
    start = statistics.fmean(losses[:3]) if initial is None else initial
    latest = losses[-max(3, len(losses) // 4) :]
    return statistics.fmean(latest) > start + (HOPELESS - 1.0) * abs(start)


def _branch(
    leg: Leg, before: Branch | None, evaluations: list[tuple[int, float]], windows: TrainingLosses, outcome: str
) -> Branch:
    earlier = [] if before is None else list(zip(before.curve.examples, before.curve.losses, strict=True))
    points = [*earlier, *((n, loss) for n, loss in evaluations if math.isfinite(loss) and loss > 0)]
    return Branch(
        batch_size=leg.batch_size,
        learning_rate=leg.learning_rate,
        curve=LossCurve(tuple(n for n, _ in points), tuple(loss for _, loss in points)),
        outcome=outcome,  # type: ignore[arg-type]
        seed=leg.seed,
        training=windows,
    )


def _too_late(leg: Leg, run: TrainingRun) -> bool:
    if leg.deadline is None:
        return False
    late = time.time() > leg.deadline
    return late if run.group is None else run.group.any_says(late)
