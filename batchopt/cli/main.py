"""The `batchopt` command."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import batchopt
from batchopt.cli import (
    demo,
    doctor,
    explain,
    forecast,
    init,
    plan,
    probe,
    processes,
    report,
    run,
    schedule,
    train,
    tune,
)
from batchopt.cli.arguments import UsageError
from batchopt.cli.console import Console
from batchopt.errors import BatchoptError

_VERBS: tuple[ModuleType, ...] = (
    demo,
    init,
    doctor,
    run,
    probe,
    forecast,
    plan,
    tune,
    explain,
    train,
    schedule,
    report,
)

_DESCRIPTION = """\
Which batch size and learning rate to train a PyTorch model with, after a short probe.

  init -> doctor -> run -> train

Begin with `batchopt demo`, or with a task of your own:

  batchopt init                                                         writes the task's file, from questions
  batchopt doctor my_task.py:task                                       checks it, in ten seconds
  batchopt run my_task.py:task --goal loss=0.25 --usual-run 10epochs    probe, forecast, plan and report in out/
  batchopt train my_task.py:task out/schedule.json --plan out/plan.json

Or step by step, each of which reads the file of the step before: probe -> forecast -> plan -> tune (optional) -> train.

  batchopt probe my_task.py:task --examples 200000 -o probe.json
  batchopt forecast probe.json -o forecast.json
  batchopt plan forecast.json --reach-loss 0.25 -o plan.json --schedule schedule.json
  batchopt train my_task.py:task schedule.json --plan plan.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    The exit code is 0 on success, 1 on failure, 2 on bad usage, 130 after Ctrl-C, 141 where the
    reader of a pipe has gone.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    _check_spelling(given, parser)
    args = parser.parse_args(given)
    console = Console(as_json=args.json, is_silent=processes.rank() > 0)
    try:
        if processes.count() > 1:
            _check_together(args)
            processes.choose_device()
        args.run(args, console)
        processes.leave(0, together=True)
    except KeyboardInterrupt:
        console.end_progress()
        if processes.rank() == 0:
            print(f"batchopt: interrupted; {args.after_interrupt}", file=sys.stderr)
        processes.leave(130, together=False)
        return 130
    except BrokenPipeError:
        # Who reads has seen enough. Python would complain once more as it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        console.end_progress()
        if args.debug:
            traceback.print_exc()
        together = isinstance(error, args.raised_by_all)
        if processes.rank() == 0 or not together:
            who = f"process {processes.rank()}: " if processes.count() > 1 and not together else ""
            console.error(f"batchopt: {who}error: {_one_line(error)}")
        code = 2 if isinstance(error, UsageError) else 1
        processes.leave(code, together=together)
        return code
    return 0


def _check_together(args: argparse.Namespace) -> None:
    if not args.together:
        raise UsageError(f"`batchopt {args.verb}` is the work of one process: run it without torchrun")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, BatchoptError | UsageError | OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: where a usage of ten lines comes first, that line is not read."""

    def error(self, message: str) -> NoReturn:
        Console(as_json=False).error(f"{self.prog}: error: {message} ({self.prog} --help says more)")
        self.exit(2)


def _check_spelling(given: Sequence[str], whole: argparse.ArgumentParser) -> None:
    """End where an option is mistyped: argparse would first say that another one is missing."""
    verb = next((word for word in given if not word.startswith("-")), "")
    verbs = next(action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    if verb not in verbs.choices:
        return
    parser: argparse.ArgumentParser = verbs.choices[verb]
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in given:
        name = word.partition("=")[0]
        if name == "--":
            return
        if name.startswith("--") and not any(option.startswith(name) for option in known):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            parser.error(f"there is no option {name}" + (f", did you mean {near[0]}?" if near else ""))


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(prog="batchopt", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"batchopt {batchopt.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for module in _VERBS:
        name = module.__name__.rpartition(".")[2]
        verb = verbs.add_parser(
            name,
            parents=[common],
            help=module.SUMMARY,
            description=f"{module.SUMMARY}\n\n{module.DETAILS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        after = getattr(module, "AFTER_INTERRUPT", "nothing was written")
        verb.set_defaults(
            run=module.run,
            after_interrupt=after,
            together=getattr(module, "TOGETHER", False),
            raised_by_all=getattr(module, "RAISED_BY_ALL", ()),
        )
    return parser
