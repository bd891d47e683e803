from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visualization.samples import plan_of

from batchopt.planning.goal import LowestLoss
from batchopt.planning.plan import Plan
from batchopt.uncertainty import Estimate
from batchopt.visualization.tradeoff import plot_plan_cost, plot_tradeoff, tradeoff_data


def test_points_are_the_alternatives(plan: Plan) -> None:
    data = tradeoff_data(plan)
    assert [point.batch_size for point in data.points] == [16, 32, 64, 128, 256, 512]
    assert data.points[data.best].batch_size == plan.batch_size
    assert [point.steps for point in data.points] == [alternative.steps for alternative in plan.alternatives]
    assert (data.unit, data.reaches) == ("seconds", 0.6)


def test_the_plan_is_shown_even_where_the_alternatives_leave_it_out() -> None:
    data = tradeoff_data(plan_of((16, 512)))
    assert [point.batch_size for point in data.points] == [16, 128, 512]
    assert data.best == 1


@given(st.floats(17.0, 500.0))
def test_the_critical_point_lies_at_its_batch_size(critical: float) -> None:
    data = tradeoff_data(plan_of(critical=critical))
    assert data.critical is not None
    examples, steps = data.critical
    assert examples / steps == pytest.approx(critical)
    # E = 2 E_min and S = 2 S_min there (McCandlish et al. 2018, below eq. 2.12), but for the interpolation.
    assert steps == pytest.approx(600.0, rel=0.08)


@pytest.mark.parametrize("critical", [3.0, 9_000.0])
def test_a_critical_batch_size_off_the_curve_is_not_marked(critical: float) -> None:
    plan = plan_of(critical=critical)
    assert tradeoff_data(plan).critical is None
    assert not [trace for trace in plot_tradeoff(plan).data if trace.name.startswith("critical")]


def test_labels_stand_on_the_outer_side_of_the_curve() -> None:
    figure = plot_tradeoff(plan_of(tuple(2**k for k in range(14)), critical=128.0))
    sides = figure.data[1].textposition
    assert (sides[0], sides[-1]) == ("middle left", "bottom center")


def test_few_labels_and_the_plans_own_among_them() -> None:
    sizes = tuple(range(8, 88, 2))
    labels = plot_tradeoff(plan_of((*sizes, 128))).data[1].text
    shown = [label.strip() for label in labels if label]
    assert "128" in shown
    assert len(shown) <= 12


def test_unresolved_alternatives_are_hollow(plan: Plan) -> None:
    unknown = Estimate(900.0, 300.0, math.inf, False)
    first = replace(plan.alternatives[0], steps=unknown, examples=unknown, cost=unknown)
    doubtful = replace(plan, alternatives=(first, *plan.alternatives[1:]))
    figure = plot_tradeoff(doubtful)
    assert list(figure.data[1].marker.symbol) == ["circle-open", *["circle"] * 5]
    assert "Infinity" not in figure.to_json()
    assert "Infinity" not in plot_plan_cost(doubtful).to_json()


def test_cost_over_batch_size_for_a_loss_to_reach(plan: Plan) -> None:
    figure = plot_plan_cost(plan)
    assert figure.layout.yaxis.title.text == "predicted cost (seconds)"
    line = figure.data[1]
    assert list(line.x) == [16, 32, 64, 128, 256, 512]
    assert list(line.y) == pytest.approx([alternative.cost.value for alternative in plan.alternatives])
    star = figure.data[-1]
    assert (star.x, star.y) == ((128,), (plan.cost.value,))


def test_loss_over_batch_size_for_a_budget(plan: Plan) -> None:
    figure = plot_plan_cost(replace(plan, goal=LowestLoss(30.0)))
    assert figure.layout.yaxis.title.text == "predicted loss"
    assert list(figure.data[1].y) == pytest.approx([0.55] * 6)


def test_a_single_batch_size_still_renders() -> None:
    assert plot_tradeoff(plan_of((128,))).to_json()
    assert plot_plan_cost(plan_of((128,))).to_json()
