"""Trials that do not count, counted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna
from landscape import GOAL, NAMES, PRICE, steps_needed
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from batchopt.search import explain
from batchopt.search.settings import Given, remember

RANGES = {"batch_size": IntDistribution(0, 4096), "lr": FloatDistribution(0.0, 10.0)}
FINE = steps_needed(64, 0.1) * PRICE(64)


def add(
    study: optuna.Study,
    value: float | None = None,
    reports: Mapping[int, float] | None = None,
    *,
    names: tuple[str, ...] = ("batch_size", "lr"),
    **params: float,
) -> None:
    having = {name: {"batch_size": 64, "lr": 0.1, **params}[name] for name in names}
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    study.add_trial(
        create_trial(
            state=state,
            value=value,
            params=having,
            distributions={name: RANGES[name] for name in names},
            intermediate_values=dict(reports or {}),
        )
    )


def told(study: optuna.Study, what: str) -> list[str]:
    return [line for line in explain(study) if what in line]


def fresh() -> optuna.Study:
    study = optuna.create_study()
    remember(study, Given(None, GOAL, NAMES["batch_size"], NAMES["learning_rate"]))
    return study


def test_trials_that_are_left_out_are_counted_by_why() -> None:
    study = fresh()
    add(study, FINE)
    for value in (-2.0, 0.0, math.inf):
        add(study, value)
    add(study, FINE, lr=0.0)
    add(study, FINE, batch_size=0)
    add(study, None, {100: 1.0, 200: -0.5})
    add(study, FINE, names=("lr",))
    (line,) = told(study, "left out")
    assert line == (
        "7 trials are left out: 3 like trial 1: the value must be positive and finite, got -2.0: return it as it is, "
        "not its logarithm and no reward; only reports count; "
        "trial 4: the learning-rate parameter must hold a positive number, got 0.0 (parameters 'batch_size' and 'lr'); "
        "trial 5: the batch-size parameter must hold a whole number of examples, 1 or more, got 0 (parameters "
        "'batch_size' and 'lr'); "
        "trial 6: a reported loss must be positive, got -0.5: report the mean per-example loss as it is, not its "
        "logarithm and no reward; "
        "trial 7: it does not have both 'batch_size' and 'lr'."
    )


def test_nothing_is_said_where_all_count_or_have_not_begun() -> None:
    study = fresh()
    add(study, FINE)
    add(study, None, names=("lr",))
    add(study, None, {100: 2.0, 200: math.nan})
    assert told(study, "left out") == told(study, "misread") == []


def test_values_of_another_unit_are_counted() -> None:
    study = fresh()
    for _ in range(2):
        add(study, 0.8, {6_400: 1.0, 12_800: 0.8})
    (line,) = told(study, "misread")
    assert line == (
        "2 trials are probably misread, like trial 0: its value 0.8 is a loss that it reported, not a cost."
    )
