"""`batchopt explain`."""

from __future__ import annotations

import argparse

from batchopt.cli.arguments import STUDY_NAME, count
from batchopt.cli.console import Console

SUMMARY = "Say why each trial of a study was proposed or pruned."
DETAILS = """\
Says what a study reads and believes, what it did, and for each trial why the sampler proposed it and why it ended.

  batchopt explain study.db                # the reasons of the last five trials
  batchopt explain study.db --last 20      # of the last 20; --all for all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("study", help="SQLite file or storage URL of `batchopt tune`")
    parser.add_argument("--name", default=STUDY_NAME, help="name of the study in it")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--last", type=count, default=5, metavar="N", help="trials whose reasons are told (default 5)")
    shown.add_argument("--all", action="store_true", help="tell the reasons of all trials")


def run(args: argparse.Namespace, console: Console) -> None:
    """Print what the study did and believes, and the reasons of its trials."""
    from batchopt.cli.study import load_study
    from batchopt.search import explain

    lines = explain(load_study(args.study, args.name), None if args.all else args.last)
    for line in lines:
        console.item(line)
    console.result({"trials": lines})
