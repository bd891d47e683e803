"""`batchopt explain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchopt.cli.arguments import STUDY_NAME, UsageError, count
from batchopt.cli.console import Console
from batchopt.planning.plan import Plan

SUMMARY = "Say why each trial of a study was proposed or pruned."
DETAILS = """\
Says what a study reads and believes, what it did, and for each trial why the sampler proposed it and why it ended.

  batchopt explain study.db                # the reasons of the last five trials
  batchopt explain study.db --last 20      # of the last 20; --all for all
  batchopt explain study.db --dashboard    # and for `optuna-dashboard sqlite:///study.db`, with figures
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("study", help="SQLite file or storage URL of `batchopt tune`")
    parser.add_argument("--name", default=STUDY_NAME, help="name of the study in it")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--last", type=count, default=5, metavar="N", help="trials whose reasons are told (default 5)")
    shown.add_argument("--all", action="store_true", help="tell the reasons of all trials")
    parser.add_argument("--dashboard", action="store_true", help="save it in the study, with figures, as a note")
    parser.add_argument("--plan", type=Path, help="with --dashboard: the plan that the search began with")


def run(args: argparse.Namespace, console: Console) -> None:
    """Print what the study did and believes, and the reasons of its trials."""
    from batchopt.cli.study import load_study
    from batchopt.report import save_to_dashboard
    from batchopt.search import explain

    if args.plan is not None and not args.dashboard:
        raise UsageError("--plan is shown with --dashboard only: add it")
    study, last = load_study(args.study, args.name), None if args.all else args.last
    lines = explain(study, last)
    for line in lines:
        console.item(line)
    if args.dashboard:
        save_to_dashboard(study, None if args.plan is None else Plan.load(args.plan), last=last)
        console.say(f"saved figures and a note in {args.study}")
    console.result({"trials": lines})
