"""Rows of a log as runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.learning_rate_schedule import LearningRateSchedule
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
    once = [{"run": "a", "seed": 3}, *rows()]
    assert read(once) == read(rows(seed=3))


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


def test_settings_count_over_logged_rates() -> None:
    logged = [row | {"lr": rate} for row, rate in zip(rows(), (0.0, 0.1, 0.1, 0.1, 0.0), strict=True)]
    assert read(logged, settings={"learning_rate_schedule": "constant"})[0] == read(rows())[0]
    (run,) = read(logged, settings={"learning_rate": 0.3, "learning_rate_schedule": "linear", "warmup_steps": 5})
    assert run.learning_rate == 0.3
    assert run.learning_rate_schedule == LearningRateSchedule.of("linear", examples=800, warmup_examples=40)
    assert read(rows(peak_lr=0.3), settings={"learning_rate": 0.2})[0].learning_rate == 0.2
    assert read(rows(peak_lr=0.1001))[0].learning_rate == 0.1001  # rounding
    (run,) = read(rows(warmup_examples=80, lr_schedule="wsd"), settings={"warmup_steps": 5})
    assert run.learning_rate_schedule is not None
    assert run.learning_rate_schedule.examples[1] == 40
    with pytest.raises(EvidenceError, match="settings give learning_rate, which counts over the logged learning rates"):
        read(logged, settings={"learning_rate": 0.3})


def test_parts_of_a_batch_do_not_matter_where_the_batch_is_the_global_one() -> None:
    parts = rows(
        world_size=2, gradient_accumulation_steps=1, per_device_train_batch_size=4, per_device_eval_batch_size=8
    )
    assert read(parts, settings={"batch_size": 8}) == read(rows())
    assert read(parts, columns={"batch_size": "batch_size"}) == read(rows())
    named = [{**row, "global_batch_size": row["batch_size"], "batch_size": ""} for row in parts]
    assert read([{name: value for name, value in row.items() if name != "batch_size"} for row in named]) == read(rows())
    assert read(rows(world_size=1)) == read(rows())


def test_the_history_of_a_trainer() -> None:
    """As the trainer of Hugging Face logs: losses, evaluations, and at the end the mean over the whole run."""
    steps = range(10, 110, 10)
    history: Rows = [{"loss": 2.0 - step / 100, "learning_rate": 0.1, "epoch": 1.0, "step": step} for step in steps]
    history += [{"eval_loss": 1.9 - step / 100, "eval_runtime": 1.0, "step": step} for step in (50, 100)]
    history.append({"train_runtime": 9.0, "train_loss": 1.45, "total_flos": 1e9, "step": 100})
    (run,) = read(history, settings={"batch_size": 8})
    assert run.curve.losses == pytest.approx((1.4, 0.9))
    assert run.training is not None
    assert run.training.losses == pytest.approx([2.0 - step / 100 for step in steps])
    columns = list(dict.fromkeys(name for row in history for name in row))
    table = [{name: str(row.get(name, "")) for name in columns} for row in history]
    assert read(table, settings={"batch_size": 8}) == (run,)


def test_nan_in_a_row_of_another_metric_was_not_logged() -> None:
    nan = float("nan")
    mixed = [*rows(lr=0.1, epoch=1), {"run": "a", "step": 120, "loss": nan, "accuracy": 0.5, "epoch": 2}]
    assert read(mixed)[0].outcome == "finished"
    assert read([*rows(epoch=1), {"run": "a", "step": 120, "loss": nan, "epoch": 2}])[0].outcome == "diverged"


def test_a_run_has_diverged_where_one_row_says_so() -> None:
    told = [row | {"diverged": row["step"] == 100} for row in rows()]
    assert read(told)[0].outcome == "diverged"


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
        ([*rows(), *rows(loss=3.0)], "losses must be of one run, and after 800 examples they begin again at 0"),
        (rows(batch_size="1,024"), "batch_size must be a number, got '1,024': write it as 1024"),
        (rows(lr="inf"), "learning_rate must be finite"),
        (rows(batch_size=[8]), r"batch_size must be one value, got [8]"),
        (rows(loss=10**400), "loss must be a number below 1e308"),
        (rows(horizon_examples=100), "the run goes on to 800 examples, past its horizon of 100: are these steps"),
        (rows(peak_lr=0.3), "the configured learning rate is 0.3, and the logged one is 0.1 all along: settings="),
        (rows(world_size=2), "batch_size must count all devices and accumulated gradients together, and the log holds"),
        (rows(step=None), "a loss has neither steps nor examples: add a column 'step' or 'examples'"),
        (rows(step=None, epoch=1), "epochs times examples of each"),
        (rows(examples=4_000), r"steps times the batch size must be the examples, got 0 steps of 8 and 4000 examples"),
        (rows(lr_schedule="step"), "learning_rate_schedule must be one of 'constant', 'linear'"),
        ([{"accuracy": 0.5, "step": 3}], r"no row holds a loss, and the columns are 'accuracy', 'step'"),
        ([], "no row holds a loss"),
    ],
)
def test_what_breaks_a_rule(given: Rows, said: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(said) if "(" in said or "[" in said else said):
        read(given)


def test_settings_of_a_run_or_a_name_that_there_is_not() -> None:
    with pytest.raises(EvidenceError, match="settings are given for a run 'b', and the runs are 'a'"):
        read(rows(), settings={"b": {"batch_size": 8}})
    with pytest.raises(EvidenceError, match=r"settings must be among learning_rate, batch_size, .* got 'bs'"):
        read(rows(), settings={"bs": 8})
    with pytest.raises(EvidenceError, match="settings of run 'a' must be among"):
        read(rows(), settings={"a": {"bs": 8}})
