"""A task's prior tells the peak rate of runs far beyond the probe, and of no others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from forecasting.known_law import known_forecast

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.forecast_plan import FAR_BEYOND
from batchopt.planning.goal import LowestLoss, ReachLoss

PRICE = {"learning_rate_schedule": "wsd", "batch_sizes": (16, 256)}
FAR = LowestLoss(2_400_000, of="examples")
NEAR = LowestLoss(900_000, of="examples")


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return known_forecast()


def with_prior(forecast: Forecast, factor: float) -> tuple[Forecast, float]:
    """With a prior that many times what the plan of a long run takes, at batch size 64, and that rate by the root."""
    free = forecast.plan(FAR, **PRICE)  # type: ignore[arg-type]
    rate = factor * free.learning_rate * math.sqrt(64 / free.batch_size)
    return replace(forecast, prior=(64, rate)), rate


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_a_run_far_beyond_the_probe_keeps_near_the_prior(forecast: Forecast, factor: float) -> None:
    known, rate = with_prior(forecast, factor)
    plan = known.plan(FAR, **PRICE)  # type: ignore[arg-type]
    assert plan.horizon > FAR_BEYOND * forecast.law.longest
    at_64 = plan.learning_rate / math.sqrt(plan.batch_size / 64)
    assert 0.49 * rate <= at_64 <= 2.01 * rate
    assert plan.doubts[0].startswith(f"The run is more than {FAR_BEYOND:g} times as long as the probe's longest,")


def test_a_run_within_the_probes_reach_is_planned_without_it(forecast: Forecast) -> None:
    known, _ = with_prior(forecast, 0.1)
    assert known.plan(NEAR, **PRICE) == forecast.plan(NEAR, **PRICE)  # type: ignore[arg-type]


def test_a_prior_at_which_nothing_is_stable_is_left_and_that_is_said(forecast: Forecast) -> None:
    known = replace(forecast, prior=(64, 0.3), law=replace(forecast.law, unstable=((16, 0.05, 0.06),)))
    free = replace(known, prior=None)
    goal = LowestLoss(2_000_000, of="examples")
    plan, other = known.plan(goal, **PRICE), free.plan(goal, **PRICE)  # type: ignore[arg-type]
    assert plan.doubts[0].startswith("No rate near the task's prior, 0.3 at batch size 64, is predicted to be stable")
    assert plan.best == other.best


def test_a_loss_that_only_rates_far_from_the_prior_reach_is_out_of_reach(forecast: Forecast) -> None:
    known = replace(forecast, prior=(64, 1e-6), law=replace(forecast.law, longest=100.0))
    goal = ReachLoss(0.5, "examples")
    assert replace(known, prior=None).plan(goal, **PRICE).horizon > FAR_BEYOND * 100.0  # type: ignore[arg-type]
    with pytest.raises(
        UnreachableGoalError, match=r"within a factor of two of the task's prior, 1e-06 at batch size 64"
    ):
        known.plan(goal, **PRICE)  # type: ignore[arg-type]


def test_a_goal_out_of_reach_says_the_same_with_a_prior(forecast: Forecast) -> None:
    known, _ = with_prior(forecast, 1.0)
    with pytest.raises(UnreachableGoalError, match="no batch size and learning rate within the bounds reaches"):
        known.plan(ReachLoss(1e-9, "examples"))
