"""The forecast's read-outs against the law that made the runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.synthetic import fitted, simulated_report, true_b_crit, true_law

from batchopt.errors import EvidenceError, UnreachableGoalError, UnresolvedError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.step_cost import StepCost

LAW = true_law()


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return fitted()


def test_read_outs_cover_the_truth(forecast: Forecast) -> None:
    loss = 1.0
    crit = forecast.critical_batch_size(loss)
    assert crit.low <= true_b_crit(LAW, loss) <= crit.high
    steps = forecast.steps(128, 0.2, loss)
    assert steps.low / 1.1 <= LAW.steps_to([128.0], [0.2], loss)[0, 0] <= steps.high * 1.1
    rate = forecast.learning_rate(128, loss)
    assert rate.low / 1.5 <= LAW.best_steps([128.0], loss)[1][0, 0] <= rate.high * 1.5
    end = forecast.loss(128, 0.2, 40_000)
    assert end.value == pytest.approx(LAW.losses_at([128.0], [0.2], [40_000.0])[0, 0], rel=0.1)


def test_local_is_above_average_where_the_noise_grows(forecast: Forecast) -> None:
    assert forecast.local_critical_batch_size(1.0).value > forecast.critical_batch_size(1.0).value


def test_intervals_widen_below_the_lowest_observed_loss(forecast: Forecast) -> None:
    seen, beyond = forecast.critical_batch_size(1.2), forecast.critical_batch_size(0.55)
    assert math.log(beyond.high / beyond.low) > 1.5 * math.log(seen.high / seen.low)


def test_round_trip_keeps_every_read_out(forecast: Forecast) -> None:
    again = Forecast.from_json(forecast.to_json())
    assert again == forecast
    assert again.critical_batch_size(0.9) == forecast.critical_batch_size(0.9)


def test_the_noise_scales_tell_on_thin_evidence() -> None:
    report = simulated_report(LAW)
    one_size = tuple(branch for branch in report.branches if branch.batch_size == 256)
    with_noise = Forecast.fit(replace(report, branches=one_size))
    without = Forecast.fit(replace(report, branches=one_size, noise_scales=()))
    told, untold = with_noise.critical_batch_size(1.0), without.critical_batch_size(1.0)
    assert told.low <= true_b_crit(LAW, 1.0) <= told.high
    assert math.log(told.high / told.low) < 0.8 * math.log(untold.high / untold.low)
    assert any("one batch size" in doubt for doubt in with_noise.doubts)


def test_bad_losses(forecast: Forecast) -> None:
    with pytest.raises(ValueError, match=r"loss must lie below the initial loss 2\.3, got 3"):
        forecast.critical_batch_size(3.0)
    with pytest.raises(UnreachableGoalError, match="beyond what the forecast reaches"):
        forecast.critical_batch_size(1e-12)
    with pytest.raises(UnreachableGoalError, match="not predicted to reach"):
        forecast.steps(64, 0.1, 1e-12)
    with pytest.raises(EvidenceError, match="fewer than two noise scales"):
        replace(forecast, noise_trend=None).noise_scale(1.0)


def test_an_unresolved_read_out_gives_no_bare_number(forecast: Forecast) -> None:
    far = forecast.critical_batch_size(0.3)
    assert not far.resolved
    with pytest.raises(UnresolvedError, match="unresolved"):
        float(far)


@pytest.mark.parametrize(
    "least", ["seconds", "balanced", "steps", "examples", ("steps", "examples"), StepCost(64.0, 1.0)]
)
def test_plan_is_near_the_true_optimum(forecast: Forecast, least: object) -> None:
    goal = ReachLoss(0.9, least=least)  # type: ignore[arg-type]
    plan = forecast.plan(goal, batch_sizes=(8, 2048))
    sizes = np.array([float(size) for size in (8, 16, 32, 64, 128, 256, 512, 1024, 2048)])
    best = min(LAW.best_steps(sizes, goal.loss)[0][0] * [plan.price(size) for size in sizes])
    steps = LAW.steps_to([float(plan.batch_size)], [plan.learning_rate], goal.loss)[0, 0]
    # Regret of at most 25 % against the best constant setting there is.
    assert steps * plan.price(plan.batch_size) <= 1.25 * best
    assert plan.schedule_cost.value <= plan.cost.value
    assert plan.steps.value * plan.batch_size == pytest.approx(plan.examples.value)


def test_lowest_loss_spends_the_budget(forecast: Forecast) -> None:
    plan = forecast.plan(LowestLoss(within=2.0, of="seconds"))
    assert plan.cost.value == pytest.approx(2.0, rel=0.02)
    assert plan.best.loss.value < forecast.initial_loss


def test_plan_respects_bounds_memory_and_multiples(forecast: Forecast) -> None:
    assert forecast.plan(ReachLoss(0.9, "steps"), batch_sizes=(8, 64)).batch_size <= 64
    tight = StepCost(1e-3, 1e-5, largest_batch_size=100)
    assert forecast.plan(ReachLoss(0.9, "steps"), step_cost=tight).batch_size <= 100
    assert all(point.batch_size % 8 == 0 for point in forecast.plan(ReachLoss(0.9), multiple_of=8).alternatives)
    with pytest.raises(UnreachableGoalError, match="largest batch that fits in memory is 100"):
        forecast.plan(ReachLoss(0.9), batch_sizes=(200, 400), step_cost=tight)


def test_goals_that_cannot_be_met(forecast: Forecast) -> None:
    with pytest.raises(UnreachableGoalError, match="reaches"):
        forecast.plan(ReachLoss(1e-12))
    with pytest.raises(UnreachableGoalError, match="needs no training"):
        forecast.plan(ReachLoss(5.0))
    with pytest.raises(UnreachableGoalError, match="within the budget"):
        forecast.plan(LowestLoss(within=1e-9))
    with pytest.raises(EvidenceError, match="measured step cost"):
        replace(forecast, step_cost=None).plan(ReachLoss(0.9))


def test_an_extrapolated_plan_says_so(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(0.5))
    assert any("extrapolated" in reason for reason in plan.reasons)
    if not plan.cost.resolved:
        assert plan.reasons[0].startswith("This is a best guess")


def test_cooldowns_are_left_out() -> None:
    """Their rate falls, which the law knows nothing of."""
    report = simulated_report(LAW)
    schedule = LearningRateSchedule((0, 8_000, 10_000), (1.0, 1.0, 0.0))
    cooldown = Branch(256, 9.0, LossCurve((9_000, 10_000), (0.1, 0.01)), learning_rate_schedule=schedule)
    warmed_up = replace(cooldown, learning_rate_schedule=LearningRateSchedule((0, 100), (0.0, 1.0)))
    with_it = Forecast.fit(replace(report, branches=(*report.branches, cooldown)))
    assert with_it == fitted()
    assert Forecast.fit(replace(report, branches=(*report.branches, warmed_up))) != fitted()
