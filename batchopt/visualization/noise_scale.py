"""Figure: the gradient noise scale over the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchopt.evidence import ProbeReport
from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import CYCLE, GREY, blank, draw_band, draw_readings, shade_observed
from batchopt.visualization.readings import Reading, ends, read_out, spaced

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from batchopt.forecasting.forecast import Forecast

BEYOND = 3.0
"""How many times below the lowest observed loss a forecast is drawn."""


class NoiseScaleData(NamedTuple):
    """What the figure shows.

    Attributes:
        readings: by kind of noise scale, its readings over the loss where each was measured.
        trend: the forecast's noise scale over loss; empty without one.
        lowest_observed: lowest loss that the probe saw; None without a forecast.
    """

    readings: dict[str, tuple[Reading, ...]]
    trend: tuple[Reading, ...]
    lowest_observed: float | None


def noise_scale_data(report: ProbeReport, forecast: Forecast | None = None) -> NoiseScaleData:
    """The readings of a probe and the trend that the forecast draws through them."""
    readings: dict[str, tuple[Reading, ...]] = {}
    for scale in report.noise_scales:
        if scale.at is not None:
            readings[scale.kind] = (*readings.get(scale.kind, ()), Reading.of(scale.at.loss, scale.batch_size))
    if forecast is None:
        return NoiseScaleData(readings, (), None)
    lowest = forecast.lowest_observed_loss
    highest = max([forecast.initial_loss, *(r.x for series in readings.values() for r in series)])
    trend = read_out(forecast.noise_scale, spaced(highest, lowest / BEYOND, points=50))
    return NoiseScaleData(readings, trend, lowest)


def plot_noise_scale(report: ProbeReport, forecast: Forecast | None = None) -> go.Figure:
    """Noise scale over loss: readings with their 90 % intervals, and the forecast's trend with its band.

    Training goes to the right. A reading that is only a lower bound is an arrow upwards, one whose interval is too wide
    to decide anything a hollow point; the trend is dotted where it is unresolved.

    Args:
        report: the probe.
        forecast: its forecast, for the trend.
    """
    return _draw(noise_scale_data(report, forecast))


def _draw(data: NoiseScaleData) -> go.Figure:
    series = list(data.readings.items())
    everything = [reading for _, readings in series for reading in readings] + list(data.trend)
    loss = span_of(reading.x for reading in everything)
    noise = span_of(ends(everything), least=8.0)
    figure = blank(
        "Gradient noise scale over the loss",
        xaxis=log_axis("loss (training goes to the right)", loss, falling=True),
        yaxis=log_axis("noise scale (examples)", noise, powers=True),
    )
    if data.lowest_observed is not None:
        shade_observed(figure, loss, lowest=data.lowest_observed)
    draw_band(figure, data.trend, name="trend with 90 % band", colour=GREY, span=noise, unit="examples")
    for (kind, readings), colour in zip(series, CYCLE, strict=False):
        draw_readings(figure, readings, name=f"measured ({kind})", colour=colour, span=noise, unit="examples")
    return figure
