"""What a plan says of the task that it was made for."""

from __future__ import annotations

from dataclasses import replace

from forecasting.known_law import known_forecast

from batchopt.planning.goal import LowestLoss, ReachLoss

FORECAST = known_forecast()


def test_a_warm_up_that_is_cut_is_told() -> None:
    for goal in (ReachLoss(0.3, "examples"), LowestLoss(20_000, of="examples")):
        plan = replace(FORECAST, warmup_examples=1_000_000).plan(goal, learning_rate_schedule="cosine")
        rates = plan.schedule.learning_rate_schedule
        assert rates is not None
        assert rates.warmup_examples == plan.schedule.examples // 5
        assert (
            f"warm-up of 1,000,000 examples is longer than a fifth of this run of {plan.horizon:,}" in plan.reasons[0]
        )
        assert f"over {rates.warmup_examples:,} examples instead" in plan.reasons[0]


def test_a_warm_up_that_fits_is_not() -> None:
    for warmup in (None, 100):
        plan = replace(FORECAST, warmup_examples=warmup).plan(
            ReachLoss(0.3, "examples"), learning_rate_schedule="cosine"
        )
        assert not any("warm-up of" in reason for reason in plan.reasons)
        assert warmup is None or plan.schedule.learning_rate_schedule.warmup_examples == warmup  # type: ignore[union-attr]
