"""Figure: the loss that a plan predicts along its run, beside the losses that a training measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batchopt.evidence import LossCurve
from batchopt.learning_rate_schedule import COOLDOWN
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.uncertainty import Estimate
from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import BLACK, BLUE, GREY, blank, draw_band
from batchopt.visualization.readings import Reading
from batchopt.visualization.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

EARLIEST = 0.02
"""The figure begins at this share of the run: what comes before fills a logarithmic axis and decides nothing."""


class TrainingData(NamedTuple):
    """What the figure shows.

    Attributes:
        predicted: loss along the plan's run, over examples.
        measured: (examples, loss) of the evaluations.
        goal: the loss to reach; None for a budget.
        decay_begins: examples at which the planned rate begins to fall; None where it does not, or at once.
    """

    predicted: tuple[Reading, ...]
    measured: tuple[tuple[int, float], ...]
    goal: float | None
    decay_begins: int | None


def training_data(plan: Plan, measured: LossCurve | None = None) -> TrainingData:
    """The plan's predictions and the evaluations from the figure's beginning on."""
    first = EARLIEST * plan.horizon
    band = plan.predicted
    columns = zip(band.examples, band.losses, band.low, band.high, strict=True)
    predicted = tuple(
        Reading.of(float(n), Estimate(loss, low, high, resolved=math.isfinite(high)))
        for n, loss, low, high in columns
        if n >= first
    )
    pairs = () if measured is None else zip(measured.examples, measured.losses, strict=True)
    begins = round((1.0 - COOLDOWN) * plan.horizon) if plan.learning_rate_schedule == "wsd" else None
    goal = plan.goal.loss if isinstance(plan.goal, ReachLoss) else None
    return TrainingData(predicted, tuple((n, loss) for n, loss in pairs if n >= first), goal, begins)


def plot_training(plan: Plan, measured: LossCurve | None = None) -> go.Figure:
    """Predicted loss with its 90 % band for a single run, and the measured one as points.

    Args:
        plan: what was to be run.
        measured: evaluations of a training by the plan; None before there is one.
    """
    return _draw(training_data(plan, measured))


def _draw(data: TrainingData) -> go.Figure:
    import plotly.graph_objects as go

    losses = [r.value for r in data.predicted] + [loss for _, loss in data.measured]
    losses += [] if data.goal is None else [data.goal]
    loss = span_of(losses, least=4.0)
    examples = span_of([*(r.x for r in data.predicted), *(float(n) for n, _ in data.measured)], least=4.0)
    figure = blank(
        "Loss of the run: predicted and measured",
        xaxis=log_axis("examples seen", examples),
        yaxis=log_axis("loss", loss),
    )
    draw_band(figure, data.predicted, name="predicted by the plan", colour=BLUE, span=loss, unit="")
    if data.measured:
        points = go.Scatter(
            x=[n for n, _ in data.measured],
            y=[loss.clip(value) for _, value in data.measured],
            mode="lines+markers",
            line={"color": BLACK, "width": 1},
            marker={"color": BLACK, "size": 7},
            name="measured",
            customdata=[number(value) for _, value in data.measured],
            hovertemplate="measured %{customdata} after %{x:,} examples<extra></extra>",
        )
        figure.add_trace(points)
    if data.goal is not None:
        figure.add_hline(y=data.goal, line={"color": GREY, "width": 1, "dash": "dot"})
    if data.decay_begins is not None:
        figure.add_vline(x=data.decay_begins, line={"color": GREY, "width": 1, "dash": "dash"})
    return figure
