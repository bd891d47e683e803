"""Arguments that several commands share."""

from __future__ import annotations

import argparse

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.step_cost import StepCost


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


def batch_sizes(text: str) -> tuple[int, int]:
    """`8:4096` as the smallest and the largest batch size."""
    low, _, high = text.partition(":")
    if not (low.isdigit() and high.isdigit() and 1 <= int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"SMALLEST:LARGEST is needed, 8:4096 for example, got {text!r}")
    return int(low), int(high)


def add_batch_sizes(parser: argparse.ArgumentParser) -> None:
    """--batch-sizes LOW:HIGH."""
    parser.add_argument("--batch-sizes", type=batch_sizes, metavar="LOW:HIGH", help="smallest and largest batch size")


def add_goal(parser: argparse.ArgumentParser) -> None:
    """The goal: a loss at least cost, or the least loss within a budget."""
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--reach-loss", type=positive, metavar="LOSS", help="reach this loss at the least cost")
    goal.add_argument("--within", type=positive, metavar="N", help="reach the lowest loss within a budget of N")
    parser.add_argument(
        "--least",
        choices=("seconds", "examples", "steps", "balanced"),
        default="seconds",
        help="what to spend least of with --reach-loss (seconds by the measured step cost; default)",
    )
    parser.add_argument(
        "--of", choices=("seconds", "examples", "steps"), default="seconds", help="what the budget of --within counts"
    )
    parser.add_argument("--per-step", type=float, metavar="A", help="price a step at A + B x examples instead ...")
    parser.add_argument("--per-example", type=float, metavar="B", help="... in any unit, money for example")


def goal_of(args: argparse.Namespace) -> ReachLoss | LowestLoss:
    """The goal that the arguments name."""
    price = None
    if args.per_step is not None or args.per_example is not None:
        price = StepCost(args.per_step or 0.0, args.per_example or 0.0, unit="given units")
    if args.reach_loss is not None:
        return ReachLoss(args.reach_loss, least=price or args.least)
    return LowestLoss(args.within, of=price or args.of)
