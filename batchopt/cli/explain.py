"""`batchopt explain`."""

from __future__ import annotations

import argparse

from batchopt.cli.arguments import STUDY_NAME
from batchopt.cli.console import Console

SUMMARY = "Say why each trial of a study was proposed or pruned."
DETAILS = """\
  batchopt explain study.db
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("study", help="SQLite file or storage URL of `batchopt tune`")
    parser.add_argument("--name", default=STUDY_NAME, help="name of the study in it")


def run(args: argparse.Namespace, console: Console) -> None:
    """Print a line per trial."""
    from batchopt.cli.study import load_study
    from batchopt.search import explain

    lines = explain(load_study(args.study, args.name))
    for line in lines:
        console.item(line)
    console.result({"trials": lines})
