"""Figures: the trade-off of a plan, steps against examples, and what every batch size costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Alternative, Plan
from batchopt.uncertainty import Estimate
from batchopt.visualization.axes import Span, log_axis, span_of
from batchopt.visualization.canvas import BLACK, BLUE, VERMILLION, blank, draw_band, translucent
from batchopt.visualization.readings import Reading, ends
from batchopt.visualization.wording import count, interval, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_LABELS = 12


class TradeoffPoint(NamedTuple):
    """One batch size on the trade-off curve; `learning_rate` is its best."""

    batch_size: int
    learning_rate: float
    steps: Estimate
    examples: Estimate
    cost: Estimate
    loss: Estimate


class TradeoffData(NamedTuple):
    """What both figures show.

    Attributes:
        points: the alternatives, rising in batch size.
        best: index of the plan among them.
        critical: (examples, steps) on the curve where the batch size is critical; None where it lies outside.
        critical_batch_size: its estimate; None where the forecast shows none.
        unit: what cost is counted in.
        reaches: the loss that the plan reaches; None where it spends a budget instead.
    """

    points: tuple[TradeoffPoint, ...]
    best: int
    critical: tuple[float, float] | None
    critical_batch_size: Estimate | None
    unit: str
    reaches: float | None


def tradeoff_data(plan: Plan) -> TradeoffData:
    """The alternatives of a plan, the plan itself among them even where the alternatives leave it out."""
    known = {alternative.batch_size: alternative for alternative in plan.alternatives}
    known[plan.best.batch_size] = plan.best
    points = tuple(_point(known[size]) for size in sorted(known))
    critical = plan.critical_batch_size
    return TradeoffData(
        points=points,
        best=sorted(known).index(plan.best.batch_size),
        critical=None if critical is None else _on_curve(points, critical.value),
        critical_batch_size=critical,
        unit=plan.price.unit,
        reaches=plan.goal.loss if isinstance(plan.goal, ReachLoss) else None,
    )


def plot_tradeoff(plan: Plan) -> go.Figure:
    """Steps against examples for every batch size that was considered, with the plan and the critical batch size.

    Down is less time at unlimited parallelism, left is less compute. Hollow points are unresolved predictions.
    """
    return _draw_tradeoff(tradeoff_data(plan))


def plot_plan_cost(plan: Plan) -> go.Figure:
    """What the plan chose by: predicted cost over batch size, or predicted loss where a budget is spent."""
    return _draw_cost(tradeoff_data(plan))


def _point(alternative: Alternative) -> TradeoffPoint:
    return TradeoffPoint(
        alternative.batch_size,
        alternative.learning_rate,
        alternative.steps,
        alternative.examples,
        alternative.cost,
        alternative.loss,
    )


def _on_curve(points: Sequence[TradeoffPoint], batch_size: float) -> tuple[float, float] | None:
    """(examples, steps) at a batch size, log-interpolated between its neighbours."""
    for left, right in pairwise(points):
        if left.batch_size <= batch_size <= right.batch_size:
            part = math.log(batch_size / left.batch_size) / math.log(right.batch_size / left.batch_size)
            return (
                left.examples.value ** (1.0 - part) * right.examples.value**part,
                left.steps.value ** (1.0 - part) * right.steps.value**part,
            )
    return None


def _draw_tradeoff(data: TradeoffData) -> go.Figure:
    import plotly.graph_objects as go

    examples = span_of(ends([Reading.of(0.0, point.examples) for point in data.points], reach=3.0), least=4.0)
    steps = span_of(ends([Reading.of(0.0, point.steps) for point in data.points], reach=3.0), least=4.0)
    figure = blank(
        "Trade-off between steps and examples",
        xaxis=log_axis("examples processed", examples),
        yaxis=log_axis("optimizer steps", steps),
    )
    _draw_tradeoff_band(figure, data.points, examples, steps)
    curve = go.Scatter(
        x=[point.examples.value for point in data.points],
        y=[point.steps.value for point in data.points],
        mode="lines+markers+text",
        line={"color": BLUE, "width": 2},
        marker={"size": 8, "color": BLUE, "symbol": _symbols(data.points), "line": {"width": 2, "color": BLUE}},
        text=_labels(data),
        textposition=_label_sides(data.points, examples, steps),
        name="batch size (label), each at its best learning rate",
        customdata=[_hover(point, data.unit) for point in data.points],
        hovertemplate="%{customdata}<extra></extra>",
        cliponaxis=False,
    )
    figure.add_trace(curve)
    _draw_marks(figure, data)
    return figure


def _draw_tradeoff_band(figure: go.Figure, points: Sequence[TradeoffPoint], examples: Span, steps: Span) -> None:
    """Steps and examples of one batch size err together, so the band runs between the curves of both ends."""
    import plotly.graph_objects as go

    low = [(point.examples.low, point.steps.low) for point in points]
    high = [(point.examples.high, point.steps.high) for point in reversed(points)]
    band = go.Scatter(
        x=[examples.clip(x) for x, _ in (*low, *high)],
        y=[steps.clip(y) for _, y in (*low, *high)],
        fill="toself",
        fillcolor=translucent(BLUE, 0.13),
        mode="lines",
        line={"width": 1, "color": translucent(BLUE, 0.2)},
        hoverinfo="skip",
        name="90 % band",
    )
    figure.add_trace(band)


def _draw_marks(figure: go.Figure, data: TradeoffData) -> None:
    import plotly.graph_objects as go

    if data.critical is not None and data.critical_batch_size is not None:
        critical = go.Scatter(
            x=[data.critical[0]],
            y=[data.critical[1]],
            mode="markers",
            marker={"symbol": "diamond-open", "size": 15, "color": BLACK, "line": {"width": 2}},
            name=f"critical batch size {interval(data.critical_batch_size)}",
            hovertemplate="%{fullData.name}<extra></extra>",
        )
        figure.add_trace(critical)
    best = data.points[data.best]
    chosen = go.Scatter(
        x=[best.examples.value],
        y=[best.steps.value],
        mode="markers",
        marker={"symbol": "star", "size": 18, "color": VERMILLION, "line": {"width": 1, "color": "white"}},
        name=f"plan: batch size {count(best.batch_size)}",
        customdata=[_hover(best, data.unit)],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_trace(chosen)


def _draw_cost(data: TradeoffData) -> go.Figure:
    import plotly.graph_objects as go

    by_loss = data.reaches is None
    readings = [Reading.of(float(p.batch_size), p.loss if by_loss else p.cost) for p in data.points]
    sizes = span_of((reading.x for reading in readings), least=4.0)
    costs = span_of(ends(readings, reach=3.0))
    quantity = "predicted loss" if by_loss else f"predicted cost ({data.unit})"
    title = "Loss that the budget buys" if by_loss else f"Cost of reaching loss {number(data.reaches or 0.0)}"
    figure = blank(
        f"{title}, over batch size",
        xaxis=log_axis("batch size (examples per step)", sizes, powers=True),
        yaxis=log_axis(quantity, costs),
    )
    draw_band(figure, readings, name=quantity, colour=BLUE, span=costs, unit="" if by_loss else data.unit)
    best = readings[data.best]
    chosen = go.Scatter(
        x=[best.x],
        y=[best.value],
        mode="markers",
        marker={"symbol": "star", "size": 18, "color": VERMILLION, "line": {"width": 1, "color": "white"}},
        name=f"plan: batch size {count(data.points[data.best].batch_size)}",
        customdata=[_hover(data.points[data.best], data.unit)],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_trace(chosen)
    return figure


def _symbols(points: Sequence[TradeoffPoint]) -> list[str]:
    return ["circle" if point.steps.resolved and point.examples.resolved else "circle-open" for point in points]


def _labels(data: TradeoffData) -> list[str]:
    """Batch sizes beside as many points as can be read, the plan's own among them."""
    stride = max(1, math.ceil(len(data.points) / _MOST_LABELS))
    return [
        f"{count(point.batch_size)}  " if (i - data.best) % stride == 0 else "" for i, point in enumerate(data.points)
    ]


def _label_sides(points: Sequence[TradeoffPoint], examples: Span, steps: Span) -> list[str]:
    """Left of the curve where it falls steeply, below it where it is flat: the side that the curve bends away from."""
    sides = []
    for i in range(len(points)):
        before, after = points[max(0, i - 1)], points[min(len(points) - 1, i + 1)]
        across = math.log(after.examples.value / before.examples.value) / math.log(examples.high / examples.low)
        down = math.log(before.steps.value / after.steps.value) / math.log(steps.high / steps.low)
        sides.append("middle left" if down > 2 * across else "bottom left" if 2 * down > across else "bottom center")
    return sides


def _hover(point: TradeoffPoint, unit: str) -> str:
    lines = (
        f"<b>batch size {count(point.batch_size)}, learning rate {number(point.learning_rate)}</b>",
        f"steps {interval(point.steps)}",
        f"examples {interval(point.examples)}",
        f"cost {interval(point.cost)} {unit}",
        f"loss {interval(point.loss)}",
    )
    return "<br>".join(lines)
