"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from batchopt.planning.goal import LowestLoss, ReachLoss, ReachMetric
from batchopt.step_cost import StepCost

STUDY_NAME = "batchopt"
"""Name of a study that is given none."""


class UsageError(Exception):
    """Arguments that do not go together; the command ends with exit code 2."""


def count(text: str) -> int:
    """A positive whole number; 200_000 and 2e5 are understood."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, got {text!r}") from None
    if value != int(value) or value < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(value)


def positive(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is needed, got {text!r}")
    return value


def not_negative(text: str) -> float:
    """Zero or a positive number."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def batch_sizes(text: str) -> tuple[int, int]:
    """`8:4096` as the smallest and the largest batch size."""
    low, _, high = text.partition(":")
    if not (low.isdigit() and high.isdigit() and 1 <= int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"SMALLEST:LARGEST is needed, 8:4096 for example, got {text!r}")
    return int(low), int(high)


def setting(text: str) -> tuple[int, float]:
    """`64:0.1` as a batch size and a learning rate."""
    size, colon, rate = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"BATCH:RATE is needed, 64:0.1 for example, got {text!r}")
    return count(size), positive(rate)


def named_value(text: str) -> tuple[str, str]:
    """`batch_size=64` as a name and a value."""
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is needed, batch_size=64 for example, got {text!r}")
    return name.strip(), value.strip()


def log_target(text: str) -> str:
    """`wandb`, `mlflow` or `tensorboard`, with what follows a colon."""
    from batchopt.training.board import check_log

    try:
        check_log(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def check_outputs(outputs: Iterable[Path | None], *, inputs: Iterable[Path | None] = ()) -> None:
    """Raise where a file cannot be written, or would take the place of another one of the same command.

    Raises:
        UsageError: two names are of the same file.
        FileNotFoundError: there is no folder for it.
        IsADirectoryError: it is a folder.
    """
    taken = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise UsageError(f"every file of a command must be another one, and {path} is named twice")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: give the name of a file in it")
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder for {path}: make it first")
        taken.add(path.resolve())


def add_batch_sizes(parser: argparse._ActionsContainer) -> None:
    """--batch-sizes LOW:HIGH."""
    parser.add_argument("--batch-sizes", type=batch_sizes, metavar="LOW:HIGH", help="smallest and largest batch size")


def add_goal(parser: argparse.ArgumentParser, *, required: bool = True, priced: bool = True) -> None:
    """The goal: a loss at least cost, or the least loss within a budget.

    Args:
        parser: of the command.
        required: whether there must be one.
        priced: whether a step may be given a price.
    """
    goal = parser.add_mutually_exclusive_group(required=required)
    goal.add_argument("--reach-loss", type=positive, metavar="LOSS", help="end at this loss at the least cost")
    goal.add_argument(
        "--reach-metric", type=metric, metavar="NAME=VALUE", help="end at this value of one of the task's metrics"
    )
    goal.add_argument("--within", type=positive, metavar="N", help="end at the lowest loss within a budget of N")
    parser.add_argument(
        "--least",
        choices=("seconds", "examples", "steps", "balanced"),
        help="what to spend least of with --reach-loss (seconds by the measured step cost; default)",
    )
    parser.add_argument(
        "--of",
        choices=("seconds", "hours", "examples", "epochs", "steps"),
        help="what the budget of --within counts (seconds; default)",
    )
    if not priced:
        return
    parser.add_argument(
        "--per-step", type=not_negative, metavar="A", help="price a step at A + B x examples instead ..."
    )
    parser.add_argument("--per-example", type=not_negative, metavar="B", help="... in any unit, money for example")


def has_goal(args: argparse.Namespace) -> bool:
    """Whether the arguments of `add_goal` name one."""
    return any(given is not None for given in (args.reach_loss, args.reach_metric, args.within))


def metric(text: str) -> tuple[str, float]:
    """NAME=VALUE, as the type of an argument."""
    name, _, value = text.partition("=")
    try:
        return name.strip() or text, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a metric is NAME=VALUE, accuracy=0.93 for example, got {text!r}") from None


def goal_of(args: argparse.Namespace, *, priced: bool = True) -> ReachLoss | ReachMetric | LowestLoss:
    """The goal that the arguments of `add_goal` name."""
    price = None
    if args.within is None and args.of is not None:
        raise UsageError("--of belongs to --within; say what --reach-loss spends least of with --least")
    if args.within is not None and args.least is not None:
        raise UsageError("--least belongs to --reach-loss; say what --within counts with --of")
    if priced and (args.per_step is not None or args.per_example is not None):
        price = StepCost(args.per_step or 0.0, args.per_example or 0.0, unit="given units")
    if args.reach_metric is not None:
        name, value = args.reach_metric
        return ReachMetric(name, value, least=price or args.least or "seconds")
    if args.reach_loss is not None:
        return ReachLoss(args.reach_loss, least=price or args.least or "seconds")
    return LowestLoss(args.within, of=price or args.of or "seconds")
