from __future__ import annotations

import math
from dataclasses import replace

import pytest
from visualization.samples import GOAL, plan_of

from batchopt.evidence import LossCurve
from batchopt.planning.goal import LowestLoss
from batchopt.planning.plan import LossBand, Plan
from batchopt.visualization.training import EARLIEST, plot_training, training_data

PLAN = plan_of()
MEASURED = LossCurve((0, 500, 2_000, 40_000, 91_000), (2.3, 2.0, 1.4, 0.9, 0.58))


def test_it_begins_at_a_fiftieth_of_the_run() -> None:
    first = EARLIEST * PLAN.horizon
    assert first == 1_800.0
    data = training_data(PLAN, MEASURED)
    assert [reading.x for reading in data.predicted] == [72_000.0, 90_000.0]
    assert data.measured == ((2_000, 1.4), (40_000, 0.9), (91_000, 0.58))
    for reading, i in zip(data.predicted, (1, 2), strict=True):
        band = PLAN.predicted
        assert (reading.value, reading.low, reading.high) == (band.losses[i], band.low[i], band.high[i])
        assert reading.resolved


def test_an_interval_without_an_end_is_unresolved() -> None:
    open_ended = replace(PLAN, predicted=LossBand((80_000, 90_000), (0.8, 0.6), (0.7, 0.5), (0.9, math.inf)))
    assert [reading.resolved for reading in training_data(open_ended).predicted] == [True, False]
    assert "Infinity" not in plot_training(open_ended, MEASURED).to_json()


@pytest.mark.parametrize(
    ("plan", "goal", "begins"),
    [
        (PLAN, GOAL.loss, 72_000),
        (replace(PLAN, learning_rate_schedule="cosine"), GOAL.loss, None),
        (replace(PLAN, goal=LowestLoss(90_000, of="examples")), None, 72_000),
    ],
)
def test_the_goal_and_the_decay_are_the_plans(plan: Plan, goal: float | None, begins: int | None) -> None:
    data = training_data(plan)
    assert (data.goal, data.decay_begins, data.measured) == (goal, begins, ())
    lines = plot_training(plan).layout.shapes
    assert [line.y0 for line in lines if line.y0 == line.y1] == ([] if goal is None else [goal])
    assert [line.x0 for line in lines if line.x0 == line.x1] == ([] if begins is None else [begins])


def test_evaluations_are_drawn_where_they_were_measured() -> None:
    figure = plot_training(PLAN, MEASURED)
    (points,) = [trace for trace in figure.data if trace.name == "measured"]
    assert list(points.x) == [2_000, 40_000, 91_000]
    assert list(points.y) == pytest.approx([1.4, 0.9, 0.58])
    left, right = (10.0**end for end in figure.layout.xaxis.range)
    bottom, top = (10.0**end for end in figure.layout.yaxis.range)
    assert left <= 2_000 <= 91_000 <= right
    assert bottom <= 0.5 <= 1.4 <= top
    assert [trace.name for trace in plot_training(PLAN).data] == [
        trace.name for trace in figure.data if trace.name != "measured"
    ]
