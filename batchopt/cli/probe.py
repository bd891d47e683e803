"""`batchopt probe`."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli import processes
from batchopt.cli.arguments import (
    UsageError,
    add_batch_sizes,
    add_goal,
    count,
    goal_of,
    has_goal,
    not_negative,
    positive,
)
from batchopt.cli.console import LOADING, Console
from batchopt.cli.live import LatestRuns
from batchopt.errors import BatchoptError, EvidenceError
from batchopt.evidence import Branch, ProbeReport
from batchopt.planning.goal import Goal

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask

SUMMARY = "Measure a training task: noise scales, short runs and their cooldowns, step cost."
DETAILS = """\
Trains the task for a short while, within the budget, and writes what it measured: noise scales, the losses of short
runs at two batch sizes and of cooldowns off them (the learning rate falls to zero), seconds per step. Finished parts
are kept beside the output (probe.json.partial/) until it is done: after Ctrl-C or a crash the same command goes on
where it stopped. A file that is there already is not overwritten.

  batchopt probe my_task.py:task --examples 200000 -o probe.json
  batchopt probe my_task.py:task --examples 200000 --reach-loss 0.25       ends early where longer runs don't pay

Under torchrun the first process probes; a model that the task shards (FSDP2) is probed by all of them.
"""

TOGETHER = True
"""Whether several processes may run it, under torchrun."""
AFTER_INTERRUPT = "the same command goes on where it stopped"


class NothingMeasuredError(BatchoptError):
    """A probe ended without a run that is of use."""


RAISED_BY_ALL = (NothingMeasuredError,)
"""What all processes raise at the same place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("-o", "--out", type=Path, default=Path("probe.json"), help="file to write (probe.json)")
    parser.add_argument(
        "--examples", type=count, help="ceiling on examples that get a gradient (an evaluated one: 1/3)"
    )
    parser.add_argument("--seconds", type=positive, help="ceiling on wall-clock time")
    parser.add_argument(
        "--per-step", type=not_negative, default=0.0, help="examples that a step counts for beside its own (0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument(
        "--learning-rate", type=positive, help="a rate that works; if left out, the task's prior, or a search"
    )
    add_goal(parser, required=False, priced=False)
    add_batch_sizes(parser)
    parser.add_argument("--workers", type=count, default=1, help="short runs in parallel (processes, by joblib)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Probe the task and write the report."""
    console.progress(LOADING, None)
    from batchopt.cli.task_file import load_task, task_place

    task_place(args.task)
    if args.examples is None and args.seconds is None:
        raise UsageError("a probe needs a budget: give --examples N or --seconds S")
    if (args.least or args.of) and not has_goal(args):
        raise UsageError("--least belongs to --reach-loss, and --of to --within: give the goal that the probe is for")
    if args.out.is_dir():
        raise IsADirectoryError(f"{args.out} is a folder: give the name of a file in it")
    # With parts beside it, a probe was ended between writing the file and clearing them away.
    if args.out.exists() and not journal_of(args.out).exists():
        raise FileExistsError(f"{args.out} is there already: give another name with -o, or delete it to probe again")
    task = load_task(args.task)
    processes.join(task.torch_device)
    report = probe_with_progress(
        task,
        args.out,
        console,
        examples=args.examples,
        seconds=args.seconds,
        per_step=args.per_step,
        seed=args.seed,
        goal=goal_of(args, priced=False) if has_goal(args) else None,
        learning_rate=args.learning_rate,
        batch_sizes=args.batch_sizes,
        workers=args.workers,
    )
    show_probe(report, console)
    if not is_usable(report):
        raise NothingMeasuredError(
            f"the probe has no run that a forecast could be fitted to, and nothing was written: {report.stopped}"
        )
    why_not = why_no_forecast(report)
    if why_not is None:
        console.say(f"\nwrote {args.out}; next: batchopt forecast {args.out}")
    else:
        console.say(f"\nwrote {args.out}, to which no forecast can be fitted: {why_not}", "doubt")
    console.result(
        {
            "out": str(args.out),
            "stopped": report.stopped,
            "notes": list(report.notes),
            "decisions": list(report.decisions),
            "why_no_forecast": why_not,
            "examples_spent": report.examples_spent,
            "budget_spent": report.budget_spent,
            "budget_examples": report.budget_examples,
            "seconds_spent": report.seconds_spent,
            "noise_scales": [
                {"loss": r.at.loss if r.at else None, "kind": r.kind, "batch_size": r.batch_size}
                for r in report.noise_scales
            ],
        }
    )


def probe_with_progress(
    task: TrainingTask,
    out: Path,
    console: Console,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    per_step: float = 0.0,
    seed: int = 0,
    goal: Goal | None = None,
    learning_rate: float | None = None,
    batch_sizes: tuple[int, int] | None = None,
    workers: int = 1,
) -> ProbeReport:
    """Probe with a progress bar and a table of the latest runs, resumable beside `out`, and write `out`."""
    from joblib import parallel_config

    from batchopt.probing.probe import probe

    journal = journal_of(out)
    console.show_below(LatestRuns(journal))
    with parallel_config(n_jobs=workers):
        report = probe(
            task,
            examples=examples,
            seconds=seconds,
            per_step=per_step,
            seed=seed,
            goal=goal,
            learning_rate=learning_rate,
            batch_sizes=batch_sizes,
            journal=journal,
            progress=console.progress,
        )
    console.end_progress()
    console.show_below(None)
    if processes.rank() == 0:
        if is_usable(report):
            report.save(out)
        shutil.rmtree(journal)
    return report


def is_usable(report: ProbeReport) -> bool:
    """Whether a run is left that a forecast could be fitted to."""
    return any(run.outcome != "diverged" for run in report.runs)


def why_no_forecast(report: ProbeReport) -> str | None:
    """Why a probe's runs are too few to fit a forecast to; None where they are not."""
    from batchopt.forecasting.gathered import gather
    from batchopt.forecasting.posterior import usable_evidence

    try:
        known = gather(report, (), initial_loss=None, adaptive=None)
        usable_evidence(known.runs, initial_loss=known.initial_loss, delay=known.delay)
    except EvidenceError as error:
        return str(error)
    return None


def journal_of(out: Path) -> Path:
    """Where the finished parts of a probe are kept until it is done."""
    return out.with_name(out.name + ".partial")


def _is_of_examples(report: ProbeReport) -> bool:
    return math.isclose(report.budget_spent, report.examples_spent, rel_tol=0.01)


def show_probe(report: ProbeReport, console: Console) -> None:
    """The report as tables."""
    budget, spent = report.budget_examples, report.budget_spent
    # Where steps count too, the budget is in other examples than those that were seen.
    ceiling = (
        f"budget {budget:,} examples, {spent / budget:.0%} of it"
        if _is_of_examples(report)
        else f"{spent / budget:.0%} of the budget"
    )
    console.say(
        f"{ceiling} spent: {report.examples_spent:,.0f} examples in {report.steps_spent:,} steps and "
        f"{report.seconds_spent:.1f} s"
    )
    console.table(
        ("part", "examples", "of the spent budget", "steps", "seconds"),
        [
            (s.part, s.examples, f"{s.of_budget / max(spent, 1):.0%}", s.steps, f"{s.seconds:.1f}")
            for s in report.spending
        ],
    )
    if report.noise_scales:
        _show_noise_scales(report, console)
    _show_runs("runs", [run for run in report.runs if run.is_constant], console)
    title = "cooldowns: off the end of a run, the learning rate falls to zero"
    _show_runs(title, [run for run in report.runs if not run.is_constant], console)
    if report.step_cost is not None:
        cost = report.step_cost
        scatter = f" (give or take a factor of {cost.scatter:.2f})" if cost.scatter > 1.0 else ""
        console.say(f"\na step takes {cost.in_words()}{scatter}")
    if report.decisions:
        console.say()
        console.title("what was decided on the way")
    for decision in report.decisions:
        console.item(decision)
    for note in report.notes:
        console.say(f"\n{note}", "doubt")
    if report.stopped is not None and is_usable(report):
        console.say(f"\nThe probe stopped early: {report.stopped}. What was measured before is in the report.", "doubt")


def _show_noise_scales(report: ProbeReport, console: Console) -> None:
    console.say()
    console.title("noise scale along tuned runs, with its 90 % interval")
    everything = report.provenance.population
    console.table(
        ("loss", "kind", "noise scale (examples)", "measured on", "at examples"),
        [
            (
                r.at.loss if r.at else None,
                r.kind,
                r.batch_size,
                f"all {r.examples:,}" if r.examples == everything else r.examples,
                r.at.examples if r.at else None,
            )
            for r in report.noise_scales
        ],
    )
    for kind, method in sorted({(r.kind, r.method) for r in report.noise_scales}):
        console.item(f"{kind}: {method}")


def _show_runs(title: str, runs: Sequence[Branch], console: Console) -> None:
    if not runs:
        return
    console.say()
    console.title(title)
    examples = ("examples",) if runs[0].is_constant else ("from examples", "to examples")
    console.table(
        ("batch", "learning rate", *examples, "last loss", "outcome"),
        [(r.batch_size, r.learning_rate, *(r.falls or (round(r.examples),)), r.last_loss, r.outcome) for r in runs],
    )
