"""Figure: the loss curves that a probe measured, and what the forecast says of the same runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from batchopt.evidence import Branch, ProbeReport
from batchopt.visualization.axes import Span, log_axis, round_numbers, span_of
from batchopt.visualization.canvas import GREY, HEIGHT, blank
from batchopt.visualization.readings import spaced
from batchopt.visualization.wording import count, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from batchopt.forecasting.forecast import Forecast

DIVERGED = 1.5
"""Losses above this many times the initial one lie at the figure's edge: a diverged run would flatten the rest."""
_PREDICTED_POINTS = 16
_COLUMNS = 3
"""Panels side by side: a probe has two batch sizes, three where it searches rates at another one."""
RATE_SCALE = ("#440154", "#3b528b", "#21918c", "#5ec962", "#d8b200")
"""Colours from the lowest to the highest learning rate, after viridis: each lighter than the one before, so that their
order is seen with any colour vision; the last darker than viridis', which is lost on white."""


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
    """Measured loss over examples seen (solid) and the forecast's (dashed), a panel for each batch size.

    The darker a line, the lower its learning rate. Cooldowns are dotted, from where they branch off. Crosses end runs
    that diverged.
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


class _Panels(NamedTuple):
    """The figure with its panels: where a batch size is drawn, and what is named in the legend already."""

    figure: go.Figure
    sizes: list[int]
    shown: Span
    named: set[str]

    def add(self, trace: go.Scatter, batch_size: int) -> None:
        """Draw in the panel of a batch size, named once."""
        trace.showlegend = trace.name not in self.named
        self.named.add(trace.name)
        row, column = divmod(self.sizes.index(batch_size), _COLUMNS)
        self.figure.add_trace(trace, row=row + 1, col=column + 1)


def _draw(data: LossCurvesData) -> go.Figure:
    losses = [loss for curve in data.curves for loss in curve.losses]
    losses += [loss for curve in data.curves for _, loss in curve.predicted]
    if data.initial_loss is not None:
        losses = [*(min(loss, DIVERGED * data.initial_loss) for loss in losses), data.initial_loss]
    panels = _panels(data, span_of(losses))
    rates = sorted({curve.learning_rate for curve in data.curves})
    for curve in sorted(data.curves, key=lambda curve: (curve.reference, curve.batch_size)):
        strokes = _strokes(curve, _colour_of(curve.learning_rate, rates))
        for stroke in strokes:
            panels.add(_line(stroke, panels.shown), curve.batch_size)
        if curve.outcome == "diverged":
            panels.add(_cross(strokes[0], panels.shown), curve.batch_size)
    if len(rates) > 1:
        _add_scale(panels.figure, rates)
    if data.initial_loss is not None and panels.sizes:
        panels.figure.add_hline(y=data.initial_loss, line={"color": GREY, "width": 1, "dash": "dot"})
    return panels.figure


def _panels(data: LossCurvesData, shown: Span) -> _Panels:
    """An empty figure with a panel for each batch size, all on the same axes."""
    from plotly.subplots import make_subplots

    along = log_axis("examples seen", span_of(n for curve in data.curves for n in curve.examples))
    up = log_axis("loss", shown)
    figure = blank("Loss curves of the probe", xaxis=along, yaxis=up)
    sizes = sorted({curve.batch_size for curve in data.curves})
    if sizes:
        columns = min(len(sizes), _COLUMNS)
        rows = math.ceil(len(sizes) / columns)
        titles = [f"batch size {count(size)}" for size in sizes]
        lines = figure.layout.xaxis.to_plotly_json(), figure.layout.yaxis.to_plotly_json()
        figure = make_subplots(
            rows, columns, figure=figure, subplot_titles=titles, horizontal_spacing=0.04, vertical_spacing=0.2
        )
        figure.update_xaxes({key: value for key, value in lines[0].items() if key not in ("anchor", "domain")})
        figure.update_yaxes({key: value for key, value in lines[1].items() if key not in ("anchor", "domain")})
        for column in range(2, columns + 1):
            figure.update_yaxes(title_text="", showticklabels=False, col=column)
        figure.update_layout(height=HEIGHT + (rows - 1) * HEIGHT * 3 // 4)
    return _Panels(figure, sizes, shown, set())


def _colour_of(rate: float, rates: Sequence[float]) -> str:
    """Its place between the lowest and the highest rate, in logarithms."""
    from plotly.colors import sample_colorscale

    if len(rates) < 2:
        return RATE_SCALE[0]
    place = math.log(rate / rates[0]) / math.log(rates[-1] / rates[0])
    colour: str = sample_colorscale(list(RATE_SCALE), [place])[0]
    return colour


def _add_scale(figure: go.Figure, rates: Sequence[float]) -> None:
    """What the colours stand for."""
    import plotly.graph_objects as go

    ticks = round_numbers(Span(rates[0], rates[-1]))
    ticks = ticks if len(ticks) > 1 else (rates[0], rates[-1])
    bar = {
        "title": {"text": "learning rate", "side": "right"},
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [number(tick) for tick in ticks],
        "thickness": 12,
        "outlinewidth": 0,
    }
    marker = {
        "color": [math.log10(rates[0])],
        "cmin": math.log10(rates[0]),
        "cmax": math.log10(rates[-1]),
        "colorscale": list(RATE_SCALE),
        "colorbar": bar,
        "size": 0,
        "opacity": 0,
    }
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip"))


def _strokes(curve: CurveData, colour: str) -> list[_Stroke]:
    """The measured line and the forecast's, as far as there are any."""
    name = "reference run" if curve.reference else "measured"
    hover = f"batch size {count(curve.batch_size)}, learning rate {number(curve.learning_rate)}"
    if curve.falls is not None:
        name = "cooldowns"
        hover += f" falling from {count(curve.falls[0])} to {count(curve.falls[1])} examples"
    hover += f" ({curve.outcome})"
    width = 3.0 if curve.reference else 1.5
    dash = "solid" if curve.falls is None else "dot"
    strokes = [_Stroke(curve.examples, curve.losses, name, colour, hover, width, dash)]
    if curve.predicted:
        examples, losses = zip(*curve.predicted, strict=True)
        told = f"forecast of {hover}"
        strokes.append(_Stroke(examples, losses, "forecast of the same runs", colour, told, 1.0, "dash"))
    return [stroke for stroke in strokes if stroke.examples]


def _line(stroke: _Stroke, shown: Span) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=stroke.examples,
        y=[shown.clip(loss) for loss in stroke.losses],
        mode="lines" if len(stroke.examples) > 1 else "markers",
        line={"color": stroke.colour, "width": stroke.width, "dash": stroke.dash},
        marker={"color": stroke.colour},
        name=stroke.name,
        legendgroup=stroke.name,
        customdata=[number(loss) for loss in stroke.losses],
        hovertemplate=f"{stroke.hover}<br>loss %{{customdata}} after %{{x:,.0f}} examples<extra></extra>",
    )


def _cross(stroke: _Stroke, shown: Span) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=stroke.examples[-1:],
        y=[shown.clip(stroke.losses[-1])],
        mode="markers",
        marker={"symbol": "x", "size": 11, "color": stroke.colour},
        name="diverged",
        legendgroup="diverged",
        cliponaxis=False,
        hovertemplate=f"{stroke.hover}<extra></extra>",
    )
