"""A goal as one word of the command line: `loss=0.25`, `within=2h`, `within=90epochs`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from batchopt.cli.arguments import positive
from batchopt.planning.goal import Goal, LowestLoss, ReachLoss

LEAST = ("seconds", "examples", "steps", "balanced")
UNITS = {
    "s": ("seconds", 1.0),
    "seconds": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "hours": ("seconds", 3600.0),
    "examples": ("examples", 1.0),
    "steps": ("steps", 1.0),
    "epochs": ("epochs", 1.0),
    "epoch": ("epochs", 1.0),
}
"""Units of an amount: what it is counted in, and how many of that there are to one."""
FORMS = "loss=0.25 (end at this loss), or within=2h (the lowest loss within so many s, min, h, examples, steps, epochs)"
"""How goals are written."""


class Amount:
    """How long a run is: a number of seconds, examples, steps or epochs.

    Args:
        text: "90epochs", "2h", "200_000examples"; a number alone is seconds.
    """

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"([0-9.,_]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", text.strip().lower())
        unit = found[2] or "s" if found is not None else ""
        if found is None or unit not in UNITS:
            raise argparse.ArgumentTypeError(
                "an amount is a number with a unit (s, min, h, examples, steps or epochs), 2h or 90epochs for example, "
                f"got {text!r}"
            )
        self.text = text
        self.unit, scale = UNITS[unit]
        self.number = scale * positive(found[1].replace("_", "").replace(",", ""))

    def in_examples(self, population: int | None) -> Amount:
        """The same with epochs counted in examples.

        Raises:
            ArgumentTypeError: it is in epochs, and the data have none.
        """
        if self.unit != "epochs":
            return self
        if population is None:
            raise argparse.ArgumentTypeError(
                f"{self.text} need data with a number of examples, and these have none: say how many examples instead, "
                "200000examples for instance"
            )
        return Amount(f"{self.number * population:.17g}examples")


def parse_goal(text: str, *, least: str | None = None, population: int | None = None) -> Goal:
    """The goal that a word names.

    Args:
        text: the word, in one of `FORMS`.
        least: what to spend least of on the way to a loss; seconds if None.
        population: examples in the data set, of which an epoch has so many; None where there is no such number.

    Raises:
        ArgumentTypeError: it is none, with all that there are.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    make = _GOALS.get(name)
    if make is None or not (equals and value):
        what = f"there is no goal {name!r}" if equals else f"a goal is NAME=VALUE, got {text!r}"
        raise argparse.ArgumentTypeError(f"{what}; there is {FORMS}")
    return make(value, least, population)


def goal_text(text: str) -> str:
    """A word that `parse_goal` understands, whatever the data."""
    parse_goal(text, population=1)
    return text


def _reach_loss(value: str, least: str | None, population: int | None) -> Goal:
    return ReachLoss(positive(value), least=least or "seconds")  # type: ignore[arg-type]


def _within(value: str, least: str | None, population: int | None) -> Goal:
    if least is not None:
        raise argparse.ArgumentTypeError(f"--least belongs to a goal of loss=VALUE; within={value} is what is spent")
    amount = Amount(value).in_examples(population)
    return LowestLoss(amount.number, of=amount.unit)  # type: ignore[arg-type]


_GOALS: dict[str, Callable[[str, str | None, int | None], Goal]] = {"loss": _reach_loss, "within": _within}
"""Goals by name."""
