"""Losses that no longer follow those of training batches are held back to what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forecasting.known_law import known_forecast, known_law, known_report

from batchopt.errors import UnreachableGoalError
from batchopt.evidence import LossCurve, ProbeReport, TrainingLosses
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.overfitting import (
    TurnedUp,
    doubt_of_overfitting,
    held_back,
    lowest_followed,
    turned_up,
)
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.uncertainty import Estimate

LAW = known_law()
TRUTH = replace(known_forecast(), law=LAW)


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return known_forecast()


def test_losses_of_examples_that_were_seen_again_are_doubted() -> None:
    report = known_report(LAW)
    reference = report.reference
    assert reference is not None
    runs, few = [reference, *report.branches], replace(report.provenance, population=10_000)
    evaluated = min(loss for run in runs for loss in run.curve.losses)
    longest = max(run.examples for run in runs)
    again = replace(report, provenance=few)
    assert lowest_followed(again, 0.5 * evaluated) == evaluated
    assert lowest_followed(again, evaluated) is None
    for population in (longest, None):
        other = replace(report, provenance=replace(few, population=population))
        assert lowest_followed(other, 0.5 * evaluated) is None
    overfits = replace(TRUTH, overfits_below=evaluated, population=10_000)
    (doubt,) = doubt_of_overfitting(overfits)
    assert doubt.startswith(f"Losses below {evaluated:.4g} were seen on training batches only")
    assert f"had been trained on up to {LAW.longest / 10_000:.0f} times" in doubt
    assert doubt_of_overfitting(TRUTH) == []


def overfitted(report: ProbeReport, *, later: float, training: float) -> ProbeReport:
    """A run whose last evaluation is `later` times the lowest, and the losses of its training batches `training`."""
    reference = report.reference
    assert reference is not None
    at, lowest = reference.curve.examples[-1], reference.curve.losses[-1]
    curve = LossCurve((at, 2 * at), (lowest, later * lowest))
    seen = TrainingLosses((0.9 * at, 1.9 * at), (0.5, training * 0.5), (0.01, 0.01))
    run = replace(reference, curve=curve, training=seen)
    provenance = replace(report.provenance, population=round(at / 4))
    return replace(report, reference=run, branches=(), provenance=provenance)


def test_where_the_evaluated_loss_turned_up_is_seen() -> None:
    report = known_report(LAW)
    rising = overfitted(report, later=1.2, training=0.5)
    turn = turned_up(rising)
    assert turn is not None
    assert turn.rise == pytest.approx(1.2)
    assert turn.later_examples == 2 * turn.examples
    assert turn.loss_after(0.5 * turn.examples) == turn.later_loss
    assert turn.loss_after(2 * turn.later_examples) == pytest.approx(1.2 * turn.later_loss)
    assert lowest_followed(rising, 0.99 * turn.lowest) == turn.lowest
    assert turned_up(report) is None
    assert turned_up(overfitted(report, later=1.01, training=0.5)) is None
    assert turned_up(overfitted(report, later=1.2, training=1.0)) is None
    new = replace(rising, provenance=replace(rising.provenance, population=10**6))
    assert turned_up(new) is None


def test_no_plan_promises_less_than_was_evaluated_where_the_loss_turned_up(forecast: Forecast) -> None:
    goal = LowestLoss(100_000, "examples")
    plain = forecast.plan(goal)
    lowest = 1.2 * plain.loss.value
    turn = TurnedUp(64, 0.1, lowest, 8_000, 1.1 * lowest, 16_000)
    held = replace(forecast, overfits_below=lowest, turned_up=turn, population=1_000)
    assert Forecast.from_json(held.to_json()) == held
    plan = held.plan(goal)
    assert (plan.batch_size, plan.learning_rate, plan.horizon) == (plain.batch_size, plain.learning_rate, plain.horizon)
    assert (plan.loss.value, plan.loss.resolved) == (lowest, False)
    assert plan.loss.high == pytest.approx(max(plain.loss.high, turn.loss_after(plan.horizon)))
    assert min(plan.predicted.losses) >= lowest
    assert all(point.loss.value >= lowest for point in plan.alternatives)
    assert held.loss(64, 0.3, 100_000).value >= lowest
    (doubt,) = doubt_of_overfitting(held)
    assert f"it was {lowest:.4g} after 8,000 examples (8 passes over the data)" in doubt
    assert "after 16,000 (16 passes), while the losses of training batches went on falling" in doubt


def test_losses_that_only_training_batches_reached_are_not_resolved(forecast: Forecast) -> None:
    goal = ReachLoss(0.5, least="examples")
    plain = forecast.plan(goal)
    doubted = replace(forecast, overfits_below=0.8, population=10_000).plan(goal)
    assert plain.loss.resolved
    assert not doubted.loss.resolved
    assert doubted.loss.high >= 0.8
    assert (doubted.loss.value, doubted.loss.low) == (plain.loss.value, plain.loss.low)
    assert doubted.best in doubted.alternatives
    assert replace(forecast, overfits_below=0.1).plan(goal) == plain


def test_a_run_beyond_where_the_loss_rose_is_not_resolved_however_high_its_loss(forecast: Forecast) -> None:
    turn = TurnedUp(64, 0.1, 0.5, 8_000, 0.6, 16_000)
    held = replace(forecast, overfits_below=0.5, turned_up=turn, population=1_000)
    loss = Estimate(0.55, 0.52, 0.58, True)
    assert held_back(loss, held, 16_000) == loss
    beyond = held_back(loss, held, 64_000)
    assert (beyond.value, beyond.low, beyond.resolved) == (0.55, 0.52, False)
    assert beyond.high == pytest.approx(0.6 * 1.2**2), "a fifth higher with every doubling, as it was seen"


def test_a_goal_below_where_the_loss_turned_up_is_out_of_reach(forecast: Forecast) -> None:
    turn = TurnedUp(64, 0.1, 0.8, 8_000, 0.9, 16_000)
    held = replace(forecast, overfits_below=0.8, turned_up=turn, population=1_000)
    with pytest.raises(UnreachableGoalError, match=r"0\.5 is below the lowest that was evaluated, 0\.8, .*turned up"):
        held.plan(ReachLoss(0.5))
    assert held.plan(ReachLoss(1.0)).steps.value > 0


def test_a_loss_before_a_decay_is_not_compared_with_the_end_of_one() -> None:
    report = known_report(LAW)
    run = report.reference
    assert run is not None
    falling = TrainingLosses((10_000, 40_000), (0.5, 0.2), (0.01, 0.01))
    constant = replace(run, curve=LossCurve((10_000, 40_000), (0.3, 0.25)), training=falling)
    schedule = LearningRateSchedule.of("wsd", examples=12_500)
    cooled = replace(
        run,
        curve=LossCurve((12_500,), (0.23,)),
        training=TrainingLosses((12_500,), (0.4,), (0.01,)),
        learning_rate_schedule=schedule,
    )
    few = replace(report.provenance, population=1_000)
    both = replace(report, provenance=few, reference=constant, branches=(cooled,))
    assert turned_up(both) is None
    later = replace(constant, curve=LossCurve((10_000, 40_000), (0.25, 0.3)))
    assert turned_up(replace(both, reference=later)) is not None
