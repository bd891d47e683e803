"""`batchopt train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli.console import Console
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.report.comparison import Comparison
from batchopt.schedules.schedule import Schedule

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask
    from batchopt.training.train import TrainingResult

SUMMARY = "Train a task by a schedule, and compare with what the plan predicted."
DETAILS = """\
  batchopt train my_task.py:task schedule.json --plan plan.json --checkpoint run.checkpoint --save weights.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("schedule", type=Path, help="file of `batchopt plan` or of your own")
    parser.add_argument("--plan", type=Path, help="plan to compare with; training stops when its loss is reached")
    parser.add_argument("--learning-rate", type=float, help="base learning rate, if the schedule has none")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from after an interruption")
    parser.add_argument("--save", type=Path, help="file for the trained weights (torch state_dict)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace, console: Console) -> None:
    """Train and compare."""
    import torch

    from batchopt.cli.task_file import load_task
    from batchopt.training.train import train

    schedule = Schedule.load(args.schedule)
    plan = Plan.load(args.plan) if args.plan else None
    task = load_task(args.task)
    if plan is not None and isinstance(plan.goal, ReachLoss):
        result = train_plan(task, plan, schedule, console, checkpoint=args.checkpoint, seed=args.seed)
    else:
        result = train(
            task, schedule, learning_rate=args.learning_rate, seed=args.seed, checkpoint=args.checkpoint
        )
    if args.save is not None:
        torch.save(result.model.state_dict(), args.save)
    console.say(f"trained {result.steps:,} steps on {result.examples:,} examples in {result.seconds:.1f} s")
    console.say(f"last loss {result.curve.losses[-1]:.4g}")
    rows = compare(plan, schedule, result) if plan is not None else []
    if rows:
        show_comparison(rows, console)
    console.result(
        {
            "steps": result.steps,
            "examples": result.examples,
            "seconds": result.seconds,
            "loss": result.curve.losses[-1],
            "reached_at_examples": result.reached,
            "compared": [{"name": r.name, "predicted": r.predicted, "measured": r.measured} for r in rows],
        }
    )


def train_plan(
    task: TrainingTask, plan: Plan, schedule: Schedule, console: Console, *, checkpoint: Path | None = None, seed: int = 0
) -> TrainingResult:
    """Train by a plan's schedule until its loss is reached, twice the predicted examples at most."""
    from batchopt.training.train import train

    goal = plan.goal
    assert isinstance(goal, ReachLoss)  # noqa: S101  (the caller has checked it)

    def show(examples: int, _: float) -> None:
        console.progress("training", min(1.0, examples / schedule.examples))

    longer = Schedule(schedule.segments, 2 * schedule.examples, schedule.learning_rate)
    result = train(task, longer, seed=seed, until_loss=goal.loss, checkpoint=checkpoint, on_evaluation=show)
    console.end_progress()
    return result


def compare(plan: Plan, schedule: Schedule, result: TrainingResult) -> list[Comparison]:
    """Predictions for the schedule beside what the run took to the goal's loss; nothing if it was not reached."""
    if result.reached is None:
        return []
    steps = result.steps_at(result.reached)
    # The plan's intervals are of its constant batch; the schedule's own totals shift them.
    predicted_steps = plan.steps.scaled(schedule.steps / plan.steps.value)
    predicted_examples = plan.examples.scaled(schedule.examples / plan.examples.value)
    rows = [
        Comparison("steps", predicted_steps, steps),
        Comparison("examples", predicted_examples, result.reached),
    ]
    if plan.seconds is not None:
        gain = plan.schedule_cost.value / plan.cost.value
        rows.append(Comparison("seconds", plan.seconds.scaled(gain), result.seconds * steps / result.steps))
    return rows


def show_comparison(rows: list[Comparison], console: Console) -> None:
    """Predicted beside measured."""
    console.table(
        ("", "predicted", "measured", "measured / predicted", "within the 90 % interval"),
        [(r.name, r.predicted, r.measured, r.error_ratio, "yes" if r.inside else "no") for r in rows],
    )
