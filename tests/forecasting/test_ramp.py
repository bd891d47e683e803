"""A batch size that rises once: its course step by step, its price, and when it is taken."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_law
from hypothesis import given
from hypothesis import strategies as st

from batchopt.forecasting.horizons import LEAST_STEPS, schedule_of
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.ramp import (
    FACTORS,
    LEAST_GAIN,
    LENGTHS,
    SHARES,
    _costs,
    _course,
    _horizon,
    _ways,
    cheapest_ramp,
)
from batchopt.forecasting.schedule_law import Course
from batchopt.forecasting.single_run import SingleRun, run_to_loss
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.step_cost import StepCost

LAW = replace(drawn_law(6), steepness=1e-9)
LOSS, RATE = 0.3, 0.3
EXAMPLES = StepCost(0.0, 1.0, unit="examples")
STEPS_TOO = StepCost(40.0, 1.0, unit="examples")


def constant(size: int, *, law: LossPosterior = LAW) -> SingleRun:
    run = run_to_loss(law, "cosine", size, RATE, LOSS, near=12_000.0)
    assert run is not None
    return run


def step_by_step(schedule: Schedule, *, rate: float = RATE) -> Course:
    """One piece for every step."""
    sizes = [float(size) for _, size in schedule.batches()]
    rates = schedule.learning_rate_schedule
    assert rates is not None
    edges = np.cumsum([0.0, *sizes])
    return Course(np.ones(len(sizes)), np.array(sizes), np.maximum(rate * rates.means(edges), 1e-12))


@pytest.mark.parametrize("way", [(32, 64, 0.5), (16, 64, 0.25), (64, 128, 0.75)])
def test_twin_the_course_of_a_ramp_is_that_of_its_steps(way: tuple[int, int, float]) -> None:
    horizon, rates = 16_384, schedule_of("cosine", 16_384, None)
    schedule = Schedule((Segment(0, way[0]), Segment(round(way[2] * horizon), way[1])), horizon, None, rates)
    pieces = _course(way, RATE, rates, horizon, delay=0.0)
    steps = step_by_step(schedule)
    assert pieces.steps.sum() == pytest.approx(steps.steps.sum())
    assert (pieces.steps * pieces.batch_sizes).sum() == pytest.approx(horizon)
    by_pieces, by_steps = LAW.losses_along([pieces, steps])
    np.testing.assert_allclose(by_pieces[:, -1], by_steps[:, -1], atol=0.02)


def test_twin_costs_are_those_of_the_horizon_that_ends_at_the_loss() -> None:
    ways, lengths = [(64, 64, 0.5), (32, 64, 0.25), (64, 256, 0.5)], constant(64).horizon * LENGTHS
    found = _costs(LAW, "cosine", constant(64), ways, lengths, LOSS, STEPS_TOO, None)
    for i, way in enumerate(ways):
        per_example = way[2] * STEPS_TOO(way[0]) / way[0] + (1.0 - way[2]) * STEPS_TOO(way[1]) / way[1]
        for draw in range(1 + LAW.draws):
            if math.isfinite(found[i, draw]):
                horizon = found[i, draw] / per_example
                course = _course(way, RATE, schedule_of("cosine", horizon, None), horizon, delay=0.0)
                (ends,) = LAW.losses_along([course])
                if horizon > 1.001 * lengths[0]:
                    assert math.exp(ends[draw, -1]) == pytest.approx(LOSS, rel=0.02)
                else:  # the shortest that was tried is more than enough
                    assert math.exp(ends[draw, -1]) <= LOSS


@given(st.integers(1, 300), st.lists(st.integers(1, 2_000), min_size=1, max_size=5))
def test_ways_are_one_rise_from_or_to_the_batch_within_the_bounds(size: int, sizes: list[int]) -> None:
    ways = list(_ways(size, sizes))
    assert len(set(ways)) == len(ways)
    for first, second, share in ways:
        assert second / first in FACTORS
        assert share in SHARES
        assert size in (first, second)
        assert first == size or first >= min(sizes)
        assert second == size or second <= max(sizes)


@given(st.sampled_from([(32, 64), (16, 64), (64, 128)]), st.sampled_from(SHARES), st.floats(0.6, 1.0))
def test_the_horizon_of_a_ramp_costs_what_was_said(way: tuple[int, int], share: float, relative: float) -> None:
    run = replace(constant_of_64(), horizon=64_000)
    horizon = _horizon(run, *way, share, relative, STEPS_TOO)
    assert horizon % way[1] == 0
    steps = horizon * (share / way[0] + (1.0 - share) / way[1])
    cost, of_constant = 40.0 * steps + horizon, STEPS_TOO(64) * 1_000
    assert relative * of_constant <= cost * (1.0 + 1e-9) <= relative * of_constant + STEPS_TOO(way[1]) * 2.0


def constant_of_64() -> SingleRun:
    """Its horizon is all that counts."""
    return SingleRun(64, RATE, schedule_of("cosine", 64_000, None), 64_000, np.zeros(1), np.zeros(1), None)  # type: ignore[arg-type]


def test_a_batch_that_is_too_large_at_first_is_raised_to_and_that_pays() -> None:
    best = constant(256)
    ramp = cheapest_ramp(LAW, "cosine", best, ReachLoss(LOSS, "examples"), EXAMPLES, [16, 256], warmup_examples=None)
    assert ramp is not None
    first, second = ramp.segments
    assert first.batch_size < second.batch_size <= 256
    assert first.start_examples == 0 < second.start_examples < ramp.horizon
    assert ramp.relative_cost < 1.0 - LEAST_GAIN
    assert ramp.horizon == pytest.approx(ramp.relative_cost * best.horizon, abs=second.batch_size)
    assert ramp.schedule == schedule_of("cosine", ramp.horizon, None)
    schedule = Schedule(ramp.segments, ramp.horizon, RATE, ramp.schedule)
    plain = Schedule.constant(256, examples=best.horizon, learning_rate_schedule=best.schedule)
    raised, kept = LAW.losses_along([step_by_step(schedule), step_by_step(plain)])
    assert np.all(raised[:, -1] <= kept[:, -1] + 0.1), "about the same loss, after fewer examples"


def test_what_does_not_pay_for_certain_is_left() -> None:
    best = constant(16)
    goal = ReachLoss(LOSS, "examples")
    assert cheapest_ramp(LAW, "cosine", best, goal, EXAMPLES, [16, 16], warmup_examples=None) is None, "no way at all"
    assert cheapest_ramp(LAW, "cosine", best, goal, EXAMPLES, [16, 256], warmup_examples=None) is None, "none is better"
    budget = LowestLoss(10_000, of="examples")
    assert cheapest_ramp(LAW, "cosine", constant(256), budget, EXAMPLES, [16, 256], warmup_examples=None) is None
    assert constant(256).horizon >= LEAST_STEPS * 256


def test_a_gain_in_most_draws_is_not_enough() -> None:
    """In two of the draws no run arrives, which tells nothing for the ramp."""
    rows = [list(row) for row in LAW.rows]
    for draw in (2, 4):
        rows[draw][0] = 15.0
    doubtful = replace(LAW, rows=tuple(map(tuple, rows)))
    goal = ReachLoss(LOSS, "examples")
    sure, unsure = (
        cheapest_ramp(law, "cosine", constant(256), goal, EXAMPLES, [16, 256], warmup_examples=None)
        for law in (LAW, doubtful)
    )
    assert sure is not None
    assert unsure is None


def test_rates_that_small_batches_do_not_bear_are_no_way() -> None:
    unstable = replace(LAW, unstable=((16, 0.01, 0.02),))
    best = constant(256)
    limits = unstable.largest_stable([64, 128, 256])
    assert all(np.all(low < high) for low, high in pairwise(limits.T))
    given = {"warmup_examples": None}
    assert cheapest_ramp(unstable, "cosine", best, ReachLoss(LOSS), EXAMPLES, [16, 256], **given) is None  # type: ignore[arg-type]


def test_a_law_that_is_known_is_certain_of_every_gain() -> None:
    known = replace(known_law(), steepness=1e-9)
    best = constant(256, law=known)
    assert cheapest_ramp(known, "cosine", best, ReachLoss(LOSS), EXAMPLES, [16, 256], warmup_examples=None) is not None
