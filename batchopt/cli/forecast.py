"""`batchopt forecast`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batchopt.cli.arguments import UsageError, check_outputs, named_value, positive
from batchopt.cli.console import FORECASTING, Console
from batchopt.errors import UnreachableGoalError
from batchopt.evidence import Branch, ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.runs.read import kind_of, read_runs, without_secrets
from batchopt.uncertainty import Estimate

SUMMARY = "Fit one law of the loss to a probe, or to runs that you have, and show the critical batch size."
DETAILS = """\
Fits one law to all runs and cooldowns of a probe, for any schedule of the learning rate. What is shown is for a rate
that warms up and decays (by the task's own schedule, or else wsd: a stable rate, then a linear decay over the last
fifth). A loss is reached at the end of the decay. At the critical batch size of a loss, a run takes twice the fewest
steps and twice the fewest examples to it; the local one is of the training that happens at that loss. A question mark
says that a value is unresolved.

  batchopt forecast probe.json -o forecast.json

Logs of runs that you have trained serve without a probe, or beside one: CSV or JSON lines with a row for each logged
point, charts exported from Weights & Biases as CSV, event files of TensorBoard (a file or a folder), an Optuna study
(study.db, or a storage URL). A row holds, by these or other usual names: run, batch_size, learning_rate, step or
examples, loss (or training_loss and evaluation_loss); and where it applies learning_rate_schedule (constant, wsd,
linear, cosine), horizon_steps, warmup_steps, seed, diverged. A learning rate that changes along a run is its schedule.

  batchopt forecast runs.csv --adaptive -o forecast.json
  batchopt forecast tensorboard/ --no-adaptive --set batch_size=64 --column training_loss=train/ce
  batchopt forecast chart.csv --adaptive --column steps=Step --settings runs_table.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "evidence",
        nargs="+",
        metavar="EVIDENCE",
        help="report of `batchopt probe`, or logs of runs; several are joined",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("forecast.json"), help="file to write (forecast.json)")
    parser.add_argument(
        "--loss", type=positive, action="append", default=[], help="also forecast at this loss; repeatable"
    )
    logs = parser.add_argument_group("logs of runs")
    logs.add_argument(
        "--adaptive",
        action=argparse.BooleanOptionalAction,
        help="whether the optimizer divides by the size of the gradient, as Adam does and SGD does not",
    )
    logs.add_argument("--initial-loss", type=positive, help="of the untrained model, where no log begins with it")
    logs.add_argument(
        "--column",
        type=named_value,
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="which column holds what, where its name does not say it; repeatable",
    )
    logs.add_argument(
        "--set",
        type=named_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what no log holds and all runs share; repeatable",
    )
    logs.add_argument(
        "--settings", type=Path, metavar="FILE", help="table with a row for each run, for what no log holds"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Fit and write the forecast."""
    check_outputs([args.out], inputs=map(Path, args.evidence))
    report, runs = read_evidence(args)
    console.begin(FORECASTING)
    forecast = Forecast.fit(report, runs=runs, initial_loss=args.initial_loss, adaptive=args.adaptive)
    if runs:
        show_runs(runs, forecast, console)
    losses = show_forecast(forecast, console, args.loss)
    forecast.save(args.out)
    untimed = "" if forecast.step_cost is not None else " --per-step A --per-example B"
    console.say(f"\nwrote {args.out}; next: batchopt plan {args.out} --reach-loss LOSS{untimed}")
    if untimed:
        console.say(
            "(no step was timed: say that a step of n examples costs A + B n, in any unit; or give --least balanced)"
        )
    console.result(
        {
            "out": str(args.out),
            "doubts": forecast.doubts,
            "critical_batch_size": [{"loss": x, "estimate": forecast.critical_batch_size(x)} for x in losses],
        }
    )


def read_evidence(args: argparse.Namespace) -> tuple[ProbeReport | None, list[Branch]]:
    """The probe and the runs that the arguments name.

    Raises:
        UsageError: there are two probes, or settings in two places.
    """
    if args.set and args.settings is not None:
        raise UsageError("--set and --settings both say what the logs do not hold: add a column to the settings' table")
    _check_once(args.evidence)
    probes = [name for name in args.evidence if kind_of(name) == "record"]
    if len(probes) > 1:
        raise UsageError(f"a forecast is of one probe, got {' and '.join(probes)}")
    if not set(args.evidence) - set(probes) and (args.set or args.settings is not None or args.column):
        raise UsageError("--set, --settings and --column are for logs of runs, and there is none")
    settings = args.settings if args.settings is not None else dict(args.set)
    runs = [
        run
        for name in args.evidence
        if name not in probes
        for run in read_runs(name, columns=dict(args.column), settings=settings)
    ]
    return ProbeReport.load(probes[0]) if probes else None, runs


def _check_once(names: list[str]) -> None:
    """Raise UsageError where a log or a probe is named twice."""
    seen: dict[str, str] = {}
    for name in names:
        place = name if "://" in name else str(Path(name).resolve())
        if place in seen:
            same = {without_secrets(seen[place]): None, without_secrets(name): None}
            raise UsageError(f"each log is read once, and {' and '.join(same)} is given twice: leave one out")
        seen[place] = name


def show_runs(runs: list[Branch], forecast: Forecast, console: Console) -> None:
    """What was read, and how near the law comes to the end of each run."""
    console.table(
        ("batch size", "peak rate", "its decay", "seed", "examples", "outcome", "last loss", "the law's"),
        [
            (
                run.batch_size,
                run.learning_rate,
                _decay_in_words(run),
                run.seed,
                round(run.examples),
                run.outcome,
                run.last_loss if run.examples else "-",
                _law_at_end(run, forecast),
            )
            for run in sorted(runs, key=lambda run: (run.batch_size, run.learning_rate, run.examples))
        ],
    )
    console.say("")


def _decay_in_words(run: Branch) -> str:
    """Over which part of the run its rate falls."""
    if run.falls is None:
        return "none"
    begin, end = (n / max(run.examples, 1) for n in run.falls)
    return f"from {begin:.0%} to {min(end, 1.0):.0%}" if begin < 1.0 else "after its end"


def _law_at_end(run: Branch, forecast: Forecast) -> float | str:
    if run.outcome == "diverged" or not run.examples:
        return "-"
    rates = run.learning_rate_schedule
    return forecast.losses_along(run.batch_size, run.learning_rate, [run.examples], learning_rate_schedule=rates)[0]


def show_forecast(forecast: Forecast, console: Console, asked: list[float]) -> list[float]:
    """The forecast as a table; returns the losses that it is shown at."""
    lowest, initial = forecast.lowest_observed_loss, forecast.initial_loss
    ladder = [initial * (lowest / initial) ** part for part in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)]
    rows, losses, left_out = [], [], []
    for loss in sorted({*ladder, *asked}, reverse=True):
        try:
            average = forecast.critical_batch_size(loss)
        except UnreachableGoalError as error:
            left_out.append(str(error))
            continue
        losses.append(loss)
        seen = "observed" if loss >= lowest else "extrapolated"
        local = _told(partial(forecast.local_critical_batch_size, loss))
        rows.append((loss, average, local, _told(partial(forecast.learning_rate, 64, loss)), seen))
    console.table(("loss", "critical batch size to it", "local, at it", "peak rate at batch 64", "this loss was"), rows)
    for text in left_out:
        console.item(f"No critical batch size: {text}.")
    for doubt in forecast.doubts:
        console.item(f"Doubt: {doubt}", "doubt")
    return losses


def _told(read: Callable[[], Estimate]) -> Estimate | str:
    """A read-out, or a dash where the forecast has none."""
    try:
        return read()
    except UnreachableGoalError:
        return "-"
