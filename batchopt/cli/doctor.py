"""`batchopt doctor`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchopt.cli.console import LOADING, WIDTH, Console
from batchopt.errors import BatchoptError

if TYPE_CHECKING:
    from batchopt.cli.findings import Finding, Subject

SUMMARY = "Check a task in some ten seconds, before anything long is begun."
DETAILS = """\
Looks at data, labels, loss, gradients, repeatability, time and memory, a line for each, with a remedy where something
is not well. Ends with exit code 1 where a check found an error: a probe would fail, or measure something else. Warnings
don't stop a probe.

  batchopt doctor my_task.py:task
"""
MARKS = {"ok": "ok", "warning": "warning", "error": "ERROR", "skipped": "-"}
STYLES = {"ok": "good", "warning": "doubt", "error": "error", "skipped": "soft"}


class UnhealthyTaskError(BatchoptError):
    """A check of a task found an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Run all checks and show what they found."""
    console.progress(LOADING, None)
    from batchopt.cli.findings import Subject
    from batchopt.cli.task_file import load_task

    subject = Subject(load_task(args.task), args.seed)
    findings: list[Finding] = []
    for name, check, needs in checks():
        console.progress(name, None)
        finding = _checked(name, check, subject, [f for f in findings if f.state == "error" and f.check in needs])
        findings.append(finding)
        show_finding(finding, console)
    wrong = [finding.check for finding in findings if finding.state == "error"]
    doubtful = [finding.check for finding in findings if finding.state == "warning"]
    if not wrong:
        goal = next(iter(subject.task.metrics), "loss")
        warned = f" ({len(doubtful)} warning{'s' if len(doubtful) > 1 else ''})" if doubtful else ""
        console.say(
            f"\nready to probe{warned}; next: batchopt run {args.task} --goal {goal}=VALUE --usual-run 10epochs"
        )
    console.result(
        {
            "ok": not wrong,
            "checks": [
                {"check": f.check, "state": f.state, "words": f.words, "remedy": f.remedy or None} for f in findings
            ],
        }
    )
    if wrong:
        raise UnhealthyTaskError(f"{len(wrong)} of {len(findings)} checks found an error: {', '.join(wrong)}")


def checks() -> tuple[tuple[str, Callable[[Subject], Finding], tuple[str, ...]], ...]:
    """Name of each check, what it does, and the checks without which it cannot be made."""
    from batchopt.cli import check_data, check_training

    trained = ("data", "model", "optimizer", "loss")
    return (
        ("data", check_data.check_data, ()),
        ("labels", check_data.check_labels, ("data",)),
        ("evaluation data", check_data.check_evaluation_data, ()),
        ("model", check_training.check_model, ()),
        ("optimizer", check_training.check_optimizer, ("model",)),
        ("loss", check_training.check_loss, ("data", "evaluation data", "model", "optimizer")),
        ("batch norm", check_training.check_batch_norm, ("model",)),
        ("gradients", check_training.check_gradients, trained),
        ("first steps", check_training.check_first_steps, trained),
        ("time of a step", check_training.check_step_time, trained),
        ("memory", check_training.check_memory, trained),
        ("loading", check_data.check_loading, trained),
        ("evaluation", check_training.check_evaluation_cost, trained),
    )


def _checked(name: str, check: Callable[[Subject], Finding], subject: Subject, failed: list[Finding]) -> Finding:
    """One finding; what a check raises is an error that it found."""
    from batchopt.cli.findings import Finding

    if failed:
        return Finding(name, "skipped", f"not checked while there is an error in: {', '.join(f.check for f in failed)}")
    try:
        return check(subject)
    except BatchoptError as error:
        return Finding(name, "error", " ".join(str(error).split()))
    except Exception as error:  # of the task's own code
        return Finding(name, "error", f"{type(error).__name__}: {' '.join(str(error).split())}")


def show_finding(finding: Finding, console: Console) -> None:
    """One line, and its remedy."""
    lead = f"  {MARKS[finding.state]:<7}  {finding.check:<20} "
    indent = " " * len(lead)
    lines = _wrapped(finding.words, lead, indent)
    if finding.remedy:
        lines += "\n" + _wrapped(f"-> {finding.remedy}", indent, f"{indent}   ")
    console.say(lines, STYLES[finding.state] if finding.state != "ok" else None)


def _wrapped(text: str, first: str, other: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )
