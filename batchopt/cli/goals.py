"""A goal as one word of the command line: `loss=0.25`, `accuracy=0.93`, `within=2h`, `within=90epochs`."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection

from batchopt.cli.arguments import positive
from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss, ReachMetric

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
GROUPED = re.compile(r"[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
"""A number with commas between its thousands."""
FORMS = (
    "loss=0.25 (end at this loss), METRIC=0.93 (at this value of one of the task's metrics), or within=2h (the lowest "
    "loss within so many s, min, h, examples, steps, epochs)"
)
"""How goals are written."""


WordGoal = LossGoal | ReachMetric
"""What a word can name."""


class Amount:
    """How long a run is: a number of seconds, examples, steps or epochs.

    Args:
        text: "90epochs", "2h", "200_000examples".
    """

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"([0-9.,_]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", text.strip().lower())
        unit = found[2] if found is not None else ""
        if found is None or unit not in UNITS:
            bare = "" if found is None or unit else f": {text}s are seconds, {text}epochs passes over the data"
            raise argparse.ArgumentTypeError(
                "an amount is a number with a unit (s, min, h, examples, steps or epochs), 2h or 90epochs for example, "
                f"got {text!r}{bare}"
            )
        if "," in found[1] and not GROUPED.fullmatch(found[1]):
            raise argparse.ArgumentTypeError(
                f"a comma groups thousands (200,000), and a point begins the decimals (1.5h), got {text!r}"
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


def parse_goal(
    text: str,
    *,
    least: str | None = None,
    population: int | None = None,
    metrics: Collection[str] | None = (),
) -> WordGoal:
    """The goal that a word names.

    Args:
        text: the word, in one of `FORMS`.
        least: what to spend least of on the way to a loss or a metric; seconds if None.
        population: examples in the data set, of which an epoch has so many; None where there is no such number.
        metrics: names of the task's; None where they are not known yet, and any may be meant.

    Raises:
        ArgumentTypeError: it is none, with all that there are.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and name and value):
        raise argparse.ArgumentTypeError(f"a goal is NAME=VALUE, got {text!r}; there is {FORMS}")
    if name == "within":
        return _within(value, least, population)
    if name == "loss":
        return ReachLoss(positive(value), least=least or "seconds")  # type: ignore[arg-type]
    if metrics is not None and name not in metrics:
        remedy = f"the task has no metrics: give it metrics={{{name!r}: ...}} for such a goal"
        known = f"the task's metrics are {', '.join(metrics)}" if metrics else remedy
        near = difflib.get_close_matches(name, ("loss", "within", *metrics), n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise argparse.ArgumentTypeError(f"there is no goal {name!r}{meant}; there is {FORMS}; {known}")
    return ReachMetric(name, _number(value), least=least or "seconds")  # type: ignore[arg-type]


def goal_text(text: str) -> str:
    """A word that `parse_goal` understands, whatever the data and the metrics."""
    parse_goal(text, population=1, metrics=None)
    return text


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, as 0.93 of a share, got {value!r}") from None


def _within(value: str, least: str | None, population: int | None) -> LowestLoss:
    if least is not None:
        raise argparse.ArgumentTypeError(
            f"--least belongs to a goal of a loss or a metric; within={value} is what is spent"
        )
    amount = Amount(value).in_examples(population)
    return LowestLoss(amount.number, of=amount.unit)  # type: ignore[arg-type]
