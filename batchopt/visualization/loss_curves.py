"""Figure: the loss curves that a probe measured, and what the forecast says of the same runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from batchopt.evidence import Branch, ProbeReport
from batchopt.visualization.axes import Span, log_axis, span_of
from batchopt.visualization.canvas import BLACK, CYCLE, GREY, blank
from batchopt.visualization.readings import spaced
from batchopt.visualization.wording import count, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from batchopt.forecasting.forecast import Forecast

DIVERGED = 1.5
"""Losses above this many times the initial one lie at the figure's edge: a diverged run would flatten the rest."""
_PREDICTED_POINTS = 16


class CurveData(NamedTuple):
    """One run.

    Attributes:
        batch_size: examples per step.
        learning_rate: its rate.
        examples: examples seen since initialisation, positive (a logarithmic axis has no zero).
        losses: measured there: evaluations, and means over windows of training batches.
        outcome: "finished", "stopped" or "diverged".
        reference: whether it is the long run.
        predicted: (examples, loss) by the forecast; empty for a diverged run and without a forecast.
        falls: examples at which its rate begins and ends to fall; None for a constant rate.
    """

    batch_size: int
    learning_rate: float
    examples: tuple[float, ...]
    losses: tuple[float, ...]
    outcome: str
    reference: bool
    predicted: tuple[tuple[float, float], ...]
    falls: tuple[int, int] | None = None


class LossCurvesData(NamedTuple):
    """All runs that left a curve, the reference last so that it is drawn on top."""

    curves: tuple[CurveData, ...]
    initial_loss: float | None


def loss_curves_data(report: ProbeReport, forecast: Forecast | None = None) -> LossCurvesData:
    """The measured curves with, where there is a forecast, its loss of the same settings."""
    runs = (*report.branches, *([report.reference] if report.reference else []))
    curves = tuple(_curve(run, forecast, reference=run is report.reference) for run in runs)
    return LossCurvesData(tuple(curve for curve in curves if curve.examples), _initial_loss(runs, forecast))


def plot_loss_curves(report: ProbeReport, forecast: Forecast | None = None) -> go.Figure:
    """Measured loss over examples seen (solid) and the forecast's (dashed), one colour for each batch size.

    Cooldowns are dotted, from where they branch off. Crosses end runs that diverged.
    """
    return _draw(loss_curves_data(report, forecast))


def _curve(run: Branch, forecast: Forecast | None, *, reference: bool) -> CurveData:
    points = list(zip(map(float, run.curve.examples), run.curve.losses, strict=True))
    if run.training is not None:
        points += zip(run.training.examples, run.training.losses, strict=True)
    seen = sorted((n, loss) for n, loss in points if n > 0 and loss > 0)
    examples = tuple(n for n, _ in seen)
    predictable = run.outcome != "diverged" and len(examples) > 1
    return CurveData(
        run.batch_size,
        run.learning_rate,
        examples,
        tuple(loss for _, loss in seen),
        run.outcome,
        reference,
        _predicted(forecast, run, examples) if forecast is not None and predictable else (),
        run.falls,
    )


def _initial_loss(runs: Sequence[Branch], forecast: Forecast | None) -> float | None:
    """The forecast's, or evaluated before the first step; None where neither is there."""
    if forecast is not None:
        return forecast.initial_loss
    return next((run.curve.losses[0] for run in reversed(runs) if run.curve.examples[:1] == (0,)), None)


