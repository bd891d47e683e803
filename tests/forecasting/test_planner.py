"""The plan's choice against every setting looked at by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_forecast

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.carried_rates import NEAR, KnownRates
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.horizons import horizons_for, rates_for, schedule_of
from batchopt.forecasting.planner import _Grid
from batchopt.forecasting.single_run import run_over
from batchopt.learning_rate_schedule import ShapeName
from batchopt.planning.choice import DIVERGED, EQUAL, GIVEN_UP, RUINED
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.step_cost import StepCost

LAW = replace(drawn_law(7), unstable=((64, 0.8, 1.6),))
FORECAST: Forecast = replace(known_forecast(), law=LAW, warmup_examples=None, doubts=("A doubt.",))
SIZES = [8, 16, 32, 64, 128, 256]
PRICE = StepCost(64.0, 1.0, unit="examples")
BOUNDS = (8, 256)


def ends(shape: ShapeName, size: int, rate: float, horizons: Sequence[float]) -> np.ndarray:
    """Losses at the ends of runs of a setting, of the best guess and every draw, (1 + draws, horizons)."""
    k, schedules = len(horizons), [schedule_of(shape, horizon, None) for horizon in horizons]
    return np.exp(LAW.losses_at_end([size] * k, [rate] * k, schedules, horizons))


def settings() -> list[tuple[int, float]]:
    return [(size, float(rate)) for size, rates in zip(SIZES, rates_for(LAW, SIZES), strict=True) for rate in rates]


def chosen(scores: dict[tuple[int, float], tuple[float, float]]) -> tuple[int, float]:
    """Of settings with (score, steps), the one with the fewest steps among those within 1 % of the least score."""
    least = min(score for score, _ in scores.values())
    return min((each for each in scores if scores[each][0] <= least + EQUAL), key=lambda each: scores[each][1])


def near_the_runs(shape: ShapeName, size: int, rate: float, loss: float) -> float:
    """A rate, moved to within the factor of what the runs show to be best."""
    critical = FORECAST.critical_batch_size(loss, learning_rate_schedule=shape).value
    known = KnownRates(LAW, None, None, critical).of(shape, LAW.longest)
    assert known is not None
    middle = known.carried_to(size)
    return min(max(rate, middle / NEAR), middle * NEAR)


@pytest.mark.parametrize("shape", ["cosine", "wsd"])
def test_twin_the_lowest_loss_within_a_budget(shape: ShapeName) -> None:
    budget = 400_000
    plan = FORECAST.plan(LowestLoss(budget, of=PRICE), learning_rate_schedule=shape, batch_sizes=BOUNDS)
    scores = {}
    for size, rate in settings():
        steps = math.floor(budget / PRICE(size))
        losses = ends(shape, size, rate, [steps * size])[:, 0].tolist()
        if math.isfinite(np.median(losses[1:])):
            mean = np.mean([math.log(min(loss, DIVERGED * LAW.initial_loss)) for loss in losses])
            scores[size, rate] = (float(mean), float(steps))
    size, rate = chosen(scores)
    rate = near_the_runs(shape, size, rate, LAW.lowest_loss)
    assert (plan.batch_size, plan.learning_rate) == (size, pytest.approx(rate))
    assert plan.horizon == math.floor(budget / PRICE(size)) * size
    assert plan.schedule.steps * PRICE(size) <= budget
    assert [point.batch_size for point in plan.alternatives] == SIZES
    assert plan.schedule.learning_rate_schedule == schedule_of(shape, plan.horizon, None)


def needed(shape: ShapeName, size: int, rate: float, loss: float) -> list[float]:
    """Examples to a loss in every draw: horizons a factor of two apart, straight lines between in log and log."""
    horizons = [horizon for horizon in horizons_for(LAW) if horizon >= 16 * size]
    curves = np.log(ends(shape, size, rate, horizons))
    found = []
    for curve in curves.tolist():
        k = next((k for k, value in enumerate(curve) if value <= math.log(loss)), None)
        if k is None:
            found.append(math.inf)
        elif k == 0:
            found.append(horizons[0])
        else:
            part = (curve[k - 1] - math.log(loss)) / (curve[k - 1] - curve[k])
            found.append(horizons[k - 1] * (horizons[k] / horizons[k - 1]) ** part)
    return found


def test_twin_the_least_cost_to_a_loss() -> None:
    loss = 0.3
    plan = FORECAST.plan(ReachLoss(loss, PRICE), learning_rate_schedule="cosine", batch_sizes=BOUNDS)
    examples = {(size, rate): needed("cosine", size, rate, loss)[1:] for size, rate in settings()}
    middles = {setting: float(np.median(found)) for setting, found in examples.items()}
    scores = {}
    for (size, rate), found in examples.items():
        if math.isfinite(middles[size, rate]):
            best = min(middle for (own, _), middle in middles.items() if own == size)
            diverges = LAW.is_unstable([size], [rate])[1:, 0]
            most = [best * (RUINED if each else GIVEN_UP) for each in diverges]
            mean = np.mean([math.log(min(each, cap)) for each, cap in zip(found, most, strict=True)])
            scores[size, rate] = (float(mean) + math.log(PRICE(size) / size), middles[size, rate] / size)
    size, rate = chosen(scores)
    moved = near_the_runs("cosine", size, rate, loss)
    assert (plan.batch_size, plan.learning_rate) == (size, pytest.approx(moved))
    assert plan.best in plan.alternatives
    costs = {each: [own * PRICE(each[0]) / each[0] for own in found] for each, found in examples.items()}
    planned = [own * PRICE(size) / size for own in needed("cosine", size, moved, loss)[1:]]
    given_up = GIVEN_UP * float(np.median(planned))
    least = [min(given_up, planned[k], *(own[k] for own in costs.values())) for k in range(LAW.draws)]
    regret = np.mean([min(given_up, own) for own in planned]) / np.mean(least) - 1.0
    assert plan.expected_regret == pytest.approx(float(regret))
    assert plan.expected_regret > 0.01
    assert f"The plan costs {plan.expected_regret:.0%} more than the best setting" in " ".join(plan.reasons)
    assert plan.steps.value == pytest.approx(np.median(needed("cosine", size, moved, loss)[1:]) / size, rel=0.3)


def test_wsd_is_taken_where_the_task_has_no_shape() -> None:
    goal = ReachLoss(0.3, PRICE)
    assert FORECAST.task_schedule is None
    automatic = FORECAST.plan(goal, batch_sizes=BOUNDS)
    assert automatic.learning_rate_schedule == "wsd"
    assert automatic == FORECAST.plan(goal, learning_rate_schedule="wsd", batch_sizes=BOUNDS)


def test_costs_are_steps_at_the_price() -> None:
    for goal in (ReachLoss(0.3, PRICE), LowestLoss(400_000, of=PRICE)):
        plan = FORECAST.plan(goal, learning_rate_schedule="cosine", batch_sizes=BOUNDS, step_cost=StepCost(1e-3, 1e-5))
        for point in plan.alternatives:
            assert point.cost.value == pytest.approx(point.steps.value * PRICE(point.batch_size))
            assert point.examples.value == pytest.approx(point.steps.value * point.batch_size)
            assert point.seconds is not None
            assert point.seconds.high == pytest.approx(point.steps.high * (1e-3 + 1e-5 * point.batch_size))
        assert plan.reasons[0] == "A doubt."


def test_without_doubt_of_the_law_nothing_is_left_to_save() -> None:
    own = (LAW.rows[0],) * len(LAW.rows)
    sure = replace(
        LAW,
        rows=own,
        unstable=(),
        weights=(LAW.weights[0],) * len(own),
        amplitudes=((0.0,) * len(LAW.phases),) * len(own),
    )
    plan = replace(FORECAST, law=sure).plan(ReachLoss(0.3, PRICE), learning_rate_schedule="cosine", batch_sizes=BOUNDS)
    assert plan.expected_regret is not None
    assert 0.0 <= plan.expected_regret <= 1.01 * EQUAL  # of equal settings it takes the one with fewer steps
    assert FORECAST.plan(LowestLoss(400_000, of=PRICE), batch_sizes=BOUNDS).expected_regret is None


def test_a_run_that_arrives_in_too_few_draws_counts_with_multiples_of_its_horizon() -> None:
    loss, size, rate, horizon = 0.3, 64, 1.3, 32_000
    own = needed("cosine", size, rate, loss)[1:]
    assert math.isinf(np.median(own))
    assert min(own) < horizon
    run = run_over(LAW, schedule_of("cosine", horizon, None), size, rate, horizon=horizon, loss=loss)
    grid = _Grid(KnownRates(LAW, None, None, None), "cosine", loss, SIZES, PRICE)
    examples = {(each, at): needed("cosine", each, at, loss)[1:] for each, at in settings()}
    given_up = GIVEN_UP * horizon * PRICE(size) / size
    costs = [min(given_up, each * PRICE(size) / size) for each in own]
    least = [min(costs[k], *(found[k] * PRICE(b) / b for (b, _), found in examples.items())) for k in range(LAW.draws)]
    regret = grid.expected_regret(run)
    assert regret == pytest.approx(float(np.mean(costs) / np.mean(least) - 1.0))
    assert regret > 1.0


def test_no_rate_is_planned_that_most_draws_do_not_bear() -> None:
    plan = FORECAST.plan(ReachLoss(0.3, "examples"), learning_rate_schedule="cosine", batch_sizes=BOUNDS)
    for point in plan.alternatives:
        assert np.mean(LAW.is_unstable([point.batch_size], [point.learning_rate])[1:]) <= 0.5


def test_what_is_out_of_bounds() -> None:
    with pytest.raises(UnreachableGoalError, match="no batch size and learning rate within the bounds reaches"):
        FORECAST.plan(ReachLoss(1e-9, PRICE), batch_sizes=BOUNDS)
    with pytest.raises(UnreachableGoalError, match="takes two steps and stays stable within the budget"):
        FORECAST.plan(LowestLoss(100, of=PRICE), batch_sizes=BOUNDS)
    with pytest.raises(TypeError, match=r"goal must be one of batchopt\.ReachLoss, batchopt\.LowestLoss, .*, got 0\.3"):
        FORECAST.plan(0.3)  # type: ignore[arg-type]
