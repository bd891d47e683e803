"""Bands and arrows say neither more nor less than the intervals do."""

from __future__ import annotations

import math

from batchopt.visualization.axes import Span
from batchopt.visualization.canvas import BLUE, blank, draw_band, draw_readings, shade_observed, translucent
from batchopt.visualization.readings import Reading

SPAN = Span(1.0, 1_000.0)
AXES = {"xaxis": {}, "yaxis": {}}


def resolved(x: float, value: float) -> Reading:
    return Reading(x, value, value / 2, value * 2, True)


def test_a_band_runs_up_the_low_ends_and_back_along_the_high_ones() -> None:
    figure = blank("t", **AXES)
    draw_band(figure, [resolved(1.0, 10.0), resolved(2.0, 20.0)], name="n", colour=BLUE, span=SPAN, unit="u")
    band = figure.data[0]
    assert list(zip(band.x, band.y, strict=True)) == [(1.0, 20.0), (2.0, 40.0), (2.0, 10.0), (1.0, 5.0)]


def test_an_open_band_reaches_the_edge_and_its_line_is_dotted() -> None:
    figure = blank("t", **AXES)
    readings = [resolved(1.0, 10.0), resolved(2.0, 20.0), Reading(3.0, 30.0, 4.0, math.inf, False)]
    draw_band(figure, readings, name="n", colour=BLUE, span=SPAN, unit="u")
    band, solid, dotted = figure.data
    assert max(band.y) == SPAN.high
    assert (solid.line.dash, list(solid.x)) == ("solid", [1.0, 2.0])
    assert (dotted.line.dash, list(dotted.x)) == ("dot", [2.0, 3.0])
    assert [trace.showlegend for trace in figure.data] == [False, True, False]
    assert dotted.text[-1] == "more than 4 (unresolved) u"


def test_a_single_reading_of_a_trend_has_its_bar() -> None:
    figure = blank("t", **AXES)
    draw_band(figure, [resolved(1.0, 10.0)], name="n", colour=BLUE, span=SPAN, unit="u")
    (points,) = figure.data
    assert points.error_y.array == (10.0,)
    assert points.error_y.arrayminus == (5.0,)


def test_no_reading_draws_nothing() -> None:
    figure = blank("t", **AXES)
    draw_band(figure, [], name="n", colour=BLUE, span=SPAN, unit="u")
    draw_readings(figure, [], name="n", colour=BLUE, span=SPAN, unit="u")
    assert figure.data == ()


def test_one_sided_readings_are_arrows_from_their_bound() -> None:
    figure = blank("t", **AXES)
    readings = [Reading(1.0, 50.0, 40.0, math.inf, False), Reading(2.0, -9.0, -math.inf, math.inf, False)]
    draw_readings(figure, readings, name="n", colour=BLUE, span=SPAN, unit="u")
    known, unknown = figure.data
    assert known.y[0] == 40.0
    assert known.y[1] > 40.0
    assert unknown.y[0] == SPAN.low
    assert [trace.showlegend for trace in figure.data] == [True, False]


def test_an_unresolved_reading_is_hollow() -> None:
    figure = blank("t", **AXES)
    readings = [resolved(1.0, 10.0), Reading(2.0, 10.0, 0.01, 1e9, False)]
    draw_readings(figure, readings, name="n", colour=BLUE, span=SPAN, unit="u")
    (points,) = figure.data
    assert list(points.marker.symbol) == ["circle", "circle-open"]
    assert points.error_y.array[1] == SPAN.high - 10.0
    assert points.error_y.arrayminus[1] == 10.0 - SPAN.low


def test_observed_losses_are_shaded_where_they_end_on_the_axis() -> None:
    figure = blank("t", **AXES)
    shade_observed(figure, Span(0.1, 2.0), lowest=0.5)
    (shape,) = figure.layout.shapes
    assert (shape.x0, shape.x1) == (2.0, 0.5)
    assert [note.text.strip() for note in figure.layout.annotations] == ["observed", "extrapolated"]


def test_nothing_is_shaded_without_an_extrapolated_part() -> None:
    figure = blank("t", **AXES)
    shade_observed(figure, Span(0.5, 2.0), lowest=0.5)
    assert figure.layout.shapes == ()


def test_a_label_that_does_not_fit_is_left_out() -> None:
    figure = blank("t", **AXES)
    shade_observed(figure, Span(0.5, 2.0), lowest=0.51)
    assert [note.text.strip() for note in figure.layout.annotations] == ["observed"]


def test_translucent_colours() -> None:
    assert translucent("#0072B2", 0.5) == "rgba(0,114,178,0.5)"
