"""Prices from what trials cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from landscape import LAW, LOSS, PRICE, forecast_of, observation, steps_needed

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import milestones
from batchopt.search.observations import Observation
from batchopt.search.price import GUESSED, price_of
from batchopt.step_cost import Knee, StepCost

SECONDS = ReachLoss(LOSS)
TRUE = StepCost(2e-3, 1e-5)
KNEE = 100.0


def timed(sizes: list[int], true: StepCost = TRUE) -> list[Observation]:
    seen = []
    for number, size in enumerate(sizes):
        steps = steps_needed(size, 0.15)
        points = milestones(round(1.05 * steps * size))
        seen.append(observation(number, size, 0.15, examples=points, values=(steps * true(size),)))
    return seen


def test_goals_with_their_own_price() -> None:
    assert price_of(ReachLoss(LOSS, least="steps"), None, None, [], KNEE) == StepCost(1.0, 0.0, unit="steps")
    assert price_of(LowestLoss(9.0, of=PRICE), None, None, [], KNEE) == PRICE
    assert price_of(ReachLoss(LOSS, least=("steps", "examples")), None, None, [], KNEE) is None


def test_seconds_are_learned_from_completed_trials() -> None:
    learned = price_of(SECONDS, None, None, timed([16, 64, 256, 1024]), KNEE)
    assert learned is not None
    for size in (16, 128, 1024):
        assert learned(size) == pytest.approx(TRUE(size), rel=0.15)


def test_before_that_they_are_guessed_and_scaled_to_what_is_known() -> None:
    assert price_of(SECONDS, None, None, [], KNEE) == StepCost(KNEE, 1.0, unit=GUESSED)
    for sizes in ([64], [16, 64], [64, 64, 64]):
        guess = price_of(SECONDS, None, None, timed(sizes), KNEE)
        assert guess is not None
        assert guess.per_step == pytest.approx(KNEE * guess.per_example)
        assert guess(64) == pytest.approx(TRUE(64), rel=0.6)
    # Nothing tells how far a budget in seconds goes.
    assert price_of(LowestLoss(within=10.0), None, None, [], KNEE) is None


def test_learned_prices_are_never_negative() -> None:
    learned = price_of(SECONDS, None, None, timed([16, 64, 256], StepCost(0.0, 1e-5)), KNEE)
    assert learned is not None
    assert learned.per_step >= 0
    assert learned.per_example == pytest.approx(1e-5, rel=0.15)


def test_a_measured_price_is_scaled_to_what_trials_took() -> None:
    measured = StepCost(1e-3, 0.5e-5, knees=(Knee(4096.0, 1e-6),), largest_batch_size=8192)
    scaled = price_of(SECONDS, measured, LAW, timed([16, 64, 256]), KNEE)
    assert scaled is not None
    assert scaled.per_step == pytest.approx(2e-3, rel=0.15)
    assert scaled.knees[0].per_example == pytest.approx(2e-6, rel=0.15)
    assert scaled.largest_batch_size == 8192
    assert price_of(SECONDS, measured, LAW, [], KNEE) == measured


def test_balanced_is_priced_by_the_forecast() -> None:
    forecast = forecast_of(LAW).constant
    goal = ReachLoss(LOSS, least="balanced")
    steps_min, examples_min = (float(draws[0]) for draws in forecast.law.hyperbola(LOSS))
    expected = goal.price(steps_min=steps_min, examples_min=examples_min)
    assert price_of(goal, None, forecast.law, [], KNEE) == expected
    guess = price_of(ReachLoss(LOSS, least="balanced"), None, None, [], KNEE)
    assert guess is not None
    assert (guess.per_step, guess.unit) == (KNEE, GUESSED)


def test_a_budget_in_seconds_is_priced_by_how_far_trials_came() -> None:
    goal = LowestLoss(within=10.0)
    seen = [
        observation(i, size, 0.1, examples=milestones(round(10.0 / TRUE(size) * size)), values=(0.8,))
        for i, size in enumerate([16, 64, 256])
    ]
    learned = price_of(goal, None, None, seen, KNEE)
    assert learned is not None
    assert learned(64) == pytest.approx(TRUE(64), rel=0.05)


def test_a_trial_with_a_horizon_pays_for_all_of_it() -> None:
    seen = [replace(o, horizon=4.0 * max(o.curve.examples)) for o in timed([16, 64, 256, 1024])]
    seen = [replace(o, values=(o.horizon / o.batch_size * TRUE(o.batch_size),)) for o in seen if o.horizon is not None]
    learned = price_of(SECONDS, None, None, seen, KNEE)
    assert learned is not None
    for size in (16, 128, 1024):
        assert learned(size) == pytest.approx(TRUE(size), rel=1e-6)
    # A budget says nothing of what a trial costs that has its own horizon.
    of_budget = [replace(o, values=(0.8,)) for o in seen]
    assert price_of(LowestLoss(within=10.0), None, None, of_budget, KNEE) is None
