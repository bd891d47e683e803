"""A goal and a length as one word of the command line."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt import LowestLoss, ReachLoss
from batchopt.cli.arguments import UsageError
from batchopt.cli.budgets import budget_of
from batchopt.cli.goals import Amount, parse_goal


@pytest.mark.parametrize(
    ("text", "least", "goal"),
    [
        ("loss=0.25", None, ReachLoss(0.25)),
        (" loss = 2.5e-1 ", "steps", ReachLoss(0.25, least="steps")),
        ("loss=3", "balanced", ReachLoss(3.0, least="balanced")),
        ("within=90s", None, LowestLoss(90.0)),
        ("within=5min", None, LowestLoss(300.0)),
        ("within=2h", None, LowestLoss(7200.0)),
        ("within=1e5steps", None, LowestLoss(1e5, of="steps")),
        ("within=200_000 examples", None, LowestLoss(2e5, of="examples")),
        ("within=200,000 examples", None, LowestLoss(2e5, of="examples")),
        ("within=1,234,567.5s", None, LowestLoss(1_234_567.5)),
        ("within=1.5epochs", None, LowestLoss(900.0, of="examples")),
    ],
)
def test_goals(text: str, least: str | None, goal: Any) -> None:
    assert parse_goal(text, least=least, population=600) == goal


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lost=0.25", r"there is no goal 'lost' \(did you mean loss\?\); there is loss=0.25 .*, or within=2h"),
        ("f1=0.25", r"there is no goal 'f1'; there is .*; the task has no metrics: give it metrics=\{'f1': \.\.\.\}"),
        ("0.25", r"a goal is NAME=VALUE, got '0.25'; there is loss="),
        ("loss=", "there is no goal 'loss'|a goal is|there is loss="),
        ("loss=low", "a number is needed, got 'low'"),
        ("loss=-1", "a positive number is needed"),
        ("within=10", r"a number with a unit .*, got '10': 10s are seconds, 10epochs passes over the data"),
        ("within=2fortnights", r"an amount is a number with a unit \(s, min, h"),
        ("within=1,5h", r"a comma groups thousands \(200,000\), and a point begins the decimals \(1.5h\), got '1,5h'"),
        ("within=0,500h", "a comma groups thousands"),
        ("within=1000,000s", "a comma groups thousands"),
        ("within=0h", "a positive number is needed"),
        ("within=h", "an amount is a number"),
    ],
)
def test_what_is_no_goal(text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        parse_goal(text, population=600)


def test_a_mistyped_metric_and_a_percentage() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"did you mean accuracy\?\).*the task's metrics are accuracy"):
        parse_goal("acuracy=0.9", metrics=["accuracy"])
    with pytest.raises(argparse.ArgumentTypeError, match=r"a number is needed, as 0\.93 of a share, got '93%'"):
        parse_goal("accuracy=93%", metrics=["accuracy"])


def test_what_does_not_go_together() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="--least belongs to a goal of a loss or a metric"):
        parse_goal("within=2h", least="steps")
    with pytest.raises(argparse.ArgumentTypeError, match="2epochs need data with a number of examples"):
        parse_goal("within=2epochs", population=None)


@given(st.floats(1e-3, 1e12), st.integers(1, 10**9))
def test_epochs_are_so_many_examples(number: float, population: int) -> None:
    amount = Amount(f"{number!r}epochs").in_examples(population)
    assert amount.unit == "examples"
    assert amount.number == pytest.approx(number * population, rel=1e-12)


def asked(**given: Any) -> Any:
    return argparse.Namespace(**{"examples": None, "seconds": None, "usual_run": None, "goal": "loss=0.1"} | given)


def task(population: int | None = 600, prior: Any = None) -> Any:
    return SimpleNamespace(population=population, prior=prior)


def test_a_probe_is_as_long_as_one_run() -> None:
    loss, hour = ReachLoss(0.1), LowestLoss(3600.0)
    assert budget_of(asked(usual_run=Amount("10epochs")), loss, task()).examples == 6_000
    assert budget_of(asked(usual_run=Amount("1h")), loss, task()).seconds == 3600.0
    within = budget_of(asked(goal="within=1h"), hour, task())
    assert (within.examples, within.seconds) == (None, 3600.0)
    assert str(within) == "a budget of 60 min, as much as the run of 1h that is to be planned"
    steps = budget_of(asked(goal="within=100steps"), LowestLoss(100.0, of="steps"), task(prior=(64, 0.1)))
    assert steps.examples == 6_400
    own = budget_of(asked(examples=5_000, seconds=60.0), loss, task())
    assert (own.examples, own.seconds) == (5_000, 60.0)


def test_where_nothing_says_how_long_a_run_is() -> None:
    with pytest.raises(UsageError, match=r"give --usual-run, .* \(one epoch is 600 examples\); or .* --examples N"):
        budget_of(asked(), ReachLoss(0.1), task())
    with pytest.raises(UsageError, match="100steps are no budget while the batch size is not known"):
        budget_of(asked(usual_run=Amount("100steps")), ReachLoss(0.1), task())
    with pytest.raises(UsageError, match="10epochs need data with a number of examples"):
        budget_of(asked(usual_run=Amount("10epochs")), ReachLoss(0.1), task(population=None))
    with pytest.raises(UsageError, match="--usual-run stands for a budget"):
        budget_of(asked(usual_run=Amount("10epochs"), examples=5), ReachLoss(0.1), task())
