"""Figure: the loss curves that a probe measured, and what the forecast says of the same runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batchopt.errors import UnreachableGoalError
from batchopt.evidence import Branch, ProbeReport
from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import BLACK, CYCLE, GREY, blank
from batchopt.visualization.readings import spaced
from batchopt.visualization.wording import count, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from batchopt.forecasting.forecast import Forecast

_PREDICTED_POINTS = 24


class CurveData(NamedTuple):
    """One run.

    Attributes:
        batch_size: examples per step.
        learning_rate: its rate.
        examples: examples seen since initialisation, positive (a logarithmic axis has no zero).
        losses: measured there.
        settled: index of the first evaluation that is on the clock, after the burn-in of a branch.
        outcome: "finished", "stopped" or "diverged".
        reference: whether it is the long run.
        predicted: (examples, loss) by the forecast; empty for a run from mid-training and without a forecast.
    """

    batch_size: int
    learning_rate: float
    examples: tuple[int, ...]
    losses: tuple[float, ...]
    settled: int
    outcome: str
    reference: bool
    predicted: tuple[tuple[float, float], ...]


class LossCurvesData(NamedTuple):
    """All runs that left a curve, the reference last so that it is drawn on top."""

    curves: tuple[CurveData, ...]
    initial_loss: float | None


def loss_curves_data(report: ProbeReport, forecast: Forecast | None = None) -> LossCurvesData:
    """The measured curves with, where there is a forecast, its loss of the same settings."""
    runs = [run for run in (*report.branches, *([report.reference] if report.reference else [])) if run.curve.losses]
    from_start = [run for run in runs if run.start_examples == 0 and run.curve.examples[0] == 0]
    initial = from_start[-1].curve.losses[0] if from_start else None
    curves = tuple(_curve(run, forecast, reference=run is report.reference) for run in runs)
    return LossCurvesData(tuple(curve for curve in curves if curve.examples), initial)


def plot_loss_curves(report: ProbeReport, forecast: Forecast | None = None) -> go.Figure:
    """Measured loss over examples seen (solid) and the forecast's (dashed), one colour for each batch size.

    Crosses end runs that diverged; the faint start of a branch from mid-training is its burn-in, which is not on the
    clock.
    """
    return _draw(loss_curves_data(report, forecast))


def _curve(run: Branch, forecast: Forecast | None, *, reference: bool) -> CurveData:
    seen = [
        (run.start_examples + n, loss, n)
        for n, loss in zip(run.curve.examples, run.curve.losses, strict=True)
        if run.start_examples + n > 0
    ]
    examples = tuple(n for n, _, _ in seen)
    settled = sum(1 for _, _, n in seen if n < run.burn_in_examples)
    predict = forecast is not None and run.start_examples == 0 and run.outcome != "diverged" and len(examples) > 1
    return CurveData(
        run.batch_size,
        run.learning_rate,
        examples,
        tuple(loss for _, loss, _ in seen),
        settled,
        run.outcome,
        reference,
        _predicted(forecast, run, examples) if predict and forecast is not None else (),
    )


def _predicted(forecast: Forecast, run: Branch, examples: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    places = spaced(float(examples[0]), float(examples[-1]), points=_PREDICTED_POINTS)
    try:
        return tuple((n, forecast.loss(run.batch_size, run.learning_rate, n).value) for n in places)
    except UnreachableGoalError:
        return ()


def _draw(data: LossCurvesData) -> go.Figure:
    losses = [loss for curve in data.curves for loss in curve.losses]
    if data.initial_loss is not None:
        losses = [min(loss, 1.5 * data.initial_loss) for loss in losses]
    figure = blank(
        "Loss curves of the probe",
        xaxis=log_axis("examples seen", span_of(n for curve in data.curves for n in curve.examples)),
        yaxis=log_axis("loss", span_of(losses)),
    )
    sizes = sorted({curve.batch_size for curve in data.curves})
    colours = {size: CYCLE[i % len(CYCLE)] for i, size in enumerate(sizes)}
    named: set[str] = set()
    for curve in data.curves:
        _draw_curve(figure, curve, colours[curve.batch_size], named)
    if data.initial_loss is not None and math.isfinite(data.initial_loss):
        figure.add_hline(y=data.initial_loss, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure


def _draw_curve(figure: go.Figure, curve: CurveData, colour: str, named: set[str]) -> None:
    name = f"batch size {count(curve.batch_size)}" + (", reference run" if curve.reference else "")
    width = 3.0 if curve.reference else 1.5
    hover = f"{name}, learning rate {number(curve.learning_rate)} ({curve.outcome})<br>"
    hover += "loss %{y:.4g} after %{x:,} examples<extra></extra>"
    burn_in = slice(0, curve.settled + 1) if curve.settled else slice(0, 0)
    pieces = ((burn_in, 0.35), (slice(curve.settled, None), 1.0))
    for piece, opacity in pieces:
        if curve.examples[piece]:
            line = {"color": colour, "width": width}
            _add_line(
                figure, curve.examples[piece], curve.losses[piece], name, line, named, opacity=opacity, hover=hover
            )
    if curve.predicted:
        examples, losses = zip(*curve.predicted, strict=True)
        dashed = {"color": colour if not curve.reference else BLACK, "width": width * 0.8, "dash": "dash"}
        label = "forecast of the same runs" + (", reference" if curve.reference else "")
        _add_line(figure, examples, losses, label, dashed, named, opacity=0.8, hover=f"forecast of {hover}")
    if curve.outcome == "diverged":
        _add_cross(figure, curve, colour, named, hover)


def _add_line(
    figure: go.Figure,
    examples: tuple[float, ...],
    losses: tuple[float, ...],
    name: str,
    line: dict[str, object],
    named: set[str],
    *,
    opacity: float,
    hover: str,
) -> None:
    import plotly.graph_objects as go

    mode = "lines" if len(examples) > 1 else "markers"
    trace = go.Scatter(
        x=examples,
        y=losses,
        mode=mode,
        line=line,
        marker={"color": line["color"]},
        opacity=opacity,
        name=name,
        legendgroup=name,
        showlegend=name not in named,
        hovertemplate=hover,
    )
    figure.add_trace(trace)
    named.add(name)


def _add_cross(figure: go.Figure, curve: CurveData, colour: str, named: set[str], hover: str) -> None:
    import plotly.graph_objects as go

    cross = go.Scatter(
        x=curve.examples[-1:],
        y=curve.losses[-1:],
        mode="markers",
        marker={"symbol": "x", "size": 10, "color": colour},
        name="diverged",
        legendgroup="diverged",
        showlegend="diverged" not in named,
        hovertemplate=hover,
    )
    figure.add_trace(cross)
    named.add("diverged")
