from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import known_forecast

from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.metric_curve import MetricCurve, curve_of, doubts_of_metrics, fit_metric_curves
from batchopt.planning.goal import BestMetric, LowestLoss, ReachLoss, ReachMetric
from batchopt.planning.plan import Plan
from batchopt.uncertainty import Estimate

COUNT = 2_000


def accuracy_at(loss: float) -> float:
    """Leaves chance as the loss falls, and errors fall in proportion to it late."""
    return 1.0 - 0.9 * (1.0 - math.exp(-loss))


def runs_of(
    metric: Callable[[float], float], losses: np.ndarray, *, scatter: float = 0.0, seed: int = 0
) -> list[Branch]:
    rng = np.random.default_rng(seed)
    rows = [(float(loss), metric(float(loss)) * math.exp(scatter * rng.standard_normal())) for loss in losses]
    return [Branch(8, 0.1, LossCurve((100,), (loss,), {"m": (value,)})) for loss, value in rows]


def only(runs: list[Branch]) -> MetricCurve:
    (curve,) = fit_metric_curves(runs, COUNT)
    return curve


def test_a_metric_without_scatter_is_followed_and_carried_beyond() -> None:
    curve = only(runs_of(accuracy_at, np.geomspace(0.4, 2.2, 25)))
    assert (curve.scale, curve.rises) == ("to one", True)
    for loss in (2.0, 1.0, 0.5):
        assert curve(loss).value == pytest.approx(accuracy_at(loss), abs=0.01)
    for loss in (0.2, 0.1, 0.05):
        reading = curve(loss)
        assert reading.low <= accuracy_at(loss) <= reading.high
    widths = [math.log((1 - curve(loss).low) / (1 - curve(loss).high)) for loss in (0.4, 0.2, 0.1)]
    assert widths == sorted(widths)


def test_intervals_hold_what_runs_show() -> None:
    """Of 40 sets of evaluations the interval at a loss holds the next run's value in about nine of ten."""
    inside = {0.3: 0, 0.6: 0}
    rng = np.random.default_rng(5)
    for seed in range(40):
        losses = np.exp(rng.uniform(math.log(0.5), math.log(2.2), 20))

        def left(loss: float) -> float:
            return 0.9 * (1.0 - math.exp(-loss))

        rows = [(loss, 1.0 - left(loss) * math.exp(0.05 * rng.standard_normal())) for loss in losses]
        curve = only([Branch(8, 0.1, LossCurve((100 + seed,), (float(a),), {"m": (float(b),)})) for a, b in rows])
        for loss in inside:
            reading = curve(loss)
            inside[loss] += reading.low <= 1.0 - left(loss) * math.exp(0.05 * rng.standard_normal()) <= reading.high
    # Binomial with 40 draws at 0.9: below 31 in one of a thousand. Beyond what was evaluated they may be wider.
    assert inside[0.6] >= 31
    assert inside[0.3] >= 31


def test_the_loss_at_a_value_is_the_inverse() -> None:
    curve = only(runs_of(accuracy_at, np.geomspace(0.1, 2.2, 40), scatter=0.002))
    for value in (0.3, 0.6, 0.85):
        loss = curve.loss_at(value)
        assert curve(loss.value).value == pytest.approx(value, abs=2e-3)
        assert loss.low < loss.value < loss.high


@pytest.mark.parametrize(
    ("metric", "scale", "rises"),
    [
        (lambda loss: 0.4 * loss**1.2, "to zero", False),
        (lambda loss: 40.0 - 10.0 * math.log(loss), "plain", True),
        (lambda loss: 5.0 * math.log(loss) - 8.0, "plain", False),
    ],
)
def test_metrics_of_other_kinds(metric: Callable[[float], float], scale: str, rises: bool) -> None:
    curve = only(runs_of(metric, np.geomspace(0.3, 2.2, 25)))
    assert (curve.scale, curve.rises) == (scale, rises)
    for loss in (0.15, 0.5, 1.5):
        reading = curve(loss)
        slack = 0.02 * abs(metric(0.3) - metric(2.2))
        assert reading.low - slack <= metric(loss) <= reading.high + slack
    assert curve.loss_at(metric(0.5)).value == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("unit", [1e4, 1.0, 1e-2, 1e-4, 1e-9])
def test_the_unit_of_a_metric_that_falls_changes_nothing(unit: float) -> None:
    """An error in metres or millimetres is no count of examples."""
    losses, rng = np.geomspace(0.3, 2.2, 25), np.random.default_rng(1)
    errors = [float(0.3 * loss * math.exp(0.03 * rng.standard_normal())) for loss in losses]
    runs = [
        Branch(8, 0.1, LossCurve((100,), (float(loss),), {"m": (unit * error,)}))
        for loss, error in zip(losses, errors, strict=True)
    ]
    curve = only(runs)
    assert (curve.scale, curve.counted) == ("to zero", 0)
    reading = curve(0.15).scaled(1.0 / unit)
    assert reading.value == pytest.approx(0.045, rel=0.1)
    assert reading.low > 0.03
    assert reading.high < 0.07
    assert curve.loss_at(unit * 0.06).value == pytest.approx(0.2, rel=0.1)


