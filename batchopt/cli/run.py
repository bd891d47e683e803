"""`batchopt run`."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli.arguments import UsageError, add_batch_sizes, count, log_target, positive
from batchopt.cli.budgets import Budget, amount, budget_of, other_budget
from batchopt.cli.console import FORECASTING, LOADING, PLANNING, Console
from batchopt.cli.goals import LEAST, WordGoal, goal_text, parse_goal
from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import SHAPES
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask

SUMMARY = "From a task and a goal to a plan: probe, forecast, plan and report, in one folder."
DETAILS = """\
Probes the task, fits the forecast, plans for the goal, and writes all of it and a page with figures into a folder.
Shows the plan first: what to do, what it costs, how sure it is. After Ctrl-C or a crash the same command goes on where
it stopped. A probe that is in the folder already serves for other goals too.

  batchopt run my_task.py:task --goal loss=0.25 --usual-run 10epochs      least seconds to a loss
  batchopt run my_task.py:task --goal loss=0.25 --examples 200000         with a budget of your own for the probe
  batchopt run my_task.py:task --goal accuracy=0.93 --usual-run 10epochs  one of the task's metrics
  batchopt run my_task.py:task --goal within=2h                           the lowest loss in two hours
  batchopt run my_task.py:task --goal within=30epochs --dry-run           what that would spend
  batchopt run my_task.py:task --goal loss=0.25 --usual-run 10epochs --train

The budget of the probe is --examples, or --seconds. Without either the probe gets as much as one run that you would
train: a goal of within=... says how long that is, --usual-run says it for a goal of a loss. A shorter probe is not
worth it: plans from probes of a third of a run cost 51 % more than the best in the median, and 30 % of them fail;
from probes of one run they cost 13 % more, and 3 % fail (benchmarks/README.md).
"""
WEIGHTS = "weights.pt"
"""File of a training's weights, in the folder of all else."""
AFTER_INTERRUPT = "the same command goes on where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument(
        "--goal",
        type=goal_text,
        required=True,
        metavar="GOAL",
        help="loss=VALUE, METRIC=VALUE, or within=VALUE with a unit",
    )
    parser.add_argument("--least", choices=LEAST, help="what to spend least of on the way to a loss (seconds)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder to write (out)")
    budget = parser.add_argument_group("budget of the probe")
    budget.add_argument("--examples", type=count, help="ceiling on examples that get a gradient")
    budget.add_argument("--seconds", type=positive, help="ceiling on wall-clock time")
    budget.add_argument(
        "--usual-run",
        type=amount,
        metavar="LENGTH",
        help="how long a run is that you would train without batchopt, 10epochs for example: so long is the probe",
    )
    budget.add_argument("--dry-run", action="store_true", help="say what the probe would spend, and end")
    plan = parser.add_argument_group("plan and training")
    plan.add_argument(
        "--learning-rate-schedule",
        choices=("auto", *SHAPES),
        default="auto",
        help="how the learning rate decays (auto: the task's own, or wsd)",
    )
    add_batch_sizes(plan)
    plan.add_argument("--train", action="store_true", help="go on and train by the plan")
    plan.add_argument("--log", type=log_target, metavar="WHERE", help="with --train: wandb, mlflow or tensorboard")
    parser.add_argument("--workers", type=count, default=1, help="short runs of the probe in parallel (1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Probe, forecast, plan, report; and train, if asked."""
    console.progress(LOADING, None)
    from batchopt.cli.estimate import show_estimate
    from batchopt.cli.plan import show_plan
    from batchopt.cli.task_file import load_task, task_place

    task_place(args.task)
    if args.log is not None and not args.train:
        raise UsageError("--log is of the training: give --train with it, or log with `batchopt train --log`")
    task = load_task(args.task)
    goal = _goal_of(args, task)
    report = _kept_probe(args.out / "probe.json", goal, task, args)
    budget = None if report is not None else budget_of(args, goal, task)
    if budget is not None:
        _check_before(task, goal, args, console)
    if args.dry_run:
        show_estimate(task, budget, args, console)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if budget is not None:
        report = _probed(task, budget, args, console)
    if report is None:
        raise ValueError("there is either a probe or a budget for one")
    console.begin(FORECASTING)
    forecast = Forecast.fit(report)
    forecast.save(args.out / "forecast.json")
    console.begin(PLANNING)
    plan = _plan(forecast, goal, args)
    plan.save(args.out / "plan.json")
    plan.schedule.save(args.out / "schedule.json")
    console.progress("report", None)
    _write_page(args.out, report, forecast, plan)
    console.heading(f"Plan for {plan.goal_in_words}")
    show_plan(plan, console)
    _show_evidence(report, forecast, args, console)
    if args.train:
        _train(task, report, forecast, plan, args, console)
    else:
        console.say(f"next: {_next(args, plan)}", "heading")
        console.result(_result(args, report, plan))


def _goal_of(args: argparse.Namespace, task: TrainingTask) -> WordGoal:
    try:
        return parse_goal(args.goal, least=args.least, population=task.population, metrics=task.metrics)
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error)) from None


