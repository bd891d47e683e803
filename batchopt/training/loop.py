"""A training under way: its steps, its evaluations, and what an adaptive schedule decides at each of them."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.probing.evaluation import HOPELESS, Evaluation, evaluation_points
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot_of_first, save_snapshot
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule
from batchopt.training.adapted import Adapted
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.result import Measured, TrainingResult

FIRST_EVALUATION_STEPS = 10
"""After the initial loss, the first evaluation is this many steps of the first batch size into the run."""


class TrainingLoop:
    """A training under way.

    Args:
        run: that is trained.
        schedule: that it begins with.
        measured: by it so far.
        until_loss: where it stops; None for the schedule's end.
        micro_batch: larger batches are taken in parts.
        adaptive: what changes the schedule; None for a fixed one.
        before_decay: file for the state at the beginning of a decay.
    """

    def __init__(
        self,
        run: TrainingRun,
        schedule: Schedule,
        measured: Measured,
        *,
        until_loss: float | None,
        micro_batch: int | None,
        adaptive: AdaptiveSchedule | None,
        before_decay: Path,
    ) -> None:
        self.run, self.start, self.measured, self.until_loss = run, schedule, measured, until_loss
        self.micro_batch, self.adaptive, self.before_decay = micro_batch, adaptive, before_decay
        self.adapts = True
        self.seconds = measured.clock[-1] if measured.clock else 0.0
        self.resumed_at = measured.examples if measured.clock else None
        self._as_given, self._with_rates = schedule, with_rates(schedule, run.task)

    @property
    def schedule(self) -> Schedule:
        """The schedule as it is, with the learning rate's warm-up and decay."""
        given = self.start if self.adaptive is None else self.adaptive.schedule
        if given is not self._as_given:
            self._as_given, self._with_rates = given, with_rates(given, self.run.task)
        return self._with_rates

    @property
    def reached(self) -> float | None:
        """Examples at which the loss was reached; None before."""
        if self.until_loss is None:
            return None
        return self.measured.curve.examples_to(self.until_loss, is_over=self._is_over and self._has_decayed)

    @property
    def outcome(self) -> Literal["reached", "finished"] | None:
        """How it ended; None while it goes on."""
        if self.reached is not None:
            return "reached"
        return "finished" if self._is_over else None

    @property
    def _is_over(self) -> bool:
        return self.measured.examples >= self.schedule.examples

    @property
    def _has_decayed(self) -> bool:
        rates = self.schedule.learning_rate_schedule
        return rates is not None and rates.decays

    def next_evaluation(self) -> int:
        """Examples at which to evaluate next: where a decay begins as well, since what comes then is decided there."""
        points = evaluation_points(self.schedule.examples, first=FIRST_EVALUATION_STEPS * self.start(0))
        coming = next(point for point in points if point > self.measured.examples)
        if self.adaptive is not None and self.measured.examples < self.adaptive.decay_begins:
            return min(coming, self.adaptive.decay_begins)
        return coming

    def advance(self, examples: int) -> tuple[int, Evaluation]:
        """Train until `examples` are seen, and evaluate: gives those that were seen, and what was evaluated."""
        self._train_to(examples)
        began = time.perf_counter()
        evaluation = self.run.evaluation()
        loss = evaluation.loss
        if loss <= 0:
            raise TaskError(f"losses must be positive, since their logarithm is modelled, got {loss}: add a constant")
        self._check_hope(loss)
        self.measured = self.measured.after(
            self.run.examples_seen,
            loss,
            evaluation.metrics,
            seconds=self.seconds,
            evaluation_seconds=time.perf_counter() - began,
        )
        seen = self.run.examples_seen
        if self.adaptive is not None:
            self._adapt(self.adaptive, loss)
        return seen, evaluation

    def _check_hope(self, loss: float) -> None:
        """Raise where the loss of an adaptive run is far above the initial one: many losses never become infinite."""
        initial = self.measured.curve.losses[0] if self.measured.curve.losses else math.inf
        if self.adaptive is not None and loss > HOPELESS * initial:
            raise NonFiniteLossError(
                f"the evaluated loss became {loss:.4g}, more than {HOPELESS:g} times the initial {initial:.4g}, after "
                f"{self.run.steps} steps ({self.run.examples_seen} examples seen, learning rate "
                f"{self.run.learning_rate:g}): lower the learning rate"
            )

    def begin_again(self, why: str) -> None:
        """Begin the run anew at a lower rate, after it diverged; what was evaluated before the first step stays."""
        assert self.adaptive is not None
        if self.run.group is None or self.run.group.rank == 0:
            warnings.warn(f"{why}. The run begins again at half that rate.", RuntimeWarning, stacklevel=4)
        self.adaptive.diverge(self.run.examples_seen)
        remake = self.run.remake
        del self.run  # two models and optimizers may not fit in memory
        self.run = remake()
        self.run.learning_rate = self.adaptive.learning_rate
        self.measured = self.measured.until(0)
        self.before_decay.unlink(missing_ok=True)

    @property
    def may_begin_again(self) -> bool:
        """Whether a run that diverged may begin anew."""
        adaptive = self.adaptive
        return adaptive is not None and self.adapts and adaptive.may_begin_again(self.run.examples_seen)

    def _adapt(self, adaptive: AdaptiveSchedule, loss: float) -> None:
        """Plan the decay anew; keep the state where it begins; go back to that where it has missed."""
        seen = self.run.examples_seen
        if self.outcome is None:
            self._decide(adaptive, lambda: adaptive.update(seen, loss))
            if seen == adaptive.decay_begins:
                save_snapshot(self.run, self.before_decay)
                if self.run.group is not None:
                    self.run.group.wait()
        elif self.outcome == "finished" and adaptive.may_go_on and self._can_go_back():
            missed = len(adaptive.missed)
            self._decide(adaptive, lambda: adaptive.miss(loss))
            if len(adaptive.missed) > missed:
                load_snapshot_of_first(self.run, self.before_decay)
                self.measured = self.measured.until(self.run.examples_seen)

    def _can_go_back(self) -> bool:
        """Whether the state at the beginning of the decay was kept, by the first of several processes."""
        group = self.run.group
        return self.before_decay.exists() if group is None else group.from_first(self.before_decay.exists)

    def _decide(self, adaptive: AdaptiveSchedule, decision: Callable[[], object]) -> None:
        """Let the schedule be changed; where that fails, the training goes on by the schedule as it is, to its end.

        Of several processes the first decides: if their next batches differed, they would wait for each other.
        """

        def decided() -> str:
            try:
                if self.adapts:
                    decision()
            except Exception as error:
                self.adapts = False
                warnings.warn(
                    f"the schedule is no longer changed, from {self.run.examples_seen} examples on; the training goes "
                    f"on ({type(error).__name__}: {error})",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return json.dumps([self.adapts, adaptive.state().to_json()])

        if self.run.group is None:
            decided()
            return
        self.adapts, state = json.loads(self.run.group.from_first(decided))
        adaptive.load_state(Adapted.from_json(state))

    def result(self, outcome: Literal["reached", "finished", "diverged"]) -> TrainingResult:
        """What the training gives."""
        return TrainingResult(
            model=self.run.model,
            schedule=replace(self.schedule, learning_rate=self.run.learning_rate),
            measured=self.measured,
            steps=self.run.steps,
            examples=self.run.examples_seen,
            seconds=self.seconds,
            reached=self.reached,
            outcome=outcome,
            resumed_at=self.resumed_at,
            gone_back=0 if self.adaptive is None else self.adaptive.gone_back,
            steps_gone_back=0 if self.adaptive is None else self.adaptive.steps_gone_back,
        )

    def lines(self) -> str:
        """A JSON object in a line for every evaluation."""
        return "".join(f"{json.dumps(self.line(i))}\n" for i in range(len(self.measured.clock)))

    def line(self, i: int) -> dict[str, float]:
        """What there is to tell of an evaluation."""
        examples = self.measured.curve.examples[i]
        size = self.schedule(examples)
        return {
            "examples": examples,
            "steps": round(self.schedule.steps_to(examples)),
            "batch_size": size,
            "learning_rate": self.run.learning_rate_at(
                examples, size, self.schedule.multiplier_of(examples, size), warmup=self._warms_up
            ),
            "loss": self.measured.curve.losses[i],
            "seconds": self.measured.clock[i],
            **{name: values[i] for name, values in self.measured.curve.metrics.items()},
        }

    def _train_to(self, examples: int) -> None:
        began = time.perf_counter()
        try:
            for seen, size in self.schedule.batches(self.run.examples_seen):
                if seen >= examples:
                    break
                self._step(seen, size)
            _wait_for(self.run.task.torch_device)
        finally:
            self.seconds += time.perf_counter() - began

    def _step(self, seen: int, size: int) -> None:
        try:
            multiplier = self.schedule.multiplier_of(seen, size)
            self.run.step(size, multiplier=multiplier, micro_batch=self.micro_batch, warmup=self._warms_up)
        except torch.OutOfMemoryError as error:
            too_large = min(size, self.micro_batch or size)
            raise TaskError(
                f"every batch must fit in memory, and one of {too_large} examples does not (after {seen} examples): "
                f"give micro_batch below {too_large}, or plan with batch sizes below it"
            ) from error

    @property
    def _warms_up(self) -> bool:
        """Whether the task's warm-up is to be multiplied on: only where the schedule holds none."""
        return self.schedule.learning_rate_schedule is None


def with_rates(schedule: Schedule, task: TrainingTask) -> Schedule:
    """A schedule with the warm-up and decay that a task asks for, if the schedule has none.

    Raises:
        TaskError: what the task asks for can't be followed over this run.
    """
    if schedule.learning_rate_schedule is not None:
        return schedule
    if task.learning_rate_schedule is None:
        if task.warmup_examples >= schedule.examples:
            raise TaskError(
                f"the warm-up must end before the run does, got {task.warmup_examples} examples of warm-up in a run of "
                f"{schedule.examples}: warm up over fewer, or train longer"
            )
        return schedule
    try:
        rates = LearningRateSchedule.of(
            task.learning_rate_schedule, examples=schedule.examples, warmup_examples=task.warmup_examples
        )
    except (TypeError, ValueError) as error:
        raise TaskError(str(error)) from error
    return replace(schedule, learning_rate_schedule=rates)


def _wait_for(device: torch.device) -> None:
    # The last step's kernels may still run when python returns from it.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
