"""`batchopt forecast`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batchopt.cli.arguments import positive
from batchopt.cli.console import Console
from batchopt.errors import UnreachableGoalError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.uncertainty import Estimate

SUMMARY = "Fit one law of the loss to a probe, and show the critical batch size over the whole training."
DETAILS = """\
Fits one law to all runs and cooldowns of a probe, for any schedule of the learning rate. What is shown is for a rate
that warms up and decays (by the task's own schedule, or else wsd: a stable rate, then a linear decay over the last
fifth). A loss is reached at the end of the decay. At the critical batch size of a loss, a run takes twice the fewest
steps and twice the fewest examples to it; the local one is of the training that happens at that loss. A question mark
says that a value is unresolved.

  batchopt forecast probe.json -o forecast.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("probe", type=Path, help="report of `batchopt probe`")
    parser.add_argument("-o", "--out", type=Path, default=Path("forecast.json"), help="file to write (forecast.json)")
    parser.add_argument(
        "--loss", type=positive, action="append", default=[], help="also forecast at this loss; repeatable"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Fit and write the forecast."""
    forecast = Forecast.fit(ProbeReport.load(args.probe))
    forecast.save(args.out)
    losses = show_forecast(forecast, console, args.loss)
    console.say(f"\nwrote {args.out}; next: batchopt plan {args.out} --reach-loss LOSS")
    console.result(
        {
            "out": str(args.out),
            "doubts": forecast.doubts,
            "critical_batch_size": [{"loss": x, "estimate": forecast.critical_batch_size(x)} for x in losses],
        }
    )


def show_forecast(forecast: Forecast, console: Console, asked: list[float]) -> list[float]:
    """The forecast as a table; returns the losses that it is shown at."""
    lowest, initial = forecast.lowest_observed_loss, forecast.initial_loss
    ladder = [initial * (lowest / initial) ** part for part in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)]
    rows, losses, beyond = [], [], []
    for loss in sorted({*ladder, *asked}, reverse=True):
        try:
            average = forecast.critical_batch_size(loss)
        except UnreachableGoalError as error:
            if loss in asked:
                raise
            beyond.append(str(error))
            continue
        losses.append(loss)
        seen = "observed" if loss >= lowest else "extrapolated"
        local = _told(partial(forecast.local_critical_batch_size, loss))
        rows.append((loss, average, local, _told(partial(forecast.learning_rate, 64, loss)), seen))
    console.table(("loss", "critical batch size to it", "local, at it", "peak rate at batch 64", "this loss was"), rows)
    for text in beyond:
        console.item(f"Not in the table: {text}.")
    for doubt in forecast.doubts:
        console.item(f"Doubt: {doubt}")
    return losses


def _told(read: Callable[[], Estimate]) -> Estimate | str:
    """A read-out, or a dash where the forecast has none."""
    try:
        return read()
    except UnreachableGoalError:
        return "-"