def _check_before(task: TrainingTask, goal: WordGoal, args: argparse.Namespace, console: Console) -> None:
    """Refuse a goal that makes no sense, and data with NaN, before anything is timed or trained."""
    from batchopt.probing.finite_data import check_finite_data
    from batchopt.probing.possible_goals import check_possible
    from batchopt.probing.state import OwnRandomness

    console.progress("checks of data and goal", None)
    with OwnRandomness(args.seed, device=task.torch_device, host=True).active():
        model = task.make_model()
    check_finite_data(task, model)
    doubt = check_possible(task, model, goal)
    if doubt is not None:
        console.item(doubt, "doubt")


def _kept_probe(file: Path, goal: WordGoal, task: TrainingTask, args: argparse.Namespace) -> ProbeReport | None:
    """The probe that an earlier call has finished; None where there is none.

    Raises:
        EvidenceError: it is of another task, or of another budget or seed than was asked for.
        UsageError: what was asked for is no budget.
    """
    from batchopt.cli.probe import journal_of
    from batchopt.cli.task_file import other_task

    if not file.exists() or journal_of(file).exists():
        return None
    report = ProbeReport.load(file)
    remedy = "give another folder with -o, or delete that file to probe again"
    made = report.provenance
    other = other_task(task, parameters=made.parameters, population=made.population)
    if other is not None:
        raise EvidenceError(f"{file} is the probe of another task ({other}): {remedy}")
    if (args.examples, args.seconds, args.usual_run) != (None, None, None):
        differs = other_budget(report, budget_of(args, goal, task))
        if differs is not None:
            raise EvidenceError(f"{file} is a probe {differs}: {remedy}; without a budget this probe is used")
    if made.seed != args.seed:
        raise EvidenceError(f"{file} is a probe with seed {made.seed}, and {args.seed} is asked for: {remedy}")
    return report


def _probed(task: TrainingTask, budget: Budget, args: argparse.Namespace, console: Console) -> ProbeReport:
    from batchopt.cli.probe import NothingMeasuredError, is_usable, probe_with_progress

    console.say(f"probing {args.task} with {budget}")
    report = probe_with_progress(
        task,
        args.out / "probe.json",
        console,
        examples=budget.examples,
        seconds=budget.seconds,
        seed=args.seed,
        batch_sizes=args.batch_sizes,
        workers=args.workers,
    )
    if not is_usable(report):
        raise NothingMeasuredError(f"the probe has no run that a forecast could be fitted to: {report.stopped}")
    return report


def _plan(forecast: Forecast, goal: WordGoal, args: argparse.Namespace) -> Plan:
    try:
        return forecast.plan(goal, learning_rate_schedule=args.learning_rate_schedule, batch_sizes=args.batch_sizes)
    except UnreachableGoalError as error:
        raise UnreachableGoalError(
            f"{error} (the lowest loss of the probe was {forecast.lowest_observed_loss:.4g}); the probe is kept in "
            f"{args.out / 'probe.json'}, so the same command with another goal only plans"
        ) from None


