"""Figure: a schedule's batch size and learning rate over the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from batchopt.schedules.schedule import Schedule, check_schedule
from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import BLUE, ORANGE, blank
from batchopt.visualization.wording import count, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BELOW = 0.35
"""Share of the figure's height for the learning rate."""
_FLAT_HEIGHT = 260
_MOST_LABELS = 10
"""A piece shorter than one in so many of the run is not labelled: its label would cover its neighbours'."""


class Piece(NamedTuple):
    """A stretch of the run, [start, end) in examples; `learning_rate` is None where only a multiplier is known."""

    start: int
    end: int
    batch_size: int
    learning_rate: float | None
    multiplier: float


def schedule_data(schedule: Schedule) -> tuple[Piece, ...]:
    """The pieces of a schedule with their ends and learning rates."""
    check_schedule(schedule)
    ends = [segment.start_examples for segment in schedule.segments[1:]] + [schedule.examples]
    base = schedule.learning_rate
    return tuple(
        Piece(
            segment.start_examples,
            end,
            segment.batch_size,
            None if base is None else base * segment.learning_rate_multiplier,
            segment.learning_rate_multiplier,
        )
        for segment, end in zip(schedule.segments, ends, strict=True)
    )


def learning_rates(schedule: Schedule) -> tuple[tuple[int, float], ...]:
    """(examples seen, learning rate) where the rate turns or jumps; multipliers where there is no peak rate.

    Empty where neither warm-up nor decay are the schedule's.
    """
    rates = schedule.learning_rate_schedule
    if rates is None:
        return ()
    peak, points = schedule.learning_rate or 1.0, []
    for piece in schedule_data(schedule):
        inside = [n for n in rates.examples if piece.start < n < piece.end]
        points += [(n, peak * piece.multiplier * rates(n)) for n in (piece.start, *inside, piece.end)]
    return tuple(points)


def is_flat(schedule: Schedule) -> bool:
    """Whether neither batch size nor learning rate change: a figure of it would say nothing."""
    rates = {rate for _, rate in learning_rates(schedule)}
    return len(schedule.segments) == 1 and len(rates) <= 1


def plot_schedule(schedule: Schedule) -> go.Figure:
    """Batch size over examples seen, as steps, each labelled with its batch size and learning rate.

    Below it the learning rate, where warm-up and decay are the schedule's; that alone where the batch size stays.
    """
    pieces, rates = schedule_data(schedule), learning_rates(schedule)
    name = "learning rate" if schedule.learning_rate else "learning rate, over its peak"
    if rates and len(pieces) == 1:
        return _draw_rates(rates, name, pieces[0])
    figure = _draw(pieces)
    if rates:
        _add_rates(figure, rates, name)
    return figure


def _draw_rates(rates: tuple[tuple[int, float], ...], name: str, piece: Piece) -> go.Figure:
    figure = blank(
        f"{name.capitalize()} over the run, at batch size {count(piece.batch_size)}",
        xaxis={"title": {"text": "examples seen"}, "range": [0, piece.end], "tickformat": "~s"},
        yaxis={"title": {"text": name}, "rangemode": "tozero"},
    )
    figure.update_layout(height=_FLAT_HEIGHT)
    figure.add_trace(_rate_line(rates, name))
    return figure


def _draw(pieces: tuple[Piece, ...]) -> go.Figure:
    import plotly.graph_objects as go

    sizes = span_of((piece.batch_size for piece in pieces), least=8.0, margin=0.12)
    figure = blank(
        "Batch size and learning rate over the run",
        xaxis={"title": {"text": "examples seen"}, "range": [0, pieces[-1].end], "tickformat": "~s"},
        yaxis=log_axis("batch size (examples per step)", sizes, powers=True),
    )
    rates = [_rate(piece) for piece in pieces]
    steps = go.Scatter(
        x=[*(piece.start for piece in pieces), pieces[-1].end],
        y=[*(piece.batch_size for piece in pieces), pieces[-1].batch_size],
        mode="lines",
        line={"color": BLUE, "width": 3, "shape": "hv"},
        text=[*rates, rates[-1]],
        hovertemplate="batch size %{y:,} from %{x:,} examples<br>%{text}<extra></extra>",
        showlegend=False,
    )
    figure.add_trace(steps)
    for piece, rate in zip(pieces, rates, strict=True):
        if (piece.end - piece.start) * _MOST_LABELS >= pieces[-1].end:
            figure.add_annotation(
                x=(piece.start + piece.end) / 2,
                y=math.log10(piece.batch_size),
                text=f"{count(piece.batch_size)}<br>{rate}",
                yanchor="bottom",
                yshift=6,
                showarrow=False,
            )
    return figure


def _rate_line(rates: tuple[tuple[int, float], ...], name: str) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[n for n, _ in rates],
        y=[rate for _, rate in rates],
        mode="lines",
        line={"color": ORANGE, "width": 3},
        hovertemplate=f"{name} %{{y:.3g}} after %{{x:,}} examples<extra></extra>",
        showlegend=False,
    )


def _add_rates(figure: go.Figure, rates: tuple[tuple[int, float], ...], name: str) -> None:
    figure.add_trace(_rate_line(rates, name).update(yaxis="y2"))
    below = dict(figure.layout.yaxis.to_plotly_json())
    below |= {"title": {"text": name}, "type": "linear", "domain": [0.0, _BELOW], "rangemode": "tozero"}
    for key in ("range", "tickvals", "ticktext", "tickmode", "dtick"):
        below.pop(key, None)
    figure.update_layout(yaxis={"domain": [_BELOW + 0.1, 1.0]}, yaxis2=below, xaxis={"anchor": "y2"})


def _rate(piece: Piece) -> str:
    if piece.learning_rate is None:
        return "" if piece.multiplier == 1.0 else f"lr x {number(piece.multiplier)}"
    return f"lr {number(piece.learning_rate)}"
