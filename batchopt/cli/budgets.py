"""How long a probe is where nobody says so: as long as one run."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchopt._wording import seconds as time_in_words
from batchopt.cli.arguments import UsageError
from batchopt.cli.goals import Amount
from batchopt.evidence import ProbeReport
from batchopt.planning.goal import Goal, ReachLoss, ReachMetric
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask

SAME_TIME = 1e-3
"""Budgets of seconds that differ by less are the same: what a report holds of one is rounded to examples."""
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What a probe may spend, and why so much; printed as words."""

    examples: int | None
    seconds: float | None
    why: str

    @property
    def amounts(self) -> str:
        """How much it is."""
        amounts = [] if self.examples is None else [f"{self.examples:,} examples"]
        amounts += [] if self.seconds is None else [time_in_words(self.seconds)]
        return " and ".join(amounts)

    def __str__(self) -> str:
        return f"a budget of {self.amounts}{', ' + self.why if self.why else ''}"


def amount(text: str) -> Amount:
    """How long a run is, as the type of an argument."""
    return Amount(text)


def budget_of(args: argparse.Namespace, goal: Goal, task: TrainingTask) -> Budget:
    """The budget that was asked for, or else as much as one run takes.

    Raises:
        UsageError: nothing says how long a run is.
    """
    if args.examples is not None or args.seconds is not None:
        if args.usual_run is not None:
            raise UsageError("--usual-run stands for a budget: leave it out, or --examples and --seconds")
        return Budget(args.examples, args.seconds, "")
    if args.usual_run is not None:
        return _of_a_run(args.usual_run, task, f"as much as a usual run of {args.usual_run.text} takes")
    if isinstance(goal, ReachLoss | ReachMetric):
        raise UsageError(_unknown(task))
    text = args.goal.partition("=")[2]
    return _of_a_run(Amount(text), task, f"as much as the run of {text} that is to be planned")


def _of_a_run(run: Amount, task: TrainingTask, why: str) -> Budget:
    try:
        run = run.in_examples(task.population)
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error)) from None
    if run.unit == "seconds":
        return Budget(None, run.number, why)
    if run.unit == "examples":
        return Budget(round(run.number), None, why)
    if task.prior is None:
        raise UsageError(
            f"{run.text} are no budget while the batch size is not known: say how many examples with --examples, or "
            "give the task prior=(batch size, learning rate) of settings that work"
        )
    return Budget(
        round(run.number * task.prior[0]), None, f"{why} at the batch size {task.prior[0]} of the task's prior"
    )


def _unknown(task: TrainingTask) -> str:
    epoch = "" if task.population is None else f" (one epoch is {task.population:,} examples)"
    return (
        "a probe is as long as one run, and nothing says how long that is: give --usual-run, the length of a run that "
        f"you would train without batchopt, 10epochs or 2h for example{epoch}; or the probe's own budget with "
        "--examples N or --seconds S"
    )


def other_budget(report: ProbeReport, asked: Budget) -> str | None:
    """How the budget of a probe differs from the one that is asked for; None where it does not.

    A report says nothing of the time that a probe with a budget of both had: that alone is not compared.
    """
    seconds = _seconds_of(report)
    if asked.examples is None:
        same = seconds is not None and math.isclose(seconds, asked.seconds or 0.0, rel_tol=SAME_TIME)
    elif asked.seconds is None:
        same = report.budget_examples == asked.examples
    else:
        same = seconds is None and report.budget_examples <= asked.examples
    if same:
        return None
    held = Budget(report.budget_examples, None, "") if seconds is None else Budget(None, seconds, "")
    return f"of {held.amounts}, and {asked.amounts} are asked for"


def _seconds_of(report: ProbeReport) -> float | None:
    """The budget of a probe that had one of seconds only; None of others.

    Such a probe counts its timing of steps by the time that it took, and its budget at the same price; others count the
    examples of it.
    """
    from batchopt.probing.budget import examples_within, price_of  # at the top every command would load torch

    timing = next((part for part in report.spending if part.part == "step time"), None)
    if timing is None or not timing.counted or timing.counted == timing.examples:
        return None
    cost = StepCost(per_step=0.0, per_example=timing.seconds / timing.counted)
    return HOUR * report.budget_examples / examples_within(HOUR, cost, price_of(0.0))
