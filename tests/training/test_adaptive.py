"""The adaptive schedule against closed forms, and in the training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forecasting.synthetic import true_law
from landscape import forecast_of
from torch import nn

from batchopt.errors import RecordError, UnreachableGoalError
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.noise_trend import NoiseTrend
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.noise_scale import NoiseScale
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Plan
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.training import train as train_module
from batchopt.training.adaptive import AdaptiveSchedule
from batchopt.training.loader import scheduled_loader
from batchopt.training.monitor import NoiseScaleMonitor
from batchopt.training.train import train
from batchopt.uncertainty import Estimate

PRICE = StepCost(64.0, 1.0, unit="example times")
B_CRIT = 60.0
LOSS = 0.9


def forecast(*, trend_sd: float = 3.0, **law: Any) -> Forecast:
    """A law whose local critical batch size is the same everywhere, and a noise scale of as much."""
    trend = NoiseTrend("simple", (-5.0, 5.0), (math.log(B_CRIT),) * 2, (trend_sd,) * 2, (0.5, 2.0))
    return replace(forecast_of(true_law(**{"b_mid": B_CRIT, "q": 0.0} | law)), noise_trend=trend)


FORECAST = forecast()
PLAN = FORECAST.plan(ReachLoss(LOSS, least=PRICE))


def reading(value: float, *, width: float = 1.01, resolved: bool = True) -> NoiseScale:
    high = value * width if resolved else math.inf
    return NoiseScale("simple", 1.0, value, Estimate(value, value / width, high, resolved), 100, 1, None, "", "width")


def seen_at(plan: Plan, share: float) -> tuple[int, float]:
    """Examples and loss of the plan's run after a share of its steps."""
    seen = round(share * plan.steps.value) * plan.batch_size
    return seen, float(FORECAST.law.losses_at([float(plan.batch_size)], [plan.learning_rate], [float(seen)])[0, 0])


def cost_per_progress(batch_size: float, critical: float) -> float:
    return (1.0 + critical / batch_size) * PRICE(batch_size)


def test_what_was_forecast_moves_nothing() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    for share in (0.1, 0.5, 0.9):
        assert not adaptive.update(*seen_at(PLAN, share), reading(B_CRIT))
    assert adaptive.schedule.segments == PLAN.schedule.segments
    assert 0 <= adaptive.examples - PLAN.schedule.examples < PLAN.batch_size
    assert adaptive.examples % PLAN.batch_size == 0
    assert adaptive.correction == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [16.0, 1 / 16.0])
def test_another_noise_scale_moves_to_the_size_that_is_cheapest_by_the_closed_form(factor: float) -> None:
    """Where the critical batch size is the same everywhere, the cost of the rest goes as (1 + c b / B)(a + b B)."""
    adaptive = AdaptiveSchedule(PLAN, FORECAST, batch_sizes=(1, 4096))
    seen, loss = seen_at(PLAN, 0.5)
    assert adaptive.update(seen, loss, reading(factor * B_CRIT))
    (move,) = adaptive.moves
    assert move.correction == pytest.approx(factor, rel=0.05)  # the trend is wide and the reading narrow
    sizes = [PLAN.batch_size * 2.0**k for k in range(-3, 4)]
    costs = {size: cost_per_progress(size, move.correction * B_CRIT) for size in sizes}
    best = min(costs, key=costs.__getitem__)
    assert (move.examples, move.before, move.after) == (seen, PLAN.batch_size, best)
    assert move.gain == pytest.approx(1.0 - costs[best] / costs[PLAN.batch_size], rel=1e-6)
    assert adaptive.schedule.segments[0] == PLAN.schedule.segments[0]
    assert adaptive(seen) == best
    # The rest takes as many steps as the corrected law says, in three times the planned examples at most.
    rest = 0.5 * PLAN.steps.value / (1.0 + B_CRIT / PLAN.batch_size) * (1.0 + move.correction * B_CRIT / best)
    capped = min(seen + rest * best, 3 * PLAN.schedule.examples)
    assert adaptive.examples == pytest.approx(capped, rel=0.03)