def _write_page(out: Path, report: ProbeReport, forecast: Forecast, plan: Plan) -> None:
    from batchopt.report import write_report

    write_report(out / "report.html", report=report, forecast=forecast, plan=plan)


def _show_evidence(report: ProbeReport, forecast: Forecast, args: argparse.Namespace, console: Console) -> None:
    """What the plan rests on, in a few lines; the page has all of it."""
    from batchopt._wording import seconds

    console.say()
    console.title("what it rests on")
    lowest = f"{forecast.lowest_observed_loss:.4g}"
    console.item(
        f"A probe of {report.examples_spent:,.0f} examples in {report.steps_spent:,} steps and "
        f"{seconds(report.seconds_spent)}: {len(report.runs)} short runs and cooldowns, down to a loss of {lowest}."
    )
    if report.step_cost is not None:
        console.item(f"A step takes {report.step_cost.in_words()}.")
    for note in report.notes:
        console.item(note, "doubt")
    if report.stopped is not None:
        console.item(f"The probe stopped early: {report.stopped}.", "doubt")
    console.say(f"\nwrote {args.out}: probe, forecast, plan and schedule as JSON; open {args.out / 'report.html'}")


def _adapts(plan: Plan) -> bool:
    """Whether a run by the plan decides itself when its rate decays."""
    return isinstance(plan.goal, ReachLoss) and plan.learning_rate_schedule == "wsd"


def _next(args: argparse.Namespace, plan: Plan) -> str:
    """The command that trains by the plan."""
    out = args.out
    words = ["batchopt", "train", args.task, str(out / "schedule.json"), "--plan", str(out / "plan.json")]
    if _adapts(plan):
        words += ["--adapt", str(out / "forecast.json")]
    return shlex.join([*words, "--checkpoint", str(_checkpoint(out, plan)), "--save", str(out / WEIGHTS)])


def _checkpoint(out: Path, plan: Plan) -> Path:
    """Of the training by this plan: one for another goal in the same folder follows another schedule.

    A run that decides itself when its rate decays does so by the whole plan.
    """
    followed = plan if _adapts(plan) else plan.schedule
    return out / f"run-{hashlib.sha256(followed.to_json().encode()).hexdigest()[:8]}.checkpoint"


def _result(args: argparse.Namespace, report: ProbeReport, plan: Plan) -> dict[str, object]:
    from batchopt.cli.plan import plan_result

    return {
        "out": str(args.out),
        **plan_result(plan),
        "doubts": plan.doubts,
        "examples_spent": report.examples_spent,
        "next": _next(args, plan),
    }


def _train(
    task: TrainingTask,
    report: ProbeReport,
    forecast: Forecast,
    plan: Plan,
    args: argparse.Namespace,
    console: Console,
) -> None:
    """Train by the plan, in the same folder, and show what was predicted beside what was measured."""
    from batchopt.cli.train import save_weights
    from batchopt.cli.training import check_reached, train_and_show, training_result
    from batchopt.report import write_report
    from batchopt.training.adaptive import AdaptiveSchedule

    console.heading("Training by the plan")
    adaptive = AdaptiveSchedule(plan, forecast) if _adapts(plan) else None
    result, rows = train_and_show(
        task,
        plan.schedule,
        console,
        plan=plan,
        adaptive=adaptive,
        checkpoint=_checkpoint(args.out, plan),
        metrics=args.out / "metrics.jsonl",
        seed=args.seed + 1,
        log=args.log,
    )
    save_weights(result, args.out / WEIGHTS)
    page = args.out / "report.html"
    write_report(page, report=report, forecast=forecast, plan=plan, training=rows, measured=result.curve)
    console.say(f"\nwrote {args.out / WEIGHTS}, a state_dict of the trained model, and what was measured into {page}")
    console.result({**_result(args, report, plan), "training": training_result(result, rows)})
    check_reached(plan, result, adapted=adaptive is not None)
