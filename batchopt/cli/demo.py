"""`batchopt demo`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli.arguments import count
from batchopt.cli.console import FORECASTING, PLANNING, Console
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan

if TYPE_CHECKING:
    import optuna

    from batchopt.probing.task import TrainingTask
    from batchopt.training.result import TrainingResult

SUMMARY = "The whole flow on handwritten digits, in two minutes; leaves its files in out/demo."
DETAILS = """\
Probe, forecast, plan, a short Optuna study, and a training run by the plan that decides itself when its learning rate
decays, on the digits that ship with scikit-learn. Nothing is downloaded. Open out/demo/report.html afterwards.

  batchopt demo
"""

AFTER_INTERRUPT = "the same command goes on with the probe where it stopped, and begins the study anew"

BUDGET = 300_000
GOAL_LOSS = 0.05
TRIALS = 16
HABITS = ((8, 0.1), (1024, 0.1))
"""Settings that people begin with, and the trade-off law refuses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("-o", "--out", type=Path, default=Path("out/demo"), help="folder to write (out/demo)")
    parser.add_argument("--examples", type=count, default=BUDGET, help=f"budget of the probe ({BUDGET:,})")
    parser.add_argument("--trials", type=count, default=TRIALS, help=f"trials of the study ({TRIALS})")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Run all steps."""
    import torch

    from batchopt.cli.digits import make_task
    from batchopt.cli.forecast import show_forecast
    from batchopt.cli.plan import show_plan
    from batchopt.cli.probe import probe_with_progress, show_probe
    from batchopt.cli.training import check_reached, compare, show_comparison, show_decays, train_by
    from batchopt.cli.tune import study_result
    from batchopt.report import write_report
    from batchopt.search import summarise
    from batchopt.training.adaptive import AdaptiveSchedule

    began = time.perf_counter()
    # The model is tiny: a second thread costs more than it brings.
    torch.set_num_threads(1)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    task = make_task()

    console.heading("1. Probe: train a little, measure the gradient noise")
    report = probe_with_progress(task, out / "probe.json", console, examples=args.examples, seed=args.seed)
    show_probe(report, console)

    console.heading("2. Forecast: the critical batch size over the training")
    console.begin(FORECASTING)
    forecast = Forecast.fit(report)
    forecast.save(out / "forecast.json")
    show_forecast(forecast, console, [])

    console.heading(f"3. Plan: least time to a loss of {GOAL_LOSS}")
    console.begin(PLANNING)
    plan = forecast.plan(ReachLoss(GOAL_LOSS))
    save_plan(plan, out)
    show_plan(plan, console)

    console.heading("4. Study: Optuna over batch size, learning rate and weight decay, around the plan")
    study = search_around(plan, forecast, task, args, console)

    console.heading("5. Train by the plan: predicted beside measured")
    # The stable part of the plan's wsd schedule has no end: the run itself decides when its rate decays.
    adaptive = AdaptiveSchedule(plan, forecast)
    result = train_by(task, adaptive, console, plan=plan, seed=args.seed + 1)
    show_decays(adaptive, result, console)
    rows = compare(plan, plan.schedule, result)
    show_comparison(result, rows, console)
    show_worse_study(study, plan, result, console)

    write_report(
        out / "report.html",
        report=report,
        forecast=forecast,
        plan=plan,
        study=study,
        training=rows,
        measured=result.curve,
    )
    seconds = time.perf_counter() - began
    console.say(f"\ndone in {seconds:.0f} s; open {out / 'report.html'} in a browser")
    console.result(
        {
            "out": str(out),
            "seconds": seconds,
            "examples_spent": report.examples_spent,
            "batch_size": plan.batch_size,
            "learning_rate": plan.learning_rate,
            "study": study_result(study, summarise(study)),
            "compared": [{"name": r.name, "predicted": r.predicted, "measured": r.measured} for r in rows],
        }
    )
    check_reached(plan, result, adapted=True)


def search_around(
    plan: Plan, forecast: Forecast, task: TrainingTask, args: argparse.Namespace, console: Console
) -> optuna.Study:
    """A new study around the plan, run and shown."""
    from batchopt.cli.study import Search, run_study
    from batchopt.cli.tune import show_study

    file: Path = args.out / "study.db"
    file.unlink(missing_ok=True)
    search = Search.around(
        plan, largest_batch=forecast.batch_size_limit, trials=args.trials, seed=args.seed, first=HABITS
    )
    console.say(f"two settings of habit are tried first, batch:rate {' and '.join(f'{b}:{r}' for b, r in HABITS)}")
    study = run_study(task, forecast, search, console, study=str(file))
    show_study(study, search, console)
    return study


def show_worse_study(study: optuna.Study, plan: Plan, result: TrainingResult, console: Console) -> None:
    """Say so, and why that can be, where the plan's own run cost less than the study's best trial."""
    own = cost_to_the_loss(plan, result)
    completed = any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))
    if own is None or not completed or study.best_value <= own:
        return
    console.item(
        f"The study's best trial cost more than this run, {study.best_value:.3g} {plan.price.unit} against {own:.3g} "
        f"at the same price of a step: a study of {len(study.trials)} trials does not try the plan's setting itself, "
        "and a run of the same setting varies by tens of per cent with its seed."
    )


def cost_to_the_loss(plan: Plan, result: TrainingResult) -> float | None:
    """What a run cost until it reached the plan's loss, at the plan's price, as a study prices its trials.

    What it went back on is paid as well.
    """
    if result.reached is None:
        return None
    steps = [(min(1.0, (result.reached - seen) / size), size) for seen, size in result.schedule.batches()]
    steps.append((result.steps_gone_back, plan.batch_size))
    return sum(plan.price.of_run(batch_size=size, steps=part) for part, size in steps if part > 0)


def save_plan(plan: Plan, out: Path) -> None:
    """Write the plan and its schedule."""
    plan.save(out / "plan.json")
    plan.schedule.save(out / "schedule.json")