def test_a_gain_below_the_threshold_moves_nothing_and_bounds_hold() -> None:
    at = seen_at(PLAN, 0.5)
    moved = AdaptiveSchedule(PLAN, FORECAST)
    assert moved.update(*at, reading(16 * B_CRIT))
    gain = moved.moves[0].gain
    assert not AdaptiveSchedule(PLAN, FORECAST, threshold=1.01 * gain).update(*at, reading(16 * B_CRIT))
    assert AdaptiveSchedule(PLAN, FORECAST, threshold=0.99 * gain).update(*at, reading(16 * B_CRIT))
    bounded = AdaptiveSchedule(PLAN, FORECAST, threshold=0.001, batch_sizes=(1, 2 * PLAN.batch_size), multiple_of=8)
    assert bounded.update(*at, reading(300 * B_CRIT))
    assert bounded(at[0]) == 2 * PLAN.batch_size


@pytest.mark.parametrize(
    ("noise", "trend_sd", "expected"),
    [
        (None, 3.0, 1.0),
        (reading(16 * B_CRIT, resolved=False), 3.0, 1.0),
        (reading(16 * B_CRIT), 0.01, 1.0),  # the forecast is sure
        (reading(16 * B_CRIT, width=1.39), 0.2, 16.0**0.4),  # as sure as the reading, whose own scatter is 0.2 too
    ],
)
def test_a_reading_is_believed_as_far_as_it_is_known(
    noise: NoiseScale | None, trend_sd: float, expected: float
) -> None:
    adaptive = AdaptiveSchedule(PLAN, forecast(trend_sd=trend_sd))
    adaptive.update(*seen_at(PLAN, 0.5), noise)
    assert adaptive.correction == pytest.approx(expected, rel=0.2)


def test_a_budget_is_spent_and_not_more() -> None:
    plan = FORECAST.plan(LowestLoss(within=100_000.0, of=PRICE))
    adaptive = AdaptiveSchedule(plan, FORECAST)
    seen, loss = seen_at(plan, 0.5)
    assert adaptive.update(seen, loss, reading(16 * B_CRIT))
    spent = sum(PRICE(adaptive(at)) for at, _ in adaptive.schedule.batches())
    assert 100_000.0 - PRICE(adaptive(adaptive.examples - 1)) < spent <= 100_000.0


def test_a_loop_of_ones_own_sees_a_move_at_the_next_batch() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    sizes = []
    for seen, size in adaptive.batches():
        sizes.append(size)
        if len(sizes) == 10:
            assert adaptive.update(seen + size, seen_at(PLAN, 0.1)[1], reading(16 * B_CRIT))
    assert set(sizes[:10]) == {PLAN.batch_size}
    assert set(sizes[10:-1]) == {adaptive.moves[0].after}
    assert sizes == [size for _, size in adaptive.schedule.batches()]


@pytest.mark.parametrize(("workers", "behind"), [(0, 0), (1, 2)])
def test_a_loader_follows_it_from_the_next_batch_that_is_drawn(workers: int, behind: int) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    loader = scheduled_loader((torch.arange(1_000),), adaptive, num_workers=workers)
    sizes, seen = [], 0
    for (batch,) in loader:
        sizes.append(len(batch))
        seen += len(batch)
        if len(sizes) == 10:
            assert adaptive.update(seen, seen_at(PLAN, 0.1)[1], reading(16 * B_CRIT))
    # Two batches for each worker are drawn ahead; what was done is known all the same.
    assert sizes[: 10 + behind] == [PLAN.batch_size] * (10 + behind)
    assert sizes[10 + behind] == adaptive.moves[0].after
    assert sizes == [size for _, size in adaptive.schedule.batches()]
    assert seen == adaptive.examples


def test_an_iterable_data_set_cannot_follow_it() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(10))

    with pytest.raises(TypeError, match="an AdaptiveSchedule needs a map-style data set"):
        scheduled_loader(Numbers(), AdaptiveSchedule(PLAN, FORECAST))


def test_the_realised_schedule_and_the_state_round_trip(tmp_path: Path) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    adaptive.update(*seen_at(PLAN, 0.5), reading(16 * B_CRIT))
    adaptive.schedule.save(tmp_path / "realised.json")
    assert Schedule.load(tmp_path / "realised.json") == adaptive.schedule
    again = AdaptiveSchedule(PLAN, FORECAST)
    again.load_state(type(adaptive.state()).from_json(adaptive.state().to_json()))
    assert again.state() == adaptive.state()
    assert again.begin().segments == PLAN.schedule.segments
    assert again.moves == ()


