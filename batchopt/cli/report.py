"""`batchopt report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchopt.cli.arguments import STUDY_NAME, UsageError, check_outputs
from batchopt.cli.console import Console
from batchopt.cli.schedule_file import load_schedule
from batchopt.evidence import ProbeReport
from batchopt.forecasting.belonging import check_forecast_of_probe, check_plan_of_forecast
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.plan import Plan

SUMMARY = "Draw everything as one self-contained HTML page."
DETAILS = """\
What is not given is left out of the page. It needs no network. A forecast must be of the probe, and a plan of the
forecast, that are given with it.

  batchopt report --probe probe.json --forecast forecast.json --plan plan.json --study study.db -o report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--probe", type=Path, help="file of `batchopt probe`")
    parser.add_argument("--forecast", type=Path, help="file of `batchopt forecast`")
    parser.add_argument("--plan", type=Path, help="file of `batchopt plan`")
    parser.add_argument("--schedule", type=Path, help="schedule file, if it is not the plan's")
    parser.add_argument("--study", help="SQLite file or storage URL of `batchopt tune`")
    parser.add_argument("--name", default=STUDY_NAME, help="name of the study in it")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="page to write (report.html)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Write the page."""
    from batchopt.cli.study import load_study
    from batchopt.report import write_report

    if not any((args.probe, args.forecast, args.plan, args.schedule, args.study)):
        raise UsageError("nothing to report on: give --probe, --forecast, --plan, --schedule or --study")
    check_outputs([args.out], inputs=(args.probe, args.forecast, args.plan, args.schedule))
    probe = ProbeReport.load(args.probe) if args.probe else None
    forecast = Forecast.load(args.forecast) if args.forecast else None
    plan = Plan.load(args.plan) if args.plan else None
    if forecast is not None and probe is not None:
        check_forecast_of_probe(forecast, probe)
    if plan is not None and forecast is not None:
        check_plan_of_forecast(plan, forecast)
    write_report(
        args.out,
        report=probe,
        forecast=forecast,
        plan=plan,
        schedule=load_schedule(args.schedule) if args.schedule else None,
        study=load_study(args.study, args.name) if args.study else None,
    )
    console.say(f"wrote {args.out}: open it in a browser")
    console.result({"out": str(args.out)})