def with_metric(metric: Callable[[float], float], losses: np.ndarray) -> list[Branch]:
    return [Branch(8, 0.1, LossCurve((100,), (float(loss),), {"m": (metric(float(loss)),)})) for loss in losses]


def test_a_share_of_examples_is_a_count() -> None:
    losses = np.geomspace(0.3, 2.2, 25)
    wrong = with_metric(lambda loss: round(COUNT * 0.3 * loss) / COUNT, losses)
    assert (only(wrong).scale, only(wrong).counted) == ("to zero", COUNT)
    right = with_metric(lambda loss: 1.0 - round(COUNT * 0.3 * loss) / COUNT, losses)
    assert (only(right).scale, only(right).counted) == ("to one", COUNT)
    # All examples may be right; a score that comes to one is on no scale that ends there.
    perfect = Branch(8, 0.1, LossCurve((100,), (0.25,), {"m": (1.0,)}))
    scores = with_metric(lambda loss: 1.0 - 0.31 * loss, losses)
    assert only([*right, perfect]).scale == "to one"
    assert (only(scores).scale, only(scores).counted) == ("to one", 0)
    assert only([*scores, perfect]).scale == "plain"


def test_an_uncertain_loss_widens_the_metric() -> None:
    curve = only(runs_of(accuracy_at, np.geomspace(0.1, 2.2, 40), scatter=0.002))
    exact, wide = curve(0.5), curve(Estimate(0.5, 0.3, 0.9, True))
    assert wide.value == exact.value
    assert wide.low < exact.low < exact.high < wide.high
    assert wide.low == pytest.approx(accuracy_at(0.9), abs=0.02)
    assert wide.high == pytest.approx(accuracy_at(0.3), abs=0.02)
    assert not curve(Estimate(0.5, 0.3, 0.9, False)).resolved


def test_what_cannot_be_is_refused() -> None:
    curve = only(runs_of(accuracy_at, np.geomspace(0.4, 2.2, 25)))
    with pytest.raises(UnreachableGoalError, match=r"m must lie below 1, its ceiling, got 1\.2: give a share"):
        curve.loss_at(1.2)
    with pytest.raises(UnreachableGoalError, match=r"m 0\.99999 is not predicted at any loss"):
        curve.loss_at(0.99999)
    with pytest.raises(EvidenceError, match=r"no metric 'f1' is known \(known: 'm'\)"):
        curve_of([curve], "f1")
    with pytest.raises(UnreachableGoalError, match=r"must lie above 0"):
        only(runs_of(lambda loss: 0.1 * loss, np.geomspace(0.4, 2.2, 25))).loss_at(-1.0)


@pytest.mark.parametrize("metric", [lambda loss: 0.5, accuracy_at])
def test_too_little_tells_no_relation(metric: Callable[[float], float]) -> None:
    losses = np.geomspace(0.4, 2.2, 3 if metric is accuracy_at else 20)
    assert fit_metric_curves(runs_of(metric, losses), COUNT) == ()


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    curves = fit_metric_curves(runs_of(accuracy_at, np.geomspace(0.4, 2.2, 25), scatter=0.005), COUNT)
    return replace(known_forecast(), metrics=curves, population=10_000)


def test_a_metric_is_planned_for_by_the_loss_that_goes_with_it(forecast: Forecast) -> None:
    goal = ReachMetric("m", 0.6, least="examples")
    plan = forecast.plan(goal)
    loss = curve_of(forecast.metrics, "m").loss_at(0.6)
    by_loss = forecast.plan(ReachLoss(loss.value, least="examples"))
    assert (plan.goal, plan.asked) == (by_loss.goal, goal)
    assert (plan.batch_size, plan.learning_rate, plan.horizon) == (
        by_loss.batch_size, by_loss.learning_rate, by_loss.horizon
    )  # fmt: skip
    assert plan.steps.value == by_loss.steps.value
    assert plan.steps.low < by_loss.steps.low < by_loss.steps.high < plan.steps.high
    cost, by_loss_cost = plan.schedule_cost, by_loss.schedule_cost
    assert cost.low < by_loss_cost.low < by_loss_cost.high < cost.high
    assert plan.metrics["m"].low < 0.62 < plan.metrics["m"].high
    assert sum(reason.startswith("m 0.6 goes with a loss of") for reason in plan.reasons) == 1
    assert plan.doubts == by_loss.doubts
    assert by_loss.metrics == plan.metrics
    assert by_loss.asked is None
    assert plan.best in plan.alternatives
    assert Plan.from_json(plan.to_json()) == plan
    assert "m 0." in str(plan)