def task() -> TrainingTask:
    """A regression with much more noise than was forecast."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 8, generator=generator)
    y = x.sum(1) + 3.0 * torch.randn(2_000, generator=generator)
    return TrainingTask(
        model=lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 1)),
        data=(x, y),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )


def plan_for_training() -> tuple[Plan, Forecast]:
    """The plan's own run, with a learning rate that the task bears."""
    known = replace(FORECAST, noise_trend=NoiseTrend("simple", (-9.0, 9.0), (3.0, 3.0), (3.0, 3.0), (0.5, 2.0)))
    plan = replace(
        PLAN, schedule=Schedule.constant(PLAN.batch_size, examples=313 * PLAN.batch_size, learning_rate=0.003)
    )
    return replace(plan, best=replace(plan.best, loss=Estimate(LOSS, LOSS, LOSS, True))), known


def loss_of_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's losses are above the law's initial one: show the law's own."""
    from batchopt.probing.run import TrainingRun

    def falling(run: TrainingRun) -> float:
        return 2.0 * math.exp(-run.examples_seen / 40_000)

    monkeypatch.setattr(TrainingRun, "evaluate", falling)


def test_training_follows_what_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    adaptive = AdaptiveSchedule(plan, known)
    result = train(task(), adaptive, seed=3)
    assert adaptive.moves
    assert adaptive.moves[0].after > plan.batch_size
    assert result.schedule == adaptive.schedule
    assert result.outcome == "finished"
    assert (result.steps, result.examples) == (adaptive.schedule.steps, adaptive.schedule.examples)


def test_a_failing_monitor_leaves_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    plain = train(task(), plan.schedule, seed=3)

    def broken(*_: object) -> NoiseScale:
        raise RuntimeError("no reading")

    monkeypatch.setattr(NoiseScaleMonitor, "reading", property(broken))
    monkeypatch.setattr(train_module, "READ_EVERY", 10**9)
    with pytest.warns(RuntimeWarning, match=r"no longer corrected, from 0 examples on; .*no reading"):
        result = train(task(), AdaptiveSchedule(plan, known), seed=3)
    assert result.schedule == plan.schedule
    for ours, theirs in zip(result.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    whole = train(task(), AdaptiveSchedule(plan, known), seed=3, checkpoint=tmp_path / "whole")

    class KilledError(Exception):
        pass

    def killed(seen: int, loss: float) -> None:
        if seen > 0.6 * whole.examples:
            raise KilledError

    with pytest.raises(KilledError):
        train(task(), AdaptiveSchedule(plan, known), seed=3, checkpoint=tmp_path / "cut", on_evaluation=killed)
    adaptive = AdaptiveSchedule(plan, known)
    resumed = train(task(), adaptive, seed=3, checkpoint=tmp_path / "cut")
    assert resumed.schedule == whole.schedule
    assert len(adaptive.moves) >= 1
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RecordError, match="is the checkpoint of an adaptive schedule, not of a fixed one"):
        train(task(), plan.schedule, seed=3, checkpoint=tmp_path / "cut")


def test_what_would_not_be_corrected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableGoalError, match=r"must lie within 100 to 120 and be a multiple of 1, and none does"):
        AdaptiveSchedule(PLAN, FORECAST, batch_sizes=(100, 120))
    other = forecast_of(true_law(b_mid=90.0, q=0.0))
    with pytest.raises(ValueError, match="forecast must be the one that the plan was made from"):
        AdaptiveSchedule(PLAN, other)
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    train(task(), AdaptiveSchedule(plan, known), seed=3, checkpoint=tmp_path / "run")
    with pytest.raises(RecordError, match="with another correction"):
        train(task(), AdaptiveSchedule(plan, known, threshold=0.5), seed=3, checkpoint=tmp_path / "run")


