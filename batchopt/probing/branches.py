"""Short runs, in parallel: what a leg of a run is, and how a worker runs it.

Legs go through joblib, so any joblib backend serves (`joblib.parallel_config(backend=..., n_jobs=...)`). A worker gets
the task once, whatever the number of legs: in-process backends share the object; for others the task is written once,
by value, to a private folder, and each worker process reads it once.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cloudpickle
from joblib import Parallel, delayed

from batchopt.errors import NonFiniteLossError
from batchopt.evidence import Branch, LossCurve, Spending
from batchopt.probing.data import evaluation_examples
from batchopt.probing.journal import Journal, Part
from batchopt.probing.run import TrainingRun, load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask

FIRST_EVALUATION_STEPS = 8
EVALUATION_RATIO = 1.5
"""Evaluations of a branch are this factor apart in examples."""
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
        continues: name of the leg that this one goes on from (same run), or None.
        leaves: name of the leg whose end this run branches off from with new settings, or None.
        start_examples: examples that the run had seen where it branched off.
        burn_in: share of the leg that is not on the clock.
        initial_loss: loss at initialisation where it is known (all runs of one seed begin alike); else it is evaluated.
        deadline: time.time() at which the leg stops; None for never.
    """

    name: str
    part: str
    batch_size: int
    learning_rate: float
    budget: float
    seed: int
    continues: str | None = None
    leaves: str | None = None
    start_examples: int = 0
    burn_in: float = 0.0
    initial_loss: float | None = None
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
    if len(missing) == 1:
        _run_and_keep(shared, missing[0], journal)
    else:
        Parallel()(delayed(_run_and_keep)(shared, leg, journal) for leg in missing)
    return [part for leg in legs if (part := journal.finished(leg.name)) is not None]


def _run_and_keep(shared: SharedTask, leg: Leg, journal: Journal) -> None:
    journal.keep(leg.name, run_leg(shared.task, leg, journal))


def run_leg(task: TrainingTask, leg: Leg, journal: Journal) -> Part:
    """Train one leg: the loss curve of its whole run so far, and what the leg spent."""
    began = time.perf_counter()
    run, before = _begin(task, leg, journal)
    origin = run.examples_seen - (before.curve.examples[-1] if before else 0)
    steps_before, evaluations = run.steps, 0
    curve = _curve_so_far(leg, before)
    cost = evaluation_examples(task) / 3.0
    plan = evaluation_steps(leg, done=curve[-1][0] if curve else -1, evaluation_cost=cost)
    outcome, failure = "finished", None
    try:
        for until in plan:
            while run.examples_seen - origin < until and not _too_late(leg):
                run.step(leg.batch_size)
            if curve and curve[-1][0] == run.examples_seen - origin:
                outcome = "stopped"  # the time was up before the first step
                break
            curve.append((run.examples_seen - origin, run.evaluate()))
            evaluations += 1
            if curve[-1][1] > HOPELESS * (leg.initial_loss or curve[0][1]):
                outcome = "diverged"
                break
            if _too_late(leg):
                outcome = "stopped"
                break
    except NonFiniteLossError as error:
        outcome, failure = "diverged", str(error)
    spending = Spending(
        part=leg.part,
        examples=(run.steps - steps_before) * float(leg.batch_size) + evaluations * cost,
        steps=run.steps - steps_before,
        seconds=time.perf_counter() - began,
    )
    if outcome != "diverged":
        save_snapshot(run, journal.snapshot(leg.name))
    return Part(spending, branch=_branch(leg, curve, outcome) if curve else None, failure=failure)


def _begin(task: TrainingTask, leg: Leg, journal: Journal) -> tuple[TrainingRun, Branch | None]:
    run = TrainingRun(task, learning_rate=leg.learning_rate, seed=leg.seed)
    origin = leg.continues or leg.leaves
    if origin is None:
        return run, None
    load_snapshot(run, journal.snapshot(origin))
    run.learning_rate = leg.learning_rate
    part = journal.finished(origin) if leg.continues else None
    return run, part.branch if part else None


def _curve_so_far(leg: Leg, before: Branch | None) -> list[tuple[int, float]]:
    if before is not None:
        return list(zip(before.curve.examples, before.curve.losses, strict=True))
    return [] if leg.initial_loss is None or leg.leaves is not None else [(0, leg.initial_loss)]


def evaluation_steps(leg: Leg, *, done: int, evaluation_cost: float) -> list[int]:
    """Examples of the run's own at which to evaluate: geometric, as far as the budget goes, the last one at its end."""
    left = leg.budget - (evaluation_cost if done < 0 else 0.0)
    points = [0] if done < 0 else []
    at, k = max(done, 0), 0
    while True:
        step = math.ceil(FIRST_EVALUATION_STEPS * EVALUATION_RATIO**k)
        k += 1
        following = step * leg.batch_size
        if following <= at:
            continue
        price = following - at + evaluation_cost
        if price > left:
            break
        points.append(following)
        left -= price
        at = following
    rest = int((left - evaluation_cost) // leg.batch_size) * leg.batch_size
    # A last point close to the one before would cost an evaluation and tell nothing.
    return [*points, at + rest] if rest > 0.15 * at else points


def _branch(leg: Leg, curve: list[tuple[int, float]], outcome: str) -> Branch:
    finite = [(examples, loss) for examples, loss in curve if math.isfinite(loss) and loss > 0]
    burn_in = (
        0 if leg.burn_in == 0 else min(examples for examples, _ in finite if examples >= leg.burn_in * finite[-1][0])
    )
    return Branch(
        batch_size=leg.batch_size,
        learning_rate=leg.learning_rate,
        curve=LossCurve(tuple(n for n, _ in finite), tuple(loss for _, loss in finite)),
        start_examples=leg.start_examples,
        burn_in_examples=burn_in,
        outcome=outcome,  # type: ignore[arg-type]
        seed=leg.seed,
    )


def _too_late(leg: Leg) -> bool:
    return leg.deadline is not None and time.time() > leg.deadline