def test_a_goal_out_of_reach_says_its_loss(forecast: Forecast) -> None:
    with pytest.raises(UnreachableGoalError, match=r"m 0\.03 goes with a loss of .*, and loss .* needs no training"):
        forecast.plan(ReachMetric("m", 0.03, least="examples"))


def test_the_best_metric_is_the_lowest_loss(forecast: Forecast) -> None:
    plan = forecast.plan(BestMetric("m", 3, of="epochs"))
    by_loss = forecast.plan(LowestLoss(30_000, of="examples"))
    assert plan == replace(by_loss, asked=BestMetric("m", 3, of="epochs"))
    assert plan.goal == LowestLoss(30_000, of="examples")
    hours = forecast.plan(LowestLoss(0.01, of="hours"))
    assert hours.goal == LowestLoss(36.0)


def test_epochs_need_a_data_set(forecast: Forecast) -> None:
    with pytest.raises(EvidenceError, match=r"a budget in epochs needs the size of the data set, and there is none"):
        replace(forecast, population=None).plan(LowestLoss(3, of="epochs"))
    with pytest.raises(EvidenceError, match=r"no metric 'm' is known \(known: none\)"):
        known_forecast().plan(BestMetric("m", 3, of="epochs"))


def test_a_goal_easier_than_what_was_evaluated_has_a_higher_loss_and_far_from_it_is_a_guess() -> None:
    curve = only(runs_of(accuracy_at, np.geomspace(0.07, 0.2, 8), scatter=0.002))
    for loss in (0.3, 0.38):
        assert curve(loss).resolved
        assert curve(loss).value == pytest.approx(accuracy_at(loss), abs=0.05)
    untrained = curve(2.3)
    assert not untrained.resolved
    assert untrained.low < accuracy_at(2.3) < untrained.high
    losses = [curve.loss_at(value) for value in (0.9, 0.8, 0.7, 0.5)]
    assert [loss.value for loss in losses] == sorted({loss.value for loss in losses})
    assert all(loss.low < loss.value < loss.high for loss in losses)
    assert [loss.resolved for loss in losses] == [True, True, True, False]


def test_a_share_beyond_what_the_evaluated_examples_can_tell_is_refused() -> None:
    right = with_metric(lambda loss: 1.0 - round(400 * 0.3 * loss) / 400, np.geomspace(0.05, 2.2, 25))
    (curve,) = fit_metric_curves(right, 400)
    with pytest.raises(UnreachableGoalError, match=r"m 0\.999 cannot be told from 1 on the 400 examples"):
        curve.loss_at(0.999)
    assert curve.loss_at(0.99).value < 0.1


def test_what_an_unresolved_goal_takes_has_a_lower_end(forecast: Forecast) -> None:
    plan = forecast.plan(ReachMetric("m", 0.97, least="examples"), learning_rate_schedule="linear")
    assert not curve_of(forecast.metrics, "m").loss_at(0.97).resolved
    assert 0.1 * plan.steps.value < plan.steps.low < plan.steps.value
    assert math.isinf(plan.steps.high)
    assert not plan.steps.resolved


def test_a_metric_that_was_evaluated_too_seldom_is_doubted() -> None:
    few = runs_of(accuracy_at, np.geomspace(0.4, 2.2, 3))
    (doubt,) = doubts_of_metrics(few)
    assert doubt.startswith("The metric m was evaluated at 3 points, and 4 are needed")
    (doubt,) = doubts_of_metrics(few[:1])
    assert doubt.startswith("The metric m was evaluated at 1 point, and 4 are needed")
    assert doubts_of_metrics(runs_of(accuracy_at, np.geomspace(0.4, 2.2, 4))) == []
    (doubt,) = doubts_of_metrics(runs_of(lambda loss: 0.5, np.geomspace(0.4, 2.2, 20)))
    assert doubt.startswith("The metric m was evaluated at 20 points and was 0.5 at all of them")


@pytest.mark.parametrize("goal", [ReachMetric("m", 0.8), BestMetric("m", 3, of="epochs")])
def test_a_plan_says_that_a_metric_was_evaluated_too_seldom(goal: ReachMetric | BestMetric) -> None:
    seldom = tuple(doubts_of_metrics(runs_of(accuracy_at, np.geomspace(0.4, 2.2, 3))))
    forecast = replace(known_forecast(), doubts=seldom)
    with pytest.raises(EvidenceError, match=r"^the metric m was evaluated at 3 points, and 4 are needed .* data$"):
        forecast.plan(goal)
    with pytest.raises(EvidenceError, match=r"no metric 'm2' is known \(known: none\)"):
        forecast.plan(replace(goal, metric="m2"))