def _predicted(forecast: Forecast, run: Branch, examples: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    places = spaced(examples[0], examples[-1], points=_PREDICTED_POINTS)
    losses = forecast.losses_along(
        run.batch_size, run.learning_rate, places, learning_rate_schedule=run.learning_rate_schedule
    )
    return tuple(zip(places, losses, strict=True))


class _Stroke(NamedTuple):
    """A line of the figure."""

    examples: tuple[float, ...]
    losses: tuple[float, ...]
    name: str
    colour: str
    hover: str
    width: float = 1.5
    dash: str = "solid"
    opacity: float = 1.0


def _draw(data: LossCurvesData) -> go.Figure:
    losses = [loss for curve in data.curves for loss in curve.losses]
    losses += [loss for curve in data.curves for _, loss in curve.predicted]
    if data.initial_loss is not None:
        losses = [*(min(loss, DIVERGED * data.initial_loss) for loss in losses), data.initial_loss]
    shown = span_of(losses)
    figure = blank(
        "Loss curves of the probe",
        xaxis=log_axis("examples seen", span_of(n for curve in data.curves for n in curve.examples)),
        yaxis=log_axis("loss", shown),
    )
    sizes = sorted({curve.batch_size for curve in data.curves})
    named: set[str] = set()
    for curve in sorted(data.curves, key=lambda curve: (curve.reference, curve.batch_size)):
        strokes = _strokes(curve, CYCLE[sizes.index(curve.batch_size) % len(CYCLE)])
        for stroke in strokes:
            _add_stroke(figure, stroke, shown, named)
        if curve.outcome == "diverged":
            _add_cross(figure, strokes[0], shown, named)
    if data.initial_loss is not None:
        _add_initial_loss(figure, data.initial_loss)
    return figure


def _strokes(curve: CurveData, colour: str) -> list[_Stroke]:
    """The measured line and the forecast's, as far as there are any."""
    name = f"batch size {count(curve.batch_size)}" + (", reference run" if curve.reference else "")
    rate = f"learning rate {number(curve.learning_rate)}"
    if curve.falls is not None:
        name += ", cooldowns"
        rate += f" falling from {count(curve.falls[0])} to {count(curve.falls[1])} examples"
    hover = f"{name}, {rate} ({curve.outcome})"
    width = 3.0 if curve.reference else 1.5
    dash = "solid" if curve.falls is None else "dot"
    strokes = [_Stroke(curve.examples, curve.losses, name, colour, hover, width, dash)]
    if curve.predicted:
        examples, losses = zip(*curve.predicted, strict=True)
        ink = BLACK if curve.reference else colour
        told = f"forecast of {hover}"
        strokes.append(_Stroke(examples, losses, "forecast of the same runs", ink, told, width, "dash", 0.8))
    return [stroke for stroke in strokes if stroke.examples]


def _add_initial_loss(figure: go.Figure, loss: float) -> None:
    figure.add_hline(y=loss, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=1.0,
        xref="paper",
        xanchor="right",
        y=math.log10(loss),
        yanchor="bottom",
        showarrow=False,
        text="loss at initialisation",
        font={"size": 12, "color": GREY},
    )


def _add_stroke(figure: go.Figure, stroke: _Stroke, shown: Span, named: set[str]) -> None:
    import plotly.graph_objects as go

    line = go.Scatter(
        x=stroke.examples,
        y=[shown.clip(loss) for loss in stroke.losses],
        mode="lines" if len(stroke.examples) > 1 else "markers",
        line={"color": stroke.colour, "width": stroke.width, "dash": stroke.dash},
        marker={"color": stroke.colour},
        opacity=stroke.opacity,
        name=stroke.name,
        legendgroup=stroke.name,
        showlegend=stroke.name not in named,
        customdata=[number(loss) for loss in stroke.losses],
        hovertemplate=f"{stroke.hover}<br>loss %{{customdata}} after %{{x:,.0f}} examples<extra></extra>",
    )
    figure.add_trace(line)
    named.add(stroke.name)


def _add_cross(figure: go.Figure, stroke: _Stroke, shown: Span, named: set[str]) -> None:
    import plotly.graph_objects as go

    cross = go.Scatter(
        x=stroke.examples[-1:],
        y=[shown.clip(stroke.losses[-1])],
        mode="markers",
        marker={"symbol": "x", "size": 11, "color": stroke.colour},
        name="diverged",
        legendgroup="diverged",
        showlegend="diverged" not in named,
        cliponaxis=False,
        hovertemplate=f"{stroke.hover}<extra></extra>",
    )
    figure.add_trace(cross)
    named.add("diverged")
