"""The small reference loop: a task, a schedule, a trained model."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from batchopt._checks import check_count, check_positive
from batchopt._codec import write_text
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.probing.distributed import DefaultGroup, process_group
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.adaptive import Adapted, AdaptiveSchedule, Decay
from batchopt.training.board import Board
from batchopt.training.checkpoint import Settings, resume, save_checkpoint
from batchopt.training.result import NOTHING_YET, Measured, TrainingDivergedError, TrainingResult

__all__ = ["TrainingDivergedError", "TrainingResult", "train"]

FIRST_EVALUATION_STEPS = 10
"""After the initial loss, the first evaluation is this many steps of the first batch size into the run."""


def train(
    task: TrainingTask,
    schedule: Schedule | AdaptiveSchedule,
    *,
    learning_rate: float | None = None,
    seed: int = 0,
    hyperparameters: Mapping[str, float] | None = None,
    until_loss: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    metrics: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
    micro_batch: int | None = None,
) -> TrainingResult:
    """Train a task by a schedule.

    The loss is evaluated before the first step and then at examples that are a factor of 1.2 apart. The learning rate
    of a step is the base rate, times the multiplier of the schedule's segment, times warm-up and decay in the middle of
    the step. These are the schedule's `learning_rate_schedule`; where it has none, they are made of the task's
    `learning_rate_schedule` and `warmup_examples` over the schedule's examples; where the task has none either, its
    warm-up alone is followed, read at the end of the step.

    Under torchrun (a process group is there, and every process has its own CUDA device set) the processes share every
    batch of the schedule, whose sizes are of all together; the first evaluates, and alone writes. Where weights or
    counts do not divide, the gradient is still that of the whole batch.

    Args:
        task: what to train; not a stream.
        schedule: batch sizes, learning-rate multipliers, and warm-up and decay over examples seen; also where the run
            ends. An `AdaptiveSchedule` is told every evaluation, and decides by them when the decay begins. Where a
            decay ends above its loss, the run goes back to where that began, and on. What was done is the result's
            `schedule`.
        learning_rate: base rate; the schedule's own if None.
        seed: of initialisation and data order.
        hyperparameters: keywords for the task's optimizer factory.
        until_loss: stop when this loss is reached (the running median of three evaluations crosses it, so one
            evaluation after the crossing; at the end of a decay one evaluation is enough). An `AdaptiveSchedule`'s own
            if None.
        checkpoint: file to go on from if it exists; written at every evaluation, whole or not at all, with the run's
            state in a second file beside it. What was evaluated before is in the result but not evaluated again.
        metrics: file for a JSON object in a line for every evaluation: examples, steps, batch_size and learning_rate of
            the step that comes next, loss, seconds. Written whole every time, what came before a checkpoint included.
        tensorboard: folder for the same as TensorBoard scalars, by examples seen; needs the package of that name.
        on_evaluation: called with examples seen and the loss; what it raises ends the training.
        micro_batch: largest batch that fits in memory (of one process), if known: larger ones are taken in parts. The
            gradient is the whole batch's, but for rounding; what normalises over a batch (BatchNorm) sees the parts.

    Raises:
        TypeError: the schedule is something else: a plan, or the name of a file.
        ValueError: neither the schedule nor the call gives a learning rate.
        TrainingDivergedError: the loss became NaN or infinite (a `NonFiniteLossError`). Its `result` holds what was
            measured, and the checkpoint of the evaluation before stays.
        TaskError: the task's `learning_rate_schedule` is no function of progress that gives zero or more, or its
            warm-up does not end before the decay begins; something else sets the optimizer's learning rate; a batch
            does not fit in memory, or the loss is not positive. The checkpoint stays.
        RecordError: the checkpoint belongs to another training.

    Example:
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> task = TrainingTask(
        ...     model=lambda: torch.nn.Linear(1, 1),
        ...     data=(x, 2 * x[:, 0] + 1 + 0.1 * torch.sin(50 * x[:, 0])),
        ...     loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        ...     optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        ... )
        >>> result = train(task, Schedule.constant(8, examples=8_000, learning_rate=0.2), until_loss=0.1)
        >>> result.outcome, result.steps < 1_000
        ('reached', True)
    """
    if not isinstance(task, TrainingTask):
        raise TypeError(f"task must be a batchopt.TrainingTask, got {type(task).__name__}")
    check_schedule(schedule, AdaptiveSchedule)
    adaptive = schedule if isinstance(schedule, AdaptiveSchedule) else None
    start = schedule.begin() if isinstance(schedule, AdaptiveSchedule) else schedule
    if adaptive is not None:
        _check_adaptive(adaptive, learning_rate, until_loss)
    rate = _check_arguments(start, learning_rate, until_loss, micro_batch)
    with_rates(start, task)
    path = None if checkpoint is None else _checked_path(checkpoint)
    group = process_group(task.torch_device)
    run = TrainingRun(task, learning_rate=rate, seed=seed, hyperparameters=hyperparameters, group=group)
    correction = None if adaptive is None else adaptive.fingerprint()
    settings = Settings(start, rate, seed, dict(hyperparameters or {}), task.population, correction)
    if group is not None:
        place = {"checkpoint (is its folder shared?)": path is not None and path.exists(), "until_loss": until_loss}
        group.agree({**asdict(settings), **place, "micro_batch": micro_batch})
    measured = NOTHING_YET if path is None else resume(path, run, settings, adaptive)
    if group is not None:
        group.agree({"checkpoint (is its folder shared?)": run.examples_seen})
    if adaptive is not None and until_loss is None:
        until_loss = adaptive.loss
    with _room_for_state(path, group) as before_decay:
        loop = _Loop(run, start, measured, until_loss, micro_batch, adaptive, before_decay)
        return _run(loop, path, settings, group, metrics, tensorboard, on_evaluation)


def _run(
    loop: _Loop,
    path: Path | None,
    settings: Settings,
    group: DefaultGroup | None,
    metrics: str | os.PathLike[str] | None,
    tensorboard: str | os.PathLike[str] | None,
    on_evaluation: Callable[[int, float], None] | None,
) -> TrainingResult:
    """Train to the end."""
    run, adaptive = loop.run, loop.adaptive
    save = None if path is None else partial(save_checkpoint, path, run, settings, adaptive=adaptive)
    files = _Files(save, None, None)
    if group is None or group.rank == 0:
        board = None if tensorboard is None else Board(tensorboard, first_examples=loop.measured.examples)
        files = _Files(save, metrics, board)
    files.begin(loop)
    while loop.outcome is None:
        try:
            examples, loss = loop.advance(loop.next_evaluation())
        except NonFiniteLossError as error:
            raise TrainingDivergedError(str(error), loop.result("diverged")) from error
        files.keep(loop)
        if on_evaluation is not None:
            on_evaluation(examples, loss)
    files.end()
    return loop.result(loop.outcome)


@contextlib.contextmanager
def _room_for_state(checkpoint: Path | None, group: DefaultGroup | None) -> Iterator[Path]:
    """Where the state at the beginning of a decay is kept: beside a checkpoint, until the training ends."""
    if checkpoint is not None:
        state = checkpoint.with_name(f"{checkpoint.name}.decay.state")
        yield state
        if group is None or group.rank == 0:
            state.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="batchopt-") as folder:
        place = folder if group is None else group.from_first(lambda: folder)
        yield Path(place) / "decay.state"


@dataclass(frozen=True)
class _Files:
    """What a training leaves on the disk; None of what it does not.

    Attributes:
        save: writes a checkpoint.
        metrics: file of JSON lines.
        board: TensorBoard.
    """

    save: Callable[[Measured], None] | None
    metrics: str | os.PathLike[str] | None
    board: Board | None

    def begin(self, loop: _Loop) -> None:
        """What a checkpoint holds is written again: it may not have been before an interruption."""
        if loop.measured.clock:
            self._tell(loop)

    def keep(self, loop: _Loop) -> None:
        """After an evaluation."""
        if self.save is not None:
            self.save(loop.measured)
        self._tell(loop)

    def end(self) -> None:
        """Close what is open."""
        if self.board is not None:
            self.board.close()

    def _tell(self, loop: _Loop) -> None:
        if self.metrics is not None:
            write_text(self.metrics, loop.lines())
        if self.board is not None:
            self.board.add(loop.line(len(loop.measured.clock) - 1))


class _Loop:
    """A training under way."""

    def __init__(
        self,
        run: TrainingRun,
        schedule: Schedule,
        measured: Measured,
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
        if self.until_loss is None:
            return None
        return self.measured.curve.examples_to(self.until_loss, is_over=self._is_over and self._has_decayed)

    @property
    def outcome(self) -> Literal["reached", "finished"] | None:
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

    def advance(self, examples: int) -> tuple[int, float]:
        """Train until `examples` are seen, and evaluate: gives those that were seen, and the loss."""
        self._train_to(examples)
        began = time.perf_counter()
        loss = self.run.evaluate()
        if loss <= 0:
            raise TaskError(f"losses must be positive, since their logarithm is modelled, got {loss}: add a constant")
        self.measured = self.measured.after(
            self.run.examples_seen,
            loss,
            seconds=self.seconds,
            evaluation_seconds=time.perf_counter() - began,
        )
        seen = self.run.examples_seen
        if self.adaptive is not None:
            self._adapt(self.adaptive, loss)
        return seen, loss

    def _adapt(self, adaptive: AdaptiveSchedule, loss: float) -> None:
        """Plan the decay anew; keep the state where it begins; go back to that where it has missed."""
        seen = self.run.examples_seen
        if self.outcome is None:
            self._decide(adaptive, lambda: adaptive.update(seen, loss))
            if seen == adaptive.decay_begins:
                save_snapshot(self.run, self.before_decay)
                if self.run.group is not None:
                    self.run.group.wait()
        elif self.outcome == "finished" and adaptive.may_go_on and self.before_decay.exists():
            missed = len(adaptive.missed)
            self._decide(adaptive, lambda: adaptive.miss(loss))
            if len(adaptive.missed) > missed:
                load_snapshot(self.run, self.before_decay)
                self.measured = self.measured.until(self.run.examples_seen)

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
            return adaptive.state().to_json()

        if self.run.group is None:
            decided()
            return

        adaptive.load_state(Adapted.from_json(self.run.group.from_first(decided)))

    def result(self, outcome: Literal["reached", "finished", "diverged"]) -> TrainingResult:
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
            gone_back=sum(decay.end - decay.begin for decay in self._missed),
            steps_gone_back=sum(decay.steps for decay in self._missed),
        )

    @property
    def _missed(self) -> tuple[Decay, ...]:
        return () if self.adaptive is None else self.adaptive.missed

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
    if schedule.learning_rate_schedule is not None or task.learning_rate_schedule is None:
        return schedule
    try:
        rates = LearningRateSchedule.of(
            task.learning_rate_schedule, examples=schedule.examples, warmup_examples=task.warmup_examples
        )
    except (TypeError, ValueError) as error:
        raise TaskError(str(error)) from error
    return replace(schedule, learning_rate_schedule=rates)


def _check_arguments(
    schedule: Schedule, learning_rate: float | None, until_loss: float | None, micro_batch: int | None
) -> float:
    """The base learning rate, if all arguments are right."""
    rate = schedule.learning_rate if learning_rate is None else learning_rate
    if rate is None:
        raise ValueError("a learning rate is needed: the schedule has none, so give learning_rate=...")
    check_positive("learning_rate", rate)
    if until_loss is not None:
        check_positive("until_loss", until_loss)
    if micro_batch is not None:
        check_count("micro_batch", micro_batch)
    return rate


def _check_adaptive(adaptive: AdaptiveSchedule, learning_rate: float | None, until_loss: float | None) -> None:
    """Raise where a training is to be another one than that of which the forecast tells."""
    planned = adaptive.schedule.learning_rate
    if learning_rate is not None and learning_rate != planned:
        raise ValueError(
            f"an AdaptiveSchedule predicts runs at the plan's learning rate {planned:.6g}, got {learning_rate:.6g}: "
            "leave learning_rate out, or train by plan.schedule"
        )
    if until_loss is not None and until_loss != adaptive.loss:
        raise ValueError(
            f"an AdaptiveSchedule decays towards the plan's loss {adaptive.loss:.6g}, got until_loss={until_loss:.6g}: "
            "leave until_loss out, or plan for that loss"
        )


def _checked_path(checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"checkpoint must name a file in a folder that exists, got {os.fspath(path)!r}")
    return path


def _wait_for(device: torch.device) -> None:
    # The last step's kernels may still run when python returns from it.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
