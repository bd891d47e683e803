"""A single run against losses that are asked for one horizon at a time."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_law

from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.own_decision import CHANCE
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.single_run import (
    MOST_PATIENCE,
    SingleRun,
    estimate_of,
    examples_needed,
    of_draws,
    run_over,
    run_to_loss,
)
from batchopt.learning_rate_schedule import Shape, ShapeName

LAW = drawn_law(20)
SIZE, RATE, LOSS, NEAR = 32, 0.3, 0.3, 12_000.0


def ends(law: LossPosterior, shape: Shape, horizon: float) -> list[float]:
    """Log loss at the end of a single run of each draw: its expectation, and its own scatter."""
    found = law.losses_at_end([SIZE], [RATE], [schedule_of(shape, horizon, None)], [horizon])[:, 0]
    return (found + law.scatter()).tolist()  # type: ignore[no-any-return]


@functools.cache
def shortest(shape: Shape) -> list[float]:
    """The shortest horizon of each draw, by bisection, which begins alike for all."""
    at = functools.cache(lambda horizon: ends(LAW, shape, horizon))

    def of(draw: int) -> float:
        low, high = 16.0 * SIZE, 1e6
        for _ in range(22):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if at(middle)[draw] <= math.log(LOSS) else (middle, high)
        return high

    return [of(draw) for draw in range(1 + LAW.draws)]


@pytest.mark.parametrize("shape", ["constant", "cosine", "wsd"])
def test_twin_examples_needed(shape: ShapeName) -> None:
    needed = examples_needed(LAW, shape, SIZE, RATE, LOSS, near=NEAR)
    np.testing.assert_allclose(needed, shortest(shape), rtol=0.02)


def arrived(law: LossPosterior, run: SingleRun, shape: Shape) -> float:
    return float(np.mean(np.array(ends(law, shape, run.horizon)[1:]) <= math.log(LOSS) + 0.005))


@pytest.mark.parametrize("shape", ["constant", "cosine", "wsd"])
def test_a_horizon_is_long_enough_for_nine_of_ten_and_no_longer(shape: ShapeName) -> None:
    run = run_to_loss(LAW, shape, SIZE, RATE, LOSS, near=NEAR)
    assert run is not None
    assert run.horizon % SIZE == 0
    assert arrived(LAW, run, shape) >= CHANCE
    in_order = sorted(shortest(shape)[1:])
    least = in_order[math.ceil(CHANCE * (LAW.draws - 1))]
    assert run.horizon == pytest.approx(least, rel=0.02, abs=SIZE)
    assert least < MOST_PATIENCE * in_order[LAW.draws // 2]
    assert run.schedule == schedule_of(shape, run.horizon, None)
    assert np.all(run.examples >= SIZE)


def test_a_vague_forecast_is_not_paid_for_with_more_than_patience() -> None:
    vague = drawn_law(20, spread=2.0)
    middle = float(np.median(of_draws(examples_needed(vague, "cosine", SIZE, RATE, LOSS, near=NEAR))))
    run = run_to_loss(vague, "cosine", SIZE, RATE, LOSS, near=NEAR)
    assert run is not None
    assert run.horizon == pytest.approx(MOST_PATIENCE * middle, abs=SIZE)
    assert arrived(vague, run, "cosine") < CHANCE


def test_a_run_that_misses_is_counted_with_the_one_that_follows() -> None:
    run = run_to_loss(LAW, "cosine", SIZE, RATE, LOSS, near=NEAR)
    assert run is not None
    needed = examples_needed(LAW, "cosine", SIZE, RATE, LOSS, near=NEAR)
    for draw, end in enumerate(ends(LAW, "cosine", run.horizon)):
        if end > math.log(LOSS) + 0.005:
            assert run.examples[draw] == pytest.approx(run.horizon + max(needed[draw], run.horizon))
        elif end < math.log(LOSS) - 0.005:
            assert run.examples[draw] <= run.horizon


def test_what_is_out_of_reach_or_unstable_is_no_run() -> None:
    assert run_to_loss(known_law(), "wsd", SIZE, RATE, 1e-9, near=NEAR) is None
    assert run_to_loss(known_law(), "cosine", SIZE, 1e3, LOSS, near=NEAR) is None
    run = run_over(known_law(), schedule_of("wsd", 6_400, None), SIZE, 1e3, horizon=6_400)
    assert np.isinf(run.losses).all()


def test_twin_the_end_of_a_run_over_its_schedule() -> None:
    schedule = schedule_of("wsd", 6_400, 640)
    run = run_over(LAW, schedule, SIZE, RATE, horizon=6_400)
    alone = LAW.scattered_losses(LAW.losses_at_end([SIZE], [RATE], [schedule], [6_400]))[:, 0]
    # The two cut the run into other pieces, over each of which the law takes the mean of the rates.
    np.testing.assert_allclose(np.log(run.losses), alone, atol=0.02)
    assert run.examples.tolist() == [6_400.0] * (1 + LAW.draws)
    assert run.predicted.examples[-1] == 6_400
    assert list(run.predicted.examples) == sorted(set(run.predicted.examples))
    for low, middle, high in zip(run.predicted.low, run.predicted.losses, run.predicted.high, strict=True):
        assert low <= middle <= high
    own = sorted(run.losses[1:].tolist())
    assert (run.predicted.low[-1], run.predicted.high[-1]) == (own[0], own[-1]), "one of twenty lies beyond either end"


def test_the_first_crossing_within_a_run_is_where_its_loss_is() -> None:
    schedule = schedule_of("constant", 64_000, None)
    run = run_over(LAW, schedule, SIZE, RATE, horizon=64_000, loss=LOSS)
    for draw, examples in enumerate(run.examples):
        found = LAW.losses_at_end([SIZE], [RATE], [schedule], [examples])[draw, 0] + LAW.scatter()[draw]
        assert found == pytest.approx(math.log(LOSS), abs=0.02)


def test_estimates_are_of_the_draws_alone() -> None:
    rows = np.array([99.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert of_draws(rows).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert of_draws(rows[:1]).tolist() == [99.0]
    told = estimate_of(rows)
    assert told.value == 3.0
    assert 1.0 <= told.low <= 3.0 <= told.high <= 5.0
