"""A run that decides when its rate decays: against runs of a known law, and in the training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forecasting.known_law import known_forecast, known_law, losses_at

from batchopt.forecasting.own_decision import LATER
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.probing.evaluation import evaluation_points
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.training.adaptive import LONGEST, Adapted, AdaptiveSchedule
from batchopt.training.loader import scheduled_loader

LAW = known_law()
FORECAST = known_forecast()
LOSS = 0.1
PLAN = FORECAST.plan(ReachLoss(LOSS, least=StepCost(64.0, 1.0)), learning_rate_schedule="wsd")


def loss_at(schedule: Schedule, examples: int, *, worse: float = 1.0) -> float:
    """The true loss of a run by a schedule, times a factor that grows from one in the first thousand examples."""
    true = losses_at(LAW, PLAN.batch_size, PLAN.learning_rate, [examples], schedule.learning_rate_schedule)[0]
    return float(true) * worse ** min(1.0, examples / 1_000)


def run(adaptive: AdaptiveSchedule, *, worse: float = 1.0) -> float:
    """Follow it to its end with an evaluation at every factor of 1.2, and give the loss there."""
    seen = 0
    while seen < adaptive.examples:
        points = evaluation_points(adaptive.examples, first=10 * PLAN.batch_size)
        seen = min(next(point for point in points if point > seen), adaptive.examples)
        if seen <= adaptive.decay_begins:
            adaptive.update(seen, loss_at(adaptive.schedule, seen, worse=worse))
    return loss_at(adaptive.schedule, adaptive.examples, worse=worse)


def test_a_run_as_forecast_arrives_with_fewer_examples_than_the_plan() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    assert run(adaptive) <= LOSS
    assert adaptive.examples <= 1.05 * PLAN.horizon
    rates = adaptive.schedule.learning_rate_schedule
    assert rates is not None
    assert rates.examples[-1] == adaptive.examples
    assert rates.multipliers[-1] == 0.0
    assert adaptive.decay_begins == pytest.approx(0.8 * adaptive.examples, abs=PLAN.batch_size)


@pytest.mark.parametrize("worse", [0.8, 1.25])
def test_a_run_that_differs_from_the_forecast_arrives_all_the_same(worse: float) -> None:
    as_forecast, other = AdaptiveSchedule(PLAN, FORECAST), AdaptiveSchedule(PLAN, FORECAST)
    run(as_forecast)
    assert run(other, worse=worse) <= LOSS
    assert (other.examples > as_forecast.examples) == (worse > 1.0)


def test_less_certainty_begins_sooner() -> None:
    sure, bold = AdaptiveSchedule(PLAN, FORECAST, chance=0.97), AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    run(sure)
    run(bold)
    assert bold.examples < sure.examples


def test_a_decay_that_misses_is_gone_back_on_and_the_next_one_is_later() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    end = run(adaptive)
    before, ended = adaptive.decay_begins, adaptive.examples
    assert adaptive.may_go_on
    assert adaptive.miss(1.2 * end) == before
    assert adaptive.decay_begins >= math.floor(LATER * before)
    (decay,) = adaptive.missed
    assert (decay.begin, decay.end, decay.loss) == (before, ended, 1.2 * end)
    assert decay.predicted == pytest.approx(end, rel=0.3)
    # What was learned of the miss stays: a run that goes on as before begins later than one that saw none.
    again = AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    again.load_state(adaptive.state())
    seen = adaptive.decay_begins
    assert not again.update(seen + 1, 1.0), "the decay has begun"


def test_a_run_that_never_comes_near_ends_at_three_times_the_plan() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    assert run(adaptive, worse=20.0) > LOSS
    assert adaptive.examples == pytest.approx(LONGEST * PLAN.schedule.examples, abs=2 * PLAN.batch_size)
    assert not adaptive.may_go_on


def test_nothing_moves_once_the_decay_has_begun() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    begins, schedule = adaptive.decay_begins, adaptive.schedule
    assert not adaptive.update(begins + PLAN.batch_size, 2.0)
    assert adaptive.schedule == schedule


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_to_the_end_as_it_is_by_then(workers: int) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    seen, batches = 0, 0
    for (batch,) in scheduled_loader((torch.arange(1_000),), adaptive, num_workers=workers):
        seen, batches = seen + len(batch), batches + 1
        if batches == 10:
            assert adaptive.update(seen, 3.0 * loss_at(adaptive.schedule, seen))
    assert seen == adaptive.examples > PLAN.horizon


def test_an_iterable_data_set_cannot_follow_it() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(10))

    with pytest.raises(TypeError, match="an AdaptiveSchedule needs a map-style data set"):
        scheduled_loader(Numbers(), AdaptiveSchedule(PLAN, FORECAST))


def test_the_realised_schedule_and_the_state_round_trip(tmp_path: Path) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    adaptive.update(5_000, 0.5)
    adaptive.miss(0.2)
    adaptive.schedule.save(tmp_path / "realised.json")
    assert Schedule.load(tmp_path / "realised.json") == adaptive.schedule
    again = AdaptiveSchedule(PLAN, FORECAST)
    again.load_state(Adapted.from_json(adaptive.state().to_json()))
    assert again.state() == adaptive.state()
    assert again.begin() == PLAN.schedule
    assert again.missed == ()


def test_what_cannot_be_followed_is_refused() -> None:
    cosine = FORECAST.plan(ReachLoss(LOSS, "examples"), learning_rate_schedule="cosine")
    with pytest.raises(ValueError, match="got ReachLoss with 'cosine': plan anew"):
        AdaptiveSchedule(cosine, FORECAST)
    budget = FORECAST.plan(LowestLoss(100_000, "examples"), learning_rate_schedule="wsd")
    with pytest.raises(ValueError, match="got LowestLoss with 'wsd'"):
        AdaptiveSchedule(budget, FORECAST)
    with pytest.raises(ValueError, match=r"chance must be below 1, got 1\.0"):
        AdaptiveSchedule(PLAN, FORECAST, chance=1.0)
    other = replace(FORECAST, law=known_law(noise=5.0))
    with pytest.raises(ValueError, match="forecast must be the one that the plan was made from"):
        AdaptiveSchedule(PLAN, other)
    with pytest.raises(TypeError, match="got dict and Forecast"):
        AdaptiveSchedule({}, FORECAST)  # type: ignore[arg-type]
