"""The small reference loop: a task, a schedule, a trained model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from batchopt._checks import check_positive
from batchopt._codec import Record
from batchopt.errors import RecordError, TaskError
from batchopt.evidence import LossCurve
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun, load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule

FIRST_EVALUATION_STEPS = 8


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training.

    Attributes:
        model: the trained model.
        curve: losses at the evaluations.
        steps: optimizer steps taken.
        examples: examples trained on.
        seconds: wall-clock time of the steps, evaluations left out.
        evaluation_seconds: wall-clock time of the evaluations.
        reached: examples at which `until_loss` was reached; None if it was not, or none was asked for.
        schedule: what was followed.
    """

    model: nn.Module
    curve: LossCurve
    steps: int
    examples: int
    seconds: float
    evaluation_seconds: float
    reached: float | None
    schedule: Schedule

    def steps_at(self, examples: float) -> float:
        """Steps that the schedule takes to a number of examples."""
        for step, (seen, size) in enumerate(self.schedule.batches()):
            if seen + size >= examples:
                return step + (examples - seen) / size
        return float(self.schedule.steps)


@dataclass(frozen=True, slots=True)
class Progress(Record):
    """What a checkpoint keeps beside the run's own state."""

    SCHEMA: ClassVar[str] = "batchopt.training_progress/1"

    schedule: Schedule
    learning_rate: float
    seed: int
    hyperparameters: dict[str, float]
    curve: LossCurve
    seconds: float
    evaluation_seconds: float
    snapshot: str


def train(
    task: TrainingTask,
    schedule: Schedule,
    *,
    learning_rate: float | None = None,
    seed: int = 0,
    hyperparameters: Mapping[str, float] | None = None,
    until_loss: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Train a task by a schedule.

    The loss is evaluated at examples that are a factor of 1.2 apart. The learning rate of a step is the base rate, times
    the schedule's multiplier, times the task's `learning_rate_schedule` of the share of examples seen.

    Args:
        task: what to train.
        schedule: batch sizes and learning-rate multipliers over examples seen; also where the run ends.
        learning_rate: base rate; the schedule's own if None.
        seed: of initialisation and data order.
        hyperparameters: keywords for the task's optimizer factory.
        until_loss: stop when this loss is reached (the running median of three evaluations crosses it, so one evaluation
            after the crossing).
        checkpoint: file to go on from if it exists; written at every evaluation, whole or not at all.
        on_evaluation: called with examples seen and the loss; what it raises ends the training.

    Raises:
        ValueError: neither the schedule nor the call gives a learning rate.
        NonFiniteLossError: the loss became NaN or infinite. The checkpoint of the evaluation before stays.
        RecordError: the checkpoint belongs to another training.
    """
    rate = schedule.learning_rate if learning_rate is None else learning_rate
    if rate is None:
        raise ValueError("a learning rate is needed: the schedule has none, so give learning_rate=...")
    check_positive("learning_rate", rate)
    if until_loss is not None:
        check_positive("until_loss", until_loss)
    loop = _Loop(task, schedule, rate, seed, dict(hyperparameters or {}), checkpoint)
    reached = loop.run(until_loss, on_evaluation)
    return TrainingResult(
        model=loop.training.model,
        curve=loop.curve,
        steps=loop.training.steps,
        examples=loop.training.examples_seen,
        seconds=loop.seconds,
        evaluation_seconds=loop.evaluation_seconds,
        reached=reached,
        schedule=schedule,
    )


class _Loop:
    """A training under way."""

    def __init__(
        self,
        task: TrainingTask,
        schedule: Schedule,
        learning_rate: float,
        seed: int,
        hyperparameters: dict[str, float],
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.task, self.schedule, self.learning_rate = task, schedule, learning_rate
        self.seed, self.hyperparameters = seed, hyperparameters
        self.training = TrainingRun(task, learning_rate=learning_rate, seed=seed, hyperparameters=hyperparameters)
        self.curve = LossCurve((), ())
        self.seconds, self.evaluation_seconds = 0.0, 0.0
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)

    def run(self, until_loss: float | None, on_evaluation: Callable[[int, float], None] | None) -> float | None:
        points = evaluation_points(self.schedule.examples, first=FIRST_EVALUATION_STEPS * self.schedule(0))
        done = self.curve.examples[-1] if self.curve.examples else -1
        for point in points:
            if point <= done:
                continue
            self._train_to(point)
            seen, loss = self.training.examples_seen, self._evaluate()
            self.curve = LossCurve((*self.curve.examples, seen), (*self.curve.losses, loss))
            done = seen
            self._save()
            if on_evaluation is not None:
                on_evaluation(seen, loss)
            reached = None if until_loss is None else self.curve.examples_to(until_loss)
            if reached is not None or seen >= self.schedule.examples:
                return reached
        return None

    def _train_to(self, examples: int) -> None:
        began = time.perf_counter()
        for seen, size in self.schedule.batches(self.training.examples_seen):
            if seen >= examples:
                break
            multiplier = self.schedule.segment_at(seen).learning_rate_multiplier
            if self.task.learning_rate_schedule is not None:
                multiplier *= self.task.learning_rate_schedule(seen / self.schedule.examples)
            self.training.step(size, multiplier=multiplier)
        self.seconds += time.perf_counter() - began

    def _evaluate(self) -> float:
        began = time.perf_counter()
        loss = self.training.evaluate()
        self.evaluation_seconds += time.perf_counter() - began
        if loss <= 0:
            raise TaskError(f"losses must be positive, since their logarithm is modelled, got {loss}: add a constant")
        return loss

    def _save(self) -> None:
        """First the run's state under a name of its own, then the record that points to it: a kill leaves the old pair."""
        if self._checkpoint is None:
            return
        snapshot = self._checkpoint.with_name(f"{self._checkpoint.name}.{self.training.examples_seen}.state")
        save_snapshot(self.training, snapshot)
        progress = Progress(
            schedule=self.schedule,
            learning_rate=self.learning_rate,
            seed=self.seed,
            hyperparameters=self.hyperparameters,
            curve=self.curve,
            seconds=self.seconds,
            evaluation_seconds=self.evaluation_seconds,
            snapshot=snapshot.name,
        )
        progress.save(self._checkpoint)
        for old in self._checkpoint.parent.glob(f"{self._checkpoint.name}.*.state"):
            if old != snapshot:
                old.unlink()

    def _resume(self, checkpoint: Path) -> None:
        progress = Progress.load(checkpoint)
        ours = (self.schedule, self.learning_rate, self.seed, self.hyperparameters)
        if (progress.schedule, progress.learning_rate, progress.seed, progress.hyperparameters) != ours:
            raise RecordError(
                f"{checkpoint} is the checkpoint of another training (schedule, learning rate, seed or hyperparameters): "
                "delete it to begin anew"
            )
        load_snapshot(self.training, checkpoint.with_name(progress.snapshot))
        self.curve, self.seconds = progress.curve, progress.seconds
        self.evaluation_seconds = progress.evaluation_seconds
