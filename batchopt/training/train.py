"""The small reference loop: a task, a schedule, a trained model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from batchopt._checks import check_count, check_positive
from batchopt.errors import NonFiniteLossError
from batchopt.probing.distributed import DefaultGroup, process_group
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.board import check_log, open_board
from batchopt.training.checkpoint import Settings, resume, save_checkpoint
from batchopt.training.files import TrainingFiles, room_for_state
from batchopt.training.loop import TrainingLoop, with_rates
from batchopt.training.result import NOTHING_YET, TrainingDivergedError, TrainingResult

__all__ = ["TrainingDivergedError", "TrainingResult", "train"]


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
    log: str | None = None,
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
        task: what to train; its data may be a stream only if a function opens it by a seed.
        schedule: batch sizes, learning-rate multipliers, and warm-up and decay over examples seen; also where the run
            ends. An `AdaptiveSchedule` is told every evaluation, and decides by them when the decay begins. Where a
            decay ends above its loss, the run goes back to where that began, and on. Where the loss becomes NaN,
            infinite or three times the initial one, the run begins again at half the learning rate, up to three times,
            and warns. What was done is the result's `schedule`.
        learning_rate: base rate; the schedule's own if None.
        seed: of initialisation and data order.
        hyperparameters: keywords for the task's optimizer factory.
        until_loss: stop when this loss is reached (the running median of three evaluations crosses it, so one
            evaluation after the crossing; at the end of a decay one evaluation is enough). An `AdaptiveSchedule`'s own
            if None.
        checkpoint: file to go on from if it exists; written at every evaluation, whole or not at all, with the run's
            state in a second file beside it. What was evaluated before is in the result but not evaluated again. On
            several nodes it must lie in a folder that all of them see; an `AdaptiveSchedule` goes back on a decay
            without one as well.
        metrics: file for a JSON object in a line for every evaluation: examples, steps, batch_size and learning_rate of
            the step that comes next, loss, seconds and the task's metrics. Written whole every time, what came before a
            checkpoint included.
        log: also where the same is logged, by examples seen: "wandb", "mlflow" or "tensorboard", with ":" and the
            project, experiment or folder where it is not the default; needs the package of that name.
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
        >>> import torch
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
    if log is not None:
        check_log(log)
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
    with room_for_state(path, group) as before_decay:
        loop = TrainingLoop(
            run,
            start,
            measured,
            until_loss=until_loss,
            micro_batch=micro_batch,
            adaptive=adaptive,
            before_decay=before_decay,
        )
        del run  # the loop may replace it
        return _run(loop, path, settings, group, metrics, log, on_evaluation)


def _run(
    loop: TrainingLoop,
    path: Path | None,
    settings: Settings,
    group: DefaultGroup | None,
    metrics: str | os.PathLike[str] | None,
    log: str | None,
    on_evaluation: Callable[[int, float], None] | None,
) -> TrainingResult:
    """Train to the end."""
    save = None if path is None else partial(save_checkpoint, path, settings=settings, adaptive=loop.adaptive)
    files = TrainingFiles(save, None, None)
    if group is None or group.rank == 0:
        board = None if log is None else open_board(log, first_examples=loop.measured.examples)
        files = TrainingFiles(save, metrics, board)
    try:
        files.begin(loop)
        return _follow(loop, files, on_evaluation)
    finally:  # a log that is left open counts as a run that goes on
        files.end()


def _follow(
    loop: TrainingLoop, files: TrainingFiles, on_evaluation: Callable[[int, float], None] | None
) -> TrainingResult:
    """Train to the end, and keep every evaluation."""
    while loop.outcome is None:
        diverged = None
        try:
            examples, evaluation = loop.advance(loop.next_evaluation())
        except NonFiniteLossError as error:
            if not loop.may_begin_again:
                raise TrainingDivergedError(str(error), loop.result("diverged")) from error
            diverged = str(error)
        if diverged is not None:  # outside of the handler, which holds the graph of the step that failed
            loop.begin_again(diverged)
        files.keep(loop)
        if diverged is None and on_evaluation is not None:
            on_evaluation(examples, evaluation.loss)
    return loop.result(loop.outcome)


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
