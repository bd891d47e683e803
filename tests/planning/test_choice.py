"""Candidates and the choice among them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchopt.errors import UnreachableGoalError
from batchopt.planning.choice import candidate_batch_sizes, choose, mean_log


def test_candidates() -> None:
    assert candidate_batch_sizes(1, 8) == [1, 2, 4, 8]
    assert candidate_batch_sizes(100, 100, multiple_of=10) == [100]
    assert candidate_batch_sizes(20, 100, multiple_of=24) == [24, 48, 96]
    with pytest.raises(UnreachableGoalError, match="no multiple of 64 lies within batch sizes 65 to 127"):
        candidate_batch_sizes(65, 127, multiple_of=64)
    with pytest.raises(ValueError, match="largest batch size must be at least 9, got 8"):
        candidate_batch_sizes(9, 8)


def test_a_draw_that_never_gets_there_counts_as_dear() -> None:
    values = np.array([[10.0, 10.0], [10.0, math.inf]])
    sure, doubtful = mean_log(values, most=1000.0)
    assert sure == pytest.approx(math.log(10.0))
    assert doubtful == pytest.approx(0.5 * (math.log(10.0) + math.log(1000.0)))


def test_a_draw_counts_with_no_more_than_where_it_is_given_up() -> None:
    values, most = np.array([[10.0, 50.0], [900.0, 900.0]]), np.array([[40.0, 40.0], [40.0, 4_000.0]])
    expected = [0.5 * math.log(10.0 * 40.0), 0.5 * math.log(40.0 * 900.0)]
    assert mean_log(values, most=most) == pytest.approx(expected)


def test_the_safe_setting_beats_a_gamble() -> None:
    gamble, safe = [90.0, 90.0, math.inf, math.inf], [100.0] * 4
    scores = mean_log(np.array([gamble, safe]).T, most=10_000.0)
    assert choose(scores, np.zeros(2)) == (1,)


def test_of_equal_settings_the_one_with_the_fewest_steps_is_taken() -> None:
    scores = np.log([[1.0, 1.005, 1.2], [1.009, 1.5, math.inf]])
    assert choose(scores, np.log([[400.0, 200.0, 50.0], [100.0, 20.0, 10.0]])) == (1, 0)
    assert choose(np.log([1.0, 1.02]), np.log([400.0, 200.0])) == (0,), "2 % dearer is not equal"


def test_there_is_no_choice_where_nothing_gets_there() -> None:
    assert choose(np.full((2, 3), math.inf), np.zeros((2, 3))) is None