def test_looking_at_the_length_of_a_loader_draws_nothing() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    loader = scheduled_loader((torch.arange(1_000),), adaptive, start_examples=PLAN.batch_size, drop_last=True)
    assert len(loader) == len(list(adaptive.batches())) - 1
    seen, loss = seen_at(PLAN, 0.1)
    assert adaptive.update(seen, loss, reading(16 * B_CRIT))
    assert adaptive.moves[0].examples == seen


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="plan and forecast must be"):
        AdaptiveSchedule(PLAN.schedule, FORECAST)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold"):
        AdaptiveSchedule(PLAN, FORECAST, threshold=0.0)
    with pytest.raises(ValueError, match="loss"):
        AdaptiveSchedule(PLAN, FORECAST).update(10, 0.0)
    with pytest.raises(TypeError, match="got float: give monitor"):
        AdaptiveSchedule(PLAN, FORECAST).update(10, 0.5, 3.0)  # type: ignore[arg-type]


def test_a_run_that_is_behind_goes_on_to_three_times_its_length_at_most() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    planned, size = adaptive.examples, PLAN.batch_size
    loss = seen_at(PLAN, 0.5)[1]
    done = [*adaptive.batches()]  # looking ahead draws nothing
    assert not adaptive.update(planned, loss)
    rest = 0.5 * PLAN.steps.value * size
    assert adaptive.examples == pytest.approx(planned + rest, rel=0.02)
    assert list(adaptive.schedule.batches())[: len(done)] == done
    assert {taken for _, taken in adaptive.schedule.batches()} == {size}
    for _ in range(10):
        adaptive.update(adaptive.examples, loss)
    assert adaptive.examples == 3 * PLAN.schedule.examples
    # One that is there, or ahead, is not made longer; nor one whose last batch is drawn.
    ahead = AdaptiveSchedule(PLAN, FORECAST)
    ahead.update(planned // 2, 0.99 * LOSS)
    ahead.update(planned // 3, seen_at(PLAN, 0.5)[1])
    assert ahead.examples == planned
    drawn = AdaptiveSchedule(PLAN, FORECAST)
    drawn.hand_out(planned)
    drawn.update(planned, loss)
    assert drawn.examples == planned


def test_a_decay_goes_on_over_a_run_that_is_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchopt.probing.run import TrainingRun

    monkeypatch.setattr(TrainingRun, "evaluate", lambda run: max(1.02 * LOSS, 2.0 * math.exp(-run.examples_seen / 9e3)))
    rates: list[float] = []
    step = TrainingRun.step

    def watched(run: TrainingRun, *args: Any, **given: Any) -> float:
        value = step(run, *args, **given)
        rates.append(run.optimizer.param_groups[0]["lr"] / run.learning_rate)
        return value

    monkeypatch.setattr(TrainingRun, "step", watched)
    decays = replace(task(), learning_rate_schedule=lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)))
    result = train(decays, AdaptiveSchedule(PLAN, FORECAST), learning_rate=0.001, seed=0)
    assert result.examples > 1.2 * PLAN.schedule.examples
    beyond = rates[round(PLAN.schedule.examples / PLAN.batch_size) :]
    assert min(beyond) > 0.0
    assert float(np.mean(beyond)) > 1e-4
    assert result.steps == result.schedule.steps


