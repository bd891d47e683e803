"""Candidates and the choice among them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchopt.errors import UnreachableGoalError
from batchopt.planning.choice import Prediction, candidate_batch_sizes, choose_lowest, choose_reaching, mean_log
from batchopt.step_cost import StepCost

PRICE = StepCost(1.0, 0.0)


def prediction(size: int, *columns: list[float]) -> Prediction:
    steps = np.array(columns).T
    return Prediction(size, np.array([0.1 * (k + 1) for k in range(len(columns))]), steps, np.full(steps.shape, 0.5))


def test_candidates() -> None:
    assert candidate_batch_sizes(1, 8) == [1, 2, 3, 4, 6, 8]
    assert candidate_batch_sizes(100, 100, multiple_of=10) == [100]
    with pytest.raises(UnreachableGoalError, match="no multiple of 64 lies within batch sizes 65 to 127"):
        candidate_batch_sizes(65, 127, multiple_of=64)
    with pytest.raises(ValueError, match="largest batch size must be at least 9, got 8"):
        candidate_batch_sizes(9, 8)


def test_a_draw_that_never_gets_there_counts_as_dear() -> None:
    values = np.array([[10.0, 10.0], [10.0, math.inf]])
    sure, doubtful = mean_log(values)
    assert sure == pytest.approx(math.log(10.0))
    assert doubtful == pytest.approx(0.5 * (math.log(10.0) + math.log(1000.0)))


def test_the_safe_setting_beats_a_gamble() -> None:
    gamble = [90.0, 90.0, math.inf, math.inf]
    safe = [100.0, 100.0, 100.0, 100.0]
    best, points = choose_reaching([prediction(32, gamble, safe)], price=PRICE, measured=None)
    assert best.learning_rate == pytest.approx(0.2)
    assert len(points) == 1


def test_the_cheaper_batch_size_wins_and_all_are_kept() -> None:
    price = StepCost(100.0, 1.0)
    best, points = choose_reaching(
        [prediction(32, [300.0, 300.0]), prediction(128, [100.0, 100.0]), prediction(1024, [80.0, 80.0])],
        price=price,
        measured=StepCost(2.0, 0.0),
    )
    assert best.batch_size == 128
    assert best.cost.value == pytest.approx(100.0 * 228.0)
    assert best.seconds is not None
    assert best.seconds.value == pytest.approx(200.0)
    assert [point.batch_size for point in points] == [32, 128, 1024]


def test_a_best_guess_that_does_not_get_there_is_no_plan() -> None:
    with pytest.raises(UnreachableGoalError, match="reaches the loss"):
        choose_reaching([prediction(32, [math.inf, 10.0])], price=PRICE, measured=None)


def test_lowest_loss() -> None:
    steps = np.full((3, 1), 50.0)
    low = Prediction(16, np.array([0.1]), steps, np.full((3, 1), 0.3))
    high = Prediction(64, np.array([0.1]), steps, np.full((3, 1), 0.4))
    assert choose_lowest([low, high], price=PRICE, measured=None)[0].batch_size == 16
    with pytest.raises(UnreachableGoalError, match="within the budget"):
        choose_lowest([Prediction(16, np.array([0.1]), steps, np.full((3, 1), math.inf))], price=PRICE, measured=None)
