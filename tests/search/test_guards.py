"""What holds where the law is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
from forecasting.synthetic import true_law
from landscape import BEST, GOAL, LAW, NAMES, Objective, forecast_of

from batchopt.search import TradeoffPruner, TradeoffSampler
from batchopt.search.build import build_surrogate
from batchopt.search.prospects import Running
from batchopt.search.pruner import MANY, MOST_EXPECTED, _is_beaten
from batchopt.search.settings import Known, StudySettings
from batchopt.search.surrogate import Surrogate

optuna.logging.set_verbosity(optuna.logging.WARNING)
SEEN = Running(
    success=0.2, total=100.0, whole=100.0, spent=40.0, elsewhere=0.4, elsewhere_cost=90.0, elsewhere_index=0.008,
    others_spent=30.0, pruned_early=0, blind=False, first=False, expected=math.inf, beats_incumbent=0.3,
)  # fmt: skip


def test_a_trial_ends_when_its_chance_per_cost_left_is_beaten() -> None:
    assert not _is_beaten(SEEN)
    assert _is_beaten(replace(SEEN, success=0.02))
    assert _is_beaten(replace(SEEN, elsewhere_index=0.1))


def test_many_disappointments_spare_a_trial() -> None:
    assert _is_beaten(replace(SEEN, success=0.05))
    assert not _is_beaten(replace(SEEN, success=0.05, pruned_early=4 * MANY))


def test_a_blind_trial_may_not_spend_much_more_than_all_others() -> None:
    assert _is_beaten(replace(SEEN, success=0.9, blind=True, others_spent=10.0))
    assert not _is_beaten(replace(SEEN, success=0.9, blind=True, others_spent=30.0))


@pytest.mark.parametrize("known", ["blind", "first"])
def test_before_any_trial_has_completed_one_near_its_end_is_let_go(known: str) -> None:
    near = replace(SEEN, success=0.001, others_spent=10.0, spent=80.0, **{known: True})
    assert not _is_beaten(near)
    assert _is_beaten(replace(near, total=200.0))
    assert _is_beaten(replace(near, **{known: False}))
    # It is not, where the forecast is long exceeded.
    assert _is_beaten(replace(near, blind=False, first=True, expected=20.0))


def test_a_first_trial_ends_where_the_forecast_is_long_exceeded() -> None:
    first = replace(SEEN, success=0.9, first=True, expected=50.0, spent=120.0, total=150.0, others_spent=10.0)
    assert not _is_beaten(replace(first, spent=MOST_EXPECTED * 50.0))
    assert _is_beaten(first)


def test_what_a_forecast_expects_of_the_best() -> None:
    known = Known(StudySettings(GOAL, "batch_size", False, "lr"), forecast_of(LAW, spread=0.01).constant)
    surrogate = build_surrogate(optuna.create_study(), known)
    assert isinstance(surrogate, Surrogate)
    assert surrogate.expected == pytest.approx(BEST, rel=0.1)
    none = build_surrogate(optuna.create_study(), replace(known, forecast=None))
    assert not isinstance(none, Surrogate)


# A rate that is too low is also in the study of a wrong forecast.
@pytest.mark.parametrize("factor", [20.0, pytest.param(1 / 20.0, marks=pytest.mark.slow)])
def test_a_learning_rate_that_is_wrong_by_twenty_costs_little(factor: float) -> None:
    wrong = forecast_of(true_law(learning_rate=0.3 * factor), spread=0.1)
    sampler = TradeoffSampler(wrong, goal=GOAL, seed=0, **NAMES)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler, pruner=TradeoffPruner())
    objective = Objective()
    while not any(t.value is not None and t.state.name == "COMPLETE" and t.value < 1.3 * BEST for t in study.trials):
        study.optimize(objective, n_trials=1)
        assert len(study.trials) < 30
    assert objective.spent < 8.0 * BEST