def test_a_schedule_that_holds_a_decay_keeps_it_to_the_new_end() -> None:
    def with_decay() -> AdaptiveSchedule:
        rates = LearningRateSchedule.of("linear", examples=PLAN.schedule.examples, warmup_examples=64)
        return AdaptiveSchedule(replace(PLAN, schedule=replace(PLAN.schedule, learning_rate_schedule=rates)), FORECAST)

    adaptive, plain = with_decay(), AdaptiveSchedule(PLAN, FORECAST)
    for watched in (adaptive, plain):
        watched.update(PLAN.schedule.examples // 2, 1.5 * LOSS)  # behind: the run is made longer
    assert adaptive.examples == plain.examples > PLAN.schedule.examples
    assert adaptive.segments == plain.segments
    assert adaptive.schedule.learning_rate_schedule == LearningRateSchedule.of(
        "linear", examples=adaptive.examples, warmup_examples=64
    )


def test_beyond_the_probes_readings_the_noise_is_expected_to_move_as_the_critical_batch_size_does() -> None:
    base = forecast(q=0.8)
    # A trend that falls outside of what was measured, where the law's critical batch size rises.
    sloped = NoiseTrend("simple", (-5.0, 5.0), (-10.0, 15.0), (1.0, 1.0), (1.4, 2.0))
    steep = replace(base, noise_trend=sloped)
    plan = steep.plan(ReachLoss(LOSS, least=PRICE))

    def critical(loss: float) -> float:
        table = steep.law.table(best_guess_only=True)
        return float(np.exp(table.log_b(table.v_of_loss(loss)[:, None])[0, 0]))

    adaptive = AdaptiveSchedule(plan, steep)
    for loss in (1.7, 1.4, 1.0):
        nearest = max(loss, 1.4)
        expected = math.exp(sloped.log_moments(nearest)[0]) * critical(loss) / critical(nearest)
        adaptive.update(10, loss, reading(expected))
        assert adaptive.correction == pytest.approx(1.0)
        adaptive.update(10, loss, reading(4.0 * expected))
        assert 2.0 < adaptive.correction < 4.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_training_on_a_gpu_follows_what_it_measures(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    on_gpu = replace(task(), device="cuda", autocast=dtype, before_step=clip)
    adaptive = AdaptiveSchedule(plan, known)
    result = train(on_gpu, adaptive, seed=3, checkpoint=tmp_path / "run", micro_batch=64)
    assert adaptive.moves
    assert result.outcome == "finished"
    assert (result.steps, result.examples) == (adaptive.schedule.steps, adaptive.schedule.examples)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())
    again = train(on_gpu, AdaptiveSchedule(plan, known), seed=3, checkpoint=tmp_path / "run", micro_batch=64)
    assert again.schedule == result.schedule


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("micro_batch", [None, 64])
def test_mixed_precision_is_measured_unscaled(
    dtype: torch.dtype, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under float16 losses are scaled by 65,536: a noise scale of scaled parts and unscaled wholes would be far off."""
    loss_of_the_law(monkeypatch)
    plan, known = plan_for_training()
    readings: list[float] = []
    update = AdaptiveSchedule.update

    def watched(self: AdaptiveSchedule, examples: int, loss: float, noise: NoiseScale | None = None) -> bool:
        if noise is not None and noise.resolved:
            readings.append(noise.batch_size.value)
        return update(self, examples, loss, None)

    monkeypatch.setattr(AdaptiveSchedule, "update", watched)
    for precision in (None, dtype):
        train(replace(task(), autocast=precision), AdaptiveSchedule(plan, known), seed=3, micro_batch=micro_batch)
        readings.append(math.nan)
    first, second = (part for part in np.split(readings, np.flatnonzero(np.isnan(readings)) + 1) if len(part))
    assert second[-2] == pytest.approx(first[-2], rel=0.5)


def test_a_run_to_a_loss_goes_on_until_that_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchopt.probing.run import TrainingRun

    def falls_at_the_end(run: TrainingRun) -> float:
        return 0.99 * LOSS if run.examples_seen >= PLAN.schedule.examples else 2.0 - run.examples_seen / 4e4

    monkeypatch.setattr(TrainingRun, "evaluate", falls_at_the_end)
    result = train(task(), AdaptiveSchedule(PLAN, FORECAST), learning_rate=0.001, until_loss=LOSS, seed=0)
    assert result.outcome == "reached"
    assert result.steps == round(result.schedule.steps_to(result.examples))
    assert {segment.batch_size for segment in result.schedule.segments} <= {
        PLAN.batch_size * 2.0**k for k in range(-3, 4)
    }


@pytest.mark.parametrize("weight", [0.01, 10.0])
def test_a_weight_that_all_examples_have_changes_no_reading_of_batches_in_parts(weight: float) -> None:
    def read(given: TrainingTask) -> NoiseScale | None:
        run = TrainingRun(given, learning_rate=0.003, seed=3)
        run.reader = monitor = NoiseScaleMonitor(run.model, given.loss, every=4)
        for _ in range(60):
            run.step(32, micro_batch=8)
        return monitor.reading

    plain = task()
    weighted = replace(
        plain, loss=lambda model, batch: (plain.loss(model, batch), torch.full((len(batch[0]),), weight))
    )
    found, expected = read(weighted), read(plain)
    assert found is not None
    assert expected is not None
    assert found.examples == expected.examples
    assert found.batch_size.value == pytest.approx(expected.batch_size.value, rel=1e-4)
    assert found.signal == pytest.approx(expected.signal, rel=1e-4)
