"""What all figures share: colours, an empty figure, intervals drawn as they are.

Colours are those of Okabe and Ito (2008), which people with any common colour vision can tell apart; none carries a
meaning alone: shape, dash or a label repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from batchopt.visualization.axes import Span
from batchopt.visualization.readings import Reading
from batchopt.visualization.wording import interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLACK, GREY, LIGHT = "#1a1a1a", "#767676", "#e4e7eb"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
HEIGHT = 460
NARROW = 0.18
"""A label does not fit into a smaller share of the figure's width."""


def blank(title: str, *, xaxis: dict[str, Any], yaxis: dict[str, Any]) -> go.Figure:
    """A figure without data: title above, legend below."""
    import plotly.graph_objects as go

    line = {
        "showgrid": True,
        "gridcolor": LIGHT,
        "linecolor": GREY,
        "showline": True,
        "ticks": "outside",
        "tickcolor": GREY,
    }
    line |= {"automargin": True, "zeroline": False, "title_standoff": 10}
    layout = go.Layout(
        template="none",
        title={"text": title, "x": 0.0, "xref": "paper", "font": {"size": 17}},
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "size": 13,
            "color": BLACK,
        },
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0.0,
            "yanchor": "bottom",
            "x": 0.0,
            "itemsizing": "constant",
        },
        margin={"l": 70, "r": 24, "t": 64, "b": 60},
        height=HEIGHT,
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"color": BLACK}},
    )
    figure = go.Figure(layout=layout)
    figure.update_xaxes({**line, **xaxis})
    figure.update_yaxes({**line, **yaxis})
    return figure


def translucent(colour: str, opacity: float) -> str:
    """A "#rrggbb" colour with an opacity, as CSS."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def draw_band(figure: go.Figure, readings: Sequence[Reading], *, name: str, colour: str, span: Span, unit: str) -> None:
    """A line of best guesses in its 90 % band; dotted where unresolved; an open band goes to the axis's edge."""
    if len(readings) < 2:
        draw_readings(figure, readings, name=name, colour=colour, span=span, unit=unit)
        return
    import plotly.graph_objects as go

    edge_x = [r.x for r in readings] + [r.x for r in reversed(readings)]
    edge_y = [span.clip(r.high) for r in readings] + [span.clip(r.low) for r in reversed(readings)]
    band = go.Scatter(
        x=edge_x,
        y=edge_y,
        fill="toself",
        fillcolor=translucent(colour, 0.18),
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    figure.add_trace(band)
    named = False
    for resolved, piece in _pieces(readings):
        line = go.Scatter(
            x=[r.x for r in piece],
            y=[span.clip(r.value) for r in piece],
            mode="lines" if len(piece) > 1 else "markers",
            line={"color": colour, "width": 2.5, "dash": "solid" if resolved else "dot"},
            marker={"color": colour, "size": 8, "symbol": "circle" if resolved else "circle-open"},
            name=name,
            legendgroup=name,
            showlegend=not named,
            text=[f"{interval(r.estimate)} {unit}" for r in piece],
            hovertemplate=f"{name}<br>%{{text}}<br>at %{{x:.3g}}<extra></extra>",
        )
        figure.add_trace(line)
        named = True


def draw_readings(
    figure: go.Figure, readings: Sequence[Reading], *, name: str, colour: str, span: Span, unit: str
) -> None:
    """Points with 90 % bars; a one-sided reading is an arrow from its lower bound, an unresolved one a hollow point."""
    import plotly.graph_objects as go

    bounded = [r for r in readings if not r.one_sided]
    if bounded:
        points = go.Scatter(
            x=[r.x for r in bounded],
            y=[span.clip(r.value) for r in bounded],
            mode="markers",
            error_y={
                "type": "data",
                "array": [span.clip(r.high) - span.clip(r.value) for r in bounded],
                "arrayminus": [span.clip(r.value) - span.clip(r.low) for r in bounded],
                "color": colour,
                "thickness": 1.5,
                "width": 5,
            },
            marker={
                "color": colour,
                "size": 9,
                "symbol": ["circle" if r.resolved else "circle-open" for r in bounded],
                "line": {"width": 2, "color": colour},
            },
            name=name,
            text=[f"{interval(r.estimate)} {unit}" for r in bounded],
            hovertemplate=f"{name}<br>%{{text}}<br>at %{{x:.3g}}<extra></extra>",
        )
        figure.add_trace(points)
    _draw_lower_bounds(figure, [r for r in readings if r.one_sided], name=name, colour=colour, span=span, unit=unit)


def _draw_lower_bounds(
    figure: go.Figure, readings: Sequence[Reading], *, name: str, colour: str, span: Span, unit: str
) -> None:
    import plotly.graph_objects as go

    length = (span.high / span.low) ** 0.14
    for i, reading in enumerate(readings):
        foot = span.clip(reading.low)
        arrow = go.Scatter(
            x=[reading.x, reading.x],
            y=[foot, span.clip(foot * length)],
            mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": "dot"},
            marker={"symbol": ["line-ew-open", "triangle-up"], "size": [12, 11], "color": colour, "line": {"width": 2}},
            name=f"{name}: lower bound only",
            legendgroup=f"{name}: bound",
            showlegend=i == 0,
            hovertemplate=f"{name}<br>{interval(reading.estimate)} {unit}<br>at %{{x:.3g}}<extra></extra>",
        )
        figure.add_trace(arrow)


def shade_observed(figure: go.Figure, loss: Span, *, lowest: float) -> None:
    """Shade the losses that were seen and name what lies beyond, on a falling logarithmic loss axis."""
    if not loss.low < lowest < loss.high:
        return
    figure.add_shape(
        type="rect", x0=loss.high, x1=lowest, y0=0, y1=1, yref="paper", fillcolor="#f3f5f7", line_width=0, layer="below"
    )
    at = Span(lowest, loss.high).exponents[0]
    text = {"y": 1.0, "yref": "paper", "yanchor": "bottom", "showarrow": False, "font": {"size": 12, "color": GREY}}
    share = math.log(loss.high / lowest) / math.log(loss.high / loss.low)
    if share > NARROW:
        figure.add_annotation(x=at, xanchor="right", text="observed ", **text)
    if 1.0 - share > NARROW:
        figure.add_annotation(x=at, xanchor="left", text=" extrapolated", **text)


def _pieces(readings: Sequence[Reading]) -> list[tuple[bool, list[Reading]]]:
    """Stretches of equal `resolved`, each joined to the reading before it so that the line has no gap."""
    pieces: list[tuple[bool, list[Reading]]] = []
    for resolved, group in groupby(readings, key=lambda reading: reading.resolved):
        before = pieces[-1][1][-1:] if pieces else []
        pieces.append((resolved, [*before, *group]))
    return pieces
