"""The forecast's read-outs against the law that made the runs."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import known_forecast, known_law, known_report, losses_at

from batchopt.errors import EvidenceError, UnreachableGoalError, UnresolvedError
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.horizons import horizons_for, schedule_of
from batchopt.forecasting.read_outs import shared_ends
from batchopt.forecasting.schedule_fit import MISSED
from batchopt.learning_rate_schedule import LearningRateSchedule, Shape
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost

LAW = known_law()
TRUTH = replace(known_forecast(), law=LAW)
SIZES = [2**k for k in range(3, 12)]


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return known_forecast()


Settings = tuple[tuple[int, float], ...]
"""Batch sizes and learning rates."""


def ends(settings: Settings, examples: np.ndarray, shape: Shape) -> np.ndarray:
    """The true losses at the ends of runs; of all at once, as a call takes hardly longer for many than for one."""
    sizes, rates = zip(*settings, strict=True)
    schedules = [schedule_of(shape, float(n), None) for n in examples]
    return np.exp(LAW.losses_at_end(sizes, rates, schedules, np.round(examples))[0])


def end(batch_size: int, learning_rate: float, examples: float, shape: Shape) -> float:
    """The true loss at the end of a run."""
    return float(ends(((batch_size, learning_rate),), np.array([examples]), shape)[0])


@functools.cache
def examples_to(loss: float, settings: Settings, shape: Shape) -> np.ndarray:
    """The true lengths of the shortest runs that end at a loss: twenty times bisected."""
    low = np.array([16.0 * size for size, _ in settings])
    high = np.full(len(settings), horizons_for(LAW)[-1])
    never = ends(settings, high, shape) > loss
    for _ in range(20):
        middle = np.sqrt(low * high)
        arrived = ends(settings, middle, shape) <= loss
        low, high = np.where(arrived, low, middle), np.where(arrived, middle, high)
    return np.where(never, math.inf, high)


def cost_to(loss: float, settings: Settings, price: StepCost, shape: Shape = "wsd") -> float:
    """The true cost of the cheapest of those runs."""
    found = examples_to(loss, settings, shape)
    return min(price(size) * n / size for (size, _), n in zip(settings, found.tolist(), strict=True))


@pytest.mark.parametrize("shape", ["constant", "wsd", "cosine"])
def test_read_outs_are_near_the_truth(forecast: Forecast, shape: Shape) -> None:
    told = forecast.critical_batch_size(0.3, learning_rate_schedule=shape)
    true = TRUTH.critical_batch_size(0.3, learning_rate_schedule=shape).value
    assert told.low / 1.2 <= true <= told.high * 1.2
    assert told.value == pytest.approx(true, rel=0.5)
    loss = forecast.loss(64, 0.5, 40_000, learning_rate_schedule=shape)
    assert loss.low <= end(64, 0.5, 40_000, shape) <= loss.high
    # The setting did not run: what the law is taken to miss there has this deviation.
    deviation = MISSED * forecast.law.steepness
    assert math.log(loss.value) == pytest.approx(math.log(end(64, 0.5, 40_000, shape)), abs=1.5 * deviation)
    steps = forecast.steps(64, 0.5, 0.3, learning_rate_schedule=shape)
    true_steps = cost_to(0.3, ((64, 0.5),), StepCost(1.0, 0.0), shape)
    assert steps.low <= true_steps <= steps.high


def test_the_best_rate_costs_little_more_than_the_true_best(forecast: Forecast) -> None:
    rate = forecast.learning_rate(128, 0.3).value
    best = cost_to(0.3, tuple((128, float(r)) for r in np.geomspace(0.1, 3.0, 12)), StepCost(1.0, 0.0))
    assert cost_to(0.3, ((128, rate),), StepCost(1.0, 0.0)) <= 1.15 * best


def test_decays_reach_a_loss_sooner(forecast: Forecast) -> None:
    constant, wsd = (forecast.steps(16, 0.45, 0.1, learning_rate_schedule=shape).value for shape in ("constant", "wsd"))
    assert wsd < 0.8 * constant


def test_intervals_widen_below_the_lowest_observed_loss(forecast: Forecast) -> None:
    seen, beyond = (forecast.loss(64, 0.5, n) for n in (40_000, 1_000_000))
    assert math.log(beyond.high / beyond.low) > 1.5 * math.log(seen.high / seen.low)


def test_round_trip_keeps_every_read_out(forecast: Forecast) -> None:
    again = Forecast.from_json(forecast.to_json())
    assert again == forecast
    assert again.critical_batch_size(0.4) == forecast.critical_batch_size(0.4)


def test_the_tasks_own_schedule_is_taken_unless_told_otherwise(forecast: Forecast) -> None:
    own = replace(forecast, task_schedule="cosine")
    assert own.loss(64, 0.5, 40_000) == forecast.loss(64, 0.5, 40_000, learning_rate_schedule="cosine")
    assert own.plan(ReachLoss(0.3, "examples")).learning_rate_schedule == "cosine"
    by_points = replace(forecast, task_schedule=tuple(np.linspace(1.0, 0.0, 11).tolist()))
    linear = forecast.loss(64, 0.5, 40_000, learning_rate_schedule="linear").value
    # Its rate falls during the warm-up as well, so its peak is 5 % lower, and it falls as much more slowly.
    assert by_points.loss(64, 0.5, 40_000).value == pytest.approx(linear, rel=0.1)
    plan = forecast.plan(ReachLoss(0.3, "examples"), learning_rate_schedule=lambda progress: 1.0 - progress)
    assert plan.learning_rate_schedule == "function"


def test_losses_along_a_run_are_the_laws(forecast: Forecast) -> None:
    schedule = LearningRateSchedule.of("wsd", examples=20_000)
    told = forecast.losses_along(16, 0.3, (1_000, 16_000, 20_000), learning_rate_schedule=schedule)
    true = [losses_at(LAW, 16, 0.3, [n], schedule)[0] for n in (1_000, 16_000, 20_000)]
    np.testing.assert_allclose(told, true, rtol=0.15)


def test_losses_along_a_run_take_a_name_as_the_other_read_outs_do(forecast: Forecast) -> None:
    points, shapes = (1_000, 16_000, 20_000), ("cosine", lambda progress: 1.0 - progress)
    for shape in shapes:
        of_run = schedule_of(shape, 20_000, forecast.warmup_examples)  # type: ignore[arg-type]
        by_name = forecast.losses_along(16, 0.3, points, learning_rate_schedule=shape)  # type: ignore[arg-type]
        assert by_name == forecast.losses_along(16, 0.3, points, learning_rate_schedule=of_run)
    own = replace(forecast, task_schedule="cosine")
    by_task = own.losses_along(16, 0.3, points, learning_rate_schedule="auto")
    assert by_task == own.losses_along(16, 0.3, points, learning_rate_schedule="cosine")
    with pytest.raises(ValueError, match="must be one of 'constant'"):
        forecast.losses_along(16, 0.3, points, learning_rate_schedule="step")  # type: ignore[arg-type]


def test_the_schedule_of_a_run_is_no_shape(forecast: Forecast) -> None:
    of_run = LearningRateSchedule.of("wsd", examples=20_000)
    with pytest.raises(TypeError, match=r"a function of progress from 0 to 1, got a LearningRateSchedule, which is of"):
        forecast.loss(16, 0.3, 20_000, learning_rate_schedule=of_run)
    with pytest.raises(TypeError, match="got a LearningRateSchedule, which is of one run's examples: name the shape"):
        forecast.plan(ReachLoss(0.3), learning_rate_schedule=of_run)


def test_evidence_without_a_decay_is_doubted() -> None:
    report = known_report(LAW)
    stable = replace(
        report, branches=tuple(run for run in report.branches if run.is_constant and run.batch_size == 256)
    )
    doubts = Forecast.fit(stable).doubts
    assert any("No run's learning rate decayed" in doubt for doubt in doubts)
    assert any("one batch size" in doubt for doubt in doubts)


def test_a_loss_that_the_shortest_runs_reach_tells_no_trade_off(forecast: Forecast) -> None:
    soon = 0.999 * forecast.initial_loss
    ends = shared_ends(forecast.law, "wsd", (16.0, 64.0, 256.0), None)
    assert ends.is_reached_at_once(soon).all(axis=2).any(), "the case is one of runs that are too short to be looked at"
    with pytest.raises(UnreachableGoalError, match="is reached too soon for a trade-off to show"):
        forecast.critical_batch_size(soon)


def test_bad_losses(forecast: Forecast) -> None:
    with pytest.raises(ValueError, match=r"loss must lie below the initial loss 2\.3, got 3"):
        forecast.critical_batch_size(3.0)
    with pytest.raises(UnreachableGoalError, match="beyond what the forecast reaches"):
        forecast.critical_batch_size(1e-12)
    with pytest.raises(UnreachableGoalError, match="not predicted to reach"):
        forecast.steps(64, 0.1, 1e-12)
    with pytest.raises(UnreachableGoalError, match="expected to diverge"):
        forecast.loss(64, 1e3, 40_000)
    with pytest.raises(EvidenceError, match="fewer than two noise scales"):
        replace(forecast, noise_trend=None).noise_scale(1.0)


@pytest.mark.parametrize(
    ("shape", "error", "match"),
    [
        ("step", ValueError, "must be one of 'constant', 'linear', 'cosine', 'wsd', or a function"),
        (lambda progress: -progress, ValueError, r"gives zero or more, got -"),
        (lambda progress: math.nan, ValueError, "gives zero or more, got nan at progress 0"),
        (lambda progress: 0.0, ValueError, "above zero somewhere"),
        (lambda: 1.0, TypeError, "function of progress .* it failed"),
    ],
)
def test_bad_schedules(forecast: Forecast, shape: Shape, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        forecast.plan(ReachLoss(0.3), learning_rate_schedule=shape)


def test_an_unresolved_read_out_gives_no_bare_number(forecast: Forecast) -> None:
    vague = replace(forecast.critical_batch_size(0.3), resolved=False)
    with pytest.raises(UnresolvedError, match="unresolved"):
        float(vague)


@pytest.mark.parametrize(
    "least", ["seconds", "balanced", "steps", "examples", ("steps", "examples"), StepCost(64.0, 1.0)]
)
def test_plan_is_near_the_true_optimum(forecast: Forecast, least: object) -> None:
    goal = ReachLoss(0.2, least=least)  # type: ignore[arg-type]
    plan = forecast.plan(goal, learning_rate_schedule="wsd", batch_sizes=(8, 2048))
    settings = tuple((size, rate) for size in SIZES for rate in (0.1, 0.2, 0.4, 0.8, 1.6, 2.4))
    best = cost_to(0.2, settings, plan.price)
    # Regret of at most 25 % against the best constant batch size there is.
    assert cost_to(0.2, ((plan.batch_size, plan.learning_rate),), plan.price) <= 1.25 * best
    assert plan.schedule_cost.value <= plan.cost.value
    assert plan.steps.value * plan.batch_size == pytest.approx(plan.examples.value)


def test_printed_it_is_a_few_lines(forecast: Forecast) -> None:
    text = str(replace(forecast, doubts=("It is a test.",)))
    first, second, doubt = text.splitlines()
    assert first.startswith(f"Forecast from losses of {forecast.initial_loss:.3g} down to ")
    assert second.startswith("Critical batch size to ")
    assert str(forecast.critical_batch_size(forecast.lowest_observed_loss)) in second
    assert doubt == "Doubt: It is a test."
    plan = forecast.plan(ReachLoss(1.2 * forecast.lowest_observed_loss, "examples"))
    goal, first, *reasons = str(plan).splitlines()
    assert goal == f"For a loss of {1.2 * forecast.lowest_observed_loss:g} in the fewest examples:"
    assert first.startswith(f"Batch size {plan.batch_size}, peak learning rate {plan.learning_rate:.3g}, ")
    assert reasons == list(plan.reasons)


def test_a_printed_report_says_what_was_decided() -> None:
    report = replace(known_report(LAW), decisions=("One.", "Two."), stopped="no time was left")
    first, *decided, stopped = str(report).splitlines()
    assert first.startswith("Probe of ")
    assert decided == ["One.", "Two."]
    assert stopped == "Stopped: no time was left"


@pytest.fixture(scope="module")
def automatic(forecast: Forecast) -> Plan:
    return forecast.plan(ReachLoss(0.2, "examples"))


def true_end(plan: Plan) -> float:
    return end(plan.batch_size, plan.learning_rate, plan.horizon, plan.learning_rate_schedule)  # type: ignore[arg-type]


def test_a_run_by_the_plan_arrives(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(0.2, "seconds"))
    assert plan.loss.low <= true_end(plan) <= 0.2


def test_a_run_by_the_plan_ends_where_it_says(automatic: Plan) -> None:
    plan = automatic  # at half the smallest batch size that was probed
    assert plan.loss.low <= true_end(plan) <= plan.loss.high
    assert plan.horizon % plan.batch_size == 0
    assert plan.loss.value < 0.2
    assert plan.predicted.examples[-1] == plan.horizon
    assert plan.predicted.losses[-1] == pytest.approx(plan.loss.value, rel=0.05)  # two medians of an even number
    assert plan.predicted.low[-1] <= plan.loss.value <= plan.predicted.high[-1]
    rates = plan.schedule.learning_rate_schedule
    assert rates is not None
    assert rates.examples[-1] == plan.schedule.examples
    assert rates.multipliers[-1] == pytest.approx(0.0)


def test_a_constant_rate_needs_no_decay(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(0.3, "examples"), learning_rate_schedule="constant")
    assert plan.horizon >= plan.examples.value
    assert plan.schedule.learning_rate_schedule is not None
    assert not plan.schedule.learning_rate_schedule.decays


def test_rates_that_may_be_unstable_are_never_certain(forecast: Forecast) -> None:
    doubtful = replace(forecast, law=replace(forecast.law, unstable=((8, 0.3, 2.0),)))
    assert doubtful.loss(8, 0.29, 20_000).resolved
    for rate in (0.4, 0.5, 0.7):
        told = doubtful.loss(8, rate, 20_000)
        assert told.high == math.inf
        assert not told.resolved
    with pytest.raises(UnreachableGoalError, match="expected to diverge"):
        doubtful.loss(8, 1.9, 20_000)


def test_losses_along_a_run_are_asked_for_in_order(forecast: Forecast) -> None:
    for examples in ((), (0, 100), (1_000, 100)):
        with pytest.raises(ValueError, match="examples"):
            forecast.losses_along(64, 0.5, examples)


def test_lowest_loss_spends_the_budget(forecast: Forecast) -> None:
    plan = forecast.plan(LowestLoss(within=2.0, of="seconds"))
    assert plan.cost.value == pytest.approx(2.0, rel=0.02)
    true = end(plan.batch_size, plan.learning_rate, plan.horizon, plan.learning_rate_schedule)  # type: ignore[arg-type]
    assert plan.loss.low <= true <= plan.loss.high
    assert len({point.loss.value for point in plan.alternatives}) > 3, "alternatives tell the loss of each"


def test_of_equal_settings_the_one_with_fewer_steps_is_taken(forecast: Forecast) -> None:
    plan = forecast.plan(LowestLoss(within=100_000, of="examples"), learning_rate_schedule="wsd")
    least = min(point.loss.value for point in plan.alternatives)
    smaller = [point for point in plan.alternatives if point.batch_size < plan.batch_size]
    assert plan.loss.value <= 1.03 * least
    assert all(point.steps.value > plan.steps.value for point in smaller)


def test_plan_respects_bounds_memory_and_multiples(forecast: Forecast) -> None:
    plan = functools.partial(forecast.plan, learning_rate_schedule="wsd")  # bounds are the same for every shape
    assert plan(ReachLoss(0.3, "steps"), batch_sizes=(8, 64)).batch_size <= 64
    tight = StepCost(1e-3, 1e-5, largest_batch_size=100)
    assert plan(ReachLoss(0.3, "steps"), step_cost=tight).batch_size <= 100
    assert all(point.batch_size % 24 == 0 for point in plan(ReachLoss(0.3), multiple_of=24).alternatives)
    with pytest.raises(UnreachableGoalError, match="largest batch that fits in memory is 100"):
        plan(ReachLoss(0.3), batch_sizes=(200, 400), step_cost=tight)


def test_bounds_hold_where_the_schedule_is_chosen(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(0.3, "steps"), batch_sizes=(8, 64))
    assert 8 <= plan.batch_size <= 64
    assert all(8 <= point.batch_size <= 64 for point in plan.alternatives)
    assert plan.learning_rate_schedule in ("constant", "wsd", "linear", "cosine")


def test_goals_that_cannot_be_met(forecast: Forecast) -> None:
    with pytest.raises(UnreachableGoalError, match="reaches"):
        forecast.plan(ReachLoss(1e-12))
    with pytest.raises(UnreachableGoalError, match="needs no training"):
        forecast.plan(ReachLoss(5.0))
    with pytest.raises(UnreachableGoalError, match="within the budget"):
        forecast.plan(LowestLoss(within=1e-9))
    with pytest.raises(EvidenceError, match="measured step cost"):
        replace(forecast, step_cost=None).plan(ReachLoss(0.3))


def test_an_extrapolated_plan_says_so(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(forecast.lowest_observed_loss / 2.0))
    assert any("extrapolated" in reason for reason in plan.reasons)
    if not plan.cost.resolved:
        assert plan.reasons[0].startswith("This is a best guess")


def test_a_plan_round_trips(automatic: Plan) -> None:
    assert automatic.alternatives[0].seconds is not None
    assert Plan.from_json(automatic.to_json()) == automatic
