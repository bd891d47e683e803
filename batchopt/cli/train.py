"""`batchopt train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli import processes
from batchopt.cli.arguments import UsageError, check_outputs, count, log_target, positive
from batchopt.cli.console import LOADING, Console
from batchopt.cli.schedule_file import load_schedule
from batchopt.cli.training import GoalMissedError, check_reached, train_and_show, training_result
from batchopt.errors import NonFiniteLossError
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.schedules.schedule import Schedule

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask
    from batchopt.training.adaptive import AdaptiveSchedule
    from batchopt.training.train import TrainingResult

SUMMARY = "Train a task by a schedule, and compare with what the plan predicted."
DETAILS = """\
Without --plan it trains the schedule to its end. With it, until the plan's loss is reached or the decay has ended, and
shows what was predicted beside what was measured. Where the loss is not reached, the exit code is 1, and all files are
written.

With --adapt the run decides by itself when its rate decays, for a plan to reach a loss by wsd: the rate keeps its peak
until a decay is predicted to end at the loss. Where one misses, the run goes back to where the decay began, and on.
Where the run diverges, it begins again at half the learning rate, three times at most.

  batchopt train my_task.py:task schedule.json --plan plan.json --checkpoint run.checkpoint --save weights.pt
  batchopt train my_task.py:task schedule.json --plan plan.json --adapt forecast.json --realised realised.json
  batchopt train my_task.py:task schedule.json --log wandb:my-project                      (or mlflow, tensorboard:runs)
  torchrun --nproc-per-node 2 -m batchopt train my_task.py:task schedule.json       (two processes share every batch)
"""
TOGETHER = True
"""Whether several processes may run it, under torchrun."""
AFTER_INTERRUPT = "with --checkpoint the same command goes on where it stopped"
RAISED_BY_ALL = (GoalMissedError, NonFiniteLossError)
"""What all processes raise at the same place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("schedule", type=Path, help="file of `batchopt plan`, schedule or plan, or of your own")
    parser.add_argument("--plan", type=Path, help="plan to compare with; a run without a fixed decay stops at its loss")
    parser.add_argument("--learning-rate", type=positive, help="peak learning rate, if the schedule has none")
    parser.add_argument("--micro-batch", type=count, help="largest batch that fits: larger ones are taken in parts")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from after an interruption")
    parser.add_argument("--metrics", type=Path, help="file for the evaluations, a JSON object in a line")
    parser.add_argument(
        "--log",
        type=log_target,
        metavar="WHERE",
        help="also log the evaluations: wandb[:PROJECT], mlflow[:EXPERIMENT] or tensorboard[:FOLDER]",
    )
    parser.add_argument(
        "--adapt",
        type=Path,
        metavar="FORECAST",
        help="let the run decide, by this and its losses, when the rate decays",
    )
    parser.add_argument("--realised", type=Path, help="file for the schedule that --adapt followed in the end")
    parser.add_argument("--save", type=Path, help="file for the trained weights (torch state_dict)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data order (0)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Train and compare."""
    console.progress(LOADING, None)
    from batchopt.cli.task_file import load_task

    read = (args.schedule, args.plan, args.adapt)
    check_outputs((args.checkpoint, args.metrics, args.realised, args.save), inputs=read)
    schedule = load_schedule(args.schedule)
    plan = Plan.load(args.plan) if args.plan else None
    adaptive = _adaptive(args, schedule, plan)
    task = load_task(args.task)
    processes.join(task.torch_device)
    if plan is not None:
        warn_of_other_task(plan, task, console)
    result, rows = train_and_show(
        task,
        schedule,
        console,
        plan=plan,
        adaptive=adaptive,
        learning_rate=args.learning_rate,
        checkpoint=args.checkpoint,
        seed=args.seed,
        micro_batch=args.micro_batch,
        metrics=args.metrics,
        log=args.log,
    )
    if args.realised is not None and processes.rank() == 0:
        result.schedule.save(args.realised)
    if args.save is not None:
        save_weights(result, args.save)
    console.result(training_result(result, rows))
    if plan is not None:
        check_reached(plan, result, adapted=adaptive is not None)


def warn_of_other_task(plan: Plan, task: TrainingTask, console: Console) -> None:
    """Say so where a plan was made of another task: nothing of what it predicts is then of this training."""
    from batchopt.cli.task_file import other_task

    other = other_task(task, parameters=plan.parameters, population=plan.population)
    if other is not None:
        console.item(
            f"Warning: the plan is of another task ({other}), so what it predicts is not of this training: probe and "
            "plan this one.",
            "doubt",
        )


def _adaptive(args: argparse.Namespace, schedule: Schedule, plan: Plan | None) -> AdaptiveSchedule | None:
    """The schedule that is corrected, if that was asked for."""
    from batchopt.training.adaptive import AdaptiveSchedule

    if args.adapt is None:
        if args.realised is not None:
            raise UsageError("--realised is for --adapt: any other schedule is followed as it is")
        return None
    if plan is None or schedule != plan.schedule:
        raise UsageError("--adapt corrects the schedule of a plan: give --plan, and the schedule written with it")
    if not isinstance(plan.goal, ReachLoss) or plan.learning_rate_schedule != "wsd":
        raise UsageError(
            "--adapt decides when the rate of a run to a loss decays, and the plan must leave that open: plan with "
            f"--reach-loss and --learning-rate-schedule wsd (this plan's schedule is {plan.learning_rate_schedule})"
        )
    return AdaptiveSchedule(plan, Forecast.load(args.adapt))


def save_weights(result: TrainingResult, path: Path) -> None:
    """Whole or not at all."""
    import torch

    from batchopt.probing.sharding import whole_on_cpu

    is_first = processes.rank() == 0
    state = whole_on_cpu(result.model.state_dict(), is_kept=is_first)  # which takes all processes
    if not is_first:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)
