"""Rows of a log as runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.runs.rows import runs_of_rows

Rows = list[dict[str, Any]]


def read(
    rows: Rows, columns: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[Branch, ...]:
    return runs_of_rows(rows, columns=columns or {}, settings=settings or {}, only="log")


def rows(**changes: Any) -> Rows:
    """A run of five points."""
    points = zip((0, 10, 20, 50, 100), (2.3, 1.5, 1.1, 0.8, 0.6), strict=True)
    return [{"run": "a", "batch_size": 8, "lr": 0.1, "step": step, "loss": loss} | changes for step, loss in points]


def test_runs_come_in_the_order_of_their_first_rows() -> None:
    mixed = [row for pair in zip(rows(run="b", lr=0.2), rows(), strict=True) for row in pair]
    found = read(mixed)
    assert [(run.learning_rate, run.curve.examples) for run in found] == [
        (0.2, (0, 80, 160, 400, 800)),
        (0.1, (0, 80, 160, 400, 800)),
    ]


def test_seeds_are_runs_of_their_own() -> None:
    found = read([*rows(seed=0), *rows(seed=1)])
    assert [run.seed for run in found] == [0, 1]


def test_text_is_read_as_numbers() -> None:
    assert read([{name: str(value) for name, value in row.items()} for row in rows()]) == read(rows())


def test_a_loss_is_evaluated_unless_an_evaluated_one_is_beside_it() -> None:
    assert read(rows())[0].training is None
    beside_training = read(rows(train_loss=1.0))[0]
    assert beside_training.curve.losses[0] == 2.3
    assert beside_training.training is not None
    beside_evaluated = read(rows(val_loss=1.0))[0]
    assert beside_evaluated.curve.losses == (1.0,) * 5
    assert beside_evaluated.training is not None
    assert beside_evaluated.training.losses[0] == 2.3


def test_settings_by_columns() -> None:
    (run,) = read(rows(lr_schedule="wsd", warmup_steps=5, horizon_steps=200, cooldown=0.5, diverged="no"))
    assert run.learning_rate_schedule is not None
    assert run.learning_rate_schedule.examples == (0, 40, 800, 1600)
    assert run.outcome == "stopped"
    (run,) = read(rows(lr_scheduler_type="linear", max_steps=-1))
    assert run.learning_rate_schedule is not None
    assert run.learning_rate_schedule.examples == (0, 800)
    assert read(rows(diverged=True))[0].outcome == "diverged"


def test_a_rate_that_changes_is_the_schedule() -> None:
    logged = [row | {"lr": rate} for row, rate in zip(rows(), (0.0, 0.1, 0.1, 0.1, 0.0), strict=True)]
    (run,) = read(logged)
    assert run.learning_rate == 0.1
    assert run.falls == (400, 800)
    assert read([row | {"schedule": "cosine"} for row in logged])[0] == run


def test_settings_that_are_given() -> None:
    bare = [{name: row[name] for name in ("run", "step", "loss")} for row in rows()]
    (run,) = read(bare, settings={"batch_size": 4, "learning_rate": 0.3, "learning_rate_schedule": "cosine"})
    assert (run.batch_size, run.learning_rate) == (4, 0.3)
    assert run.falls == (0, 400)
    assert read(bare, settings={"a": {"batch_size": 4, "learning_rate": 0.3}})[0].batch_size == 4
    assert read(rows(), settings={"batch_size": 16})[0].batch_size == 16  # counts over the log


def test_rows_of_settings_and_of_other_things_are_no_points() -> None:
    held = {"run": "a", "batch_size": 8, "lr": 0.1}
    bare = [{"run": "a", "step": row["step"], "loss": row["loss"], "accuracy": 0.5} for row in rows()]
    assert read([held, *bare, {"run": "a", "accuracy": 0.9}, {"run": "empty", "batch_size": 3}]) == read(rows())


def test_steps_and_examples_may_stand_beside_each_other() -> None:
    assert read([row | {"examples": 8 * row["step"]} for row in rows()]) == read(rows())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            rows(batch_size=""),
            "run 'a': it has no batch_size: add a column 'batch_size', say which one it is by columns=",
        ),
        (rows(lr=None), "run 'a': it has no learning_rate"),
        (rows(batch_size="8.5"), "batch_size must be a whole number of at least 1, got '8.5'"),
        (rows(lr="0,1"), "learning_rate must be a number, got '0,1': write it with a decimal point"),
        (rows(loss="low"), "run 'a': loss must be a number, got 'low'"),
        (rows(diverged="maybe"), "diverged must be true or false, got 'maybe'"),
        (rows(loss=-1.0), "losses must be zero or more, got -1"),
        (
            [*rows(), *rows(batch_size=16)],
            "batch_size must be the same all along a run, got 8 and 16: if these are two",
        ),
        ([*rows(), *rows(loss=3.0)], "losses must be of one run, and 5 of 5 places have different ones"),
        (rows(step=None), "a loss has neither steps nor examples: add a column 'step' or 'examples'"),
        (rows(step=None, epoch=1), "epochs times examples of each"),
        (rows(examples=4_000), r"steps times the batch size must be the examples, got 0 steps of 8 and 4000 examples"),
        (rows(lr_schedule="step"), "learning_rate_schedule must be one of 'constant', 'linear'"),
        ([{"accuracy": 0.5, "step": 3}], r"no row holds a loss, and the columns are 'accuracy', 'step'"),
        ([], "no row holds a loss"),
    ],
)
def test_what_breaks_a_rule(given: Rows, said: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(said) if "(" in said else said):
        read(given)


def test_settings_of_a_run_or_a_name_that_there_is_not() -> None:
    with pytest.raises(EvidenceError, match="settings are given for a run 'b', and the runs are 'a'"):
        read(rows(), settings={"b": {"batch_size": 8}})
    with pytest.raises(EvidenceError, match=r"settings must be among learning_rate, batch_size, .* got 'bs'"):
        read(rows(), settings={"bs": 8})
    with pytest.raises(EvidenceError, match="settings of run 'a' must be among"):
        read(rows(), settings={"a": {"bs": 8}})
