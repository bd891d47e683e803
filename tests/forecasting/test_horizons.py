"""Losses at the ends of runs over a grid, one run at a time; where curves cross a loss, point by point."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_law
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from batchopt.forecasting.horizons import (
    LEAST_STEPS,
    ends_of,
    first_crossing,
    horizons_for,
    rates_for,
    schedule_of,
    warmup_within,
)
from batchopt.learning_rate_schedule import SHAPES, WARMUP, LearningRateSchedule, ShapeName

LAW = replace(drawn_law(4), unstable=((32, 0.5, 1.0),))
SIZES, RATES, HORIZONS = [8, 128], np.array([[0.1, 0.4], [0.4, 50.0]]), np.array([500.0, 4_000.0, 32_000.0])


def crossing_of_one(losses: list[float], log_examples: list[float], target: float) -> float:
    """Walks along one curve."""
    for k, loss in enumerate(losses):
        if loss > target:
            continue
        if k == 0 or not math.isfinite(losses[k - 1]):
            return math.exp(log_examples[k])
        part = (losses[k - 1] - target) / (losses[k - 1] - loss)
        return math.exp(log_examples[k - 1] + part * (log_examples[k] - log_examples[k - 1]))
    return math.inf


@given(
    arrays(float, (3, 2, 5), elements=st.floats(-3.0, 3.0).map(lambda x: round(x, 6)) | st.just(math.inf)),
    st.floats(-3.0, 3.0),
)
def test_twin_first_crossing(log_losses: np.ndarray, target: float) -> None:
    log_examples = np.log([100.0, 150.0, 900.0, 1_000.0, 64_000.0])
    found = first_crossing(log_losses, log_examples, target)
    for i, j in np.ndindex(3, 2):
        one = crossing_of_one(log_losses[i, j].tolist(), log_examples.tolist(), target)
        assert found[i, j] == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("warmup", [None, 300])
@pytest.mark.parametrize("shape", ["constant", "cosine", "wsd"])
def test_twin_ends_are_those_of_single_runs(shape: ShapeName, warmup: int | None) -> None:
    ends = ends_of(LAW, shape, SIZES, RATES, HORIZONS, warmup_examples=warmup)
    assert ends.log_losses.shape == (1 + LAW.draws, 2, 2, 3)
    for i, j, k in np.ndindex(2, 2, 3):
        size, rate, horizon = SIZES[i], RATES[i, j], HORIZONS[k]
        schedule = schedule_of(shape, horizon, warmup)
        alone = LAW.losses_at_end([size], [rate], [schedule], [horizon])[:, 0]
        if horizon < LEAST_STEPS * size:
            alone = np.full_like(alone, math.inf)
        np.testing.assert_allclose(ends.log_losses[:, i, j, k], alone, rtol=1e-10)
    assert np.isinf(ends.log_losses[:, 1, 1]).all(), "no draw bears that rate"
    assert np.isinf(ends.log_losses[:, 1, :, 0]).all(), "four steps are no run"
    unsure = ends_of(LAW, shape, [32], np.array([[0.7]]), HORIZONS[-1:], warmup_examples=warmup).log_losses
    assert 0 < np.isinf(unsure).sum() < unsure.size, "some draws bear this one"


def test_a_run_over_the_horizon_that_is_told_ends_at_the_loss() -> None:
    """One that is interpolated between horizons a factor of 1.19 apart, against a run of exactly that length."""
    horizons = 4_000.0 * 2.0 ** np.arange(0.0, 4.0, 0.25)
    ends = ends_of(LAW, "wsd", [32], np.array([[0.3]]), horizons)
    needed = ends.examples_to(0.3)[:, 0, 0]
    assert np.isfinite(needed).all()
    for draw, horizon in enumerate(needed):
        found = LAW.losses_at_end([32], [0.3], [schedule_of("wsd", horizon, None)], [horizon])[draw, 0]
        assert math.exp(found) == pytest.approx(0.3, rel=0.01)
    assert np.all(ends.examples_to(0.2) >= ends.examples_to(0.3)), "less loss takes longer"


@given(st.integers(1, 4_096))
def test_rates_go_with_the_root_of_the_batch_and_a_step_apart(size: int) -> None:
    law = known_law()
    one, four = rates_for(law, [size, 4 * size])
    np.testing.assert_allclose(four, 2.0 * one)
    np.testing.assert_allclose(one[1:] / one[:-1], 2.0**0.5)
    low, high = (rate * math.sqrt(size) for rate in law.learning_rates)
    assert one[0] == pytest.approx(low / 4.0)
    assert 1.4 * high < one[-1] < 2.9 * high


def test_horizons_are_doublings_around_the_longest_run() -> None:
    horizons = horizons_for(known_law())
    np.testing.assert_allclose(horizons[1:] / horizons[:-1], 2.0)
    assert (horizons[0], horizons[-1]) == (60_000.0 / 128.0, 60_000.0 * 1024.0)


@given(st.sampled_from(SHAPES), st.floats(2.0, 1e7), st.none() | st.integers(0, 10**7))
def test_every_run_has_a_schedule_of_its_own_length(shape: ShapeName, examples: float, warmup: int | None) -> None:
    schedule = schedule_of(shape, examples, warmup)
    horizon = round(examples)
    within = warmup_within(horizon, warmup)
    assert within <= max(1, horizon / 5), "a fifth at most"
    assert within == (round(WARMUP * horizon) if warmup is None else min(warmup, horizon // 5))
    assert schedule == LearningRateSchedule.of(shape, examples=horizon, warmup_examples=within)
    assert schedule.examples[-1] <= horizon
