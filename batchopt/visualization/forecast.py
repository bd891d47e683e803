"""Figure: the critical batch size over the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchopt.visualization.axes import log_axis, span_of
from batchopt.visualization.canvas import BLUE, ORANGE, blank, draw_band, shade_observed
from batchopt.visualization.noise_scale import BEYOND
from batchopt.visualization.readings import Reading, ends, read_out, spaced

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from batchopt.forecasting.forecast import Forecast

POINTS = 9
"""Each point is a fit to every posterior draw, so few are asked for."""


class ForecastData(NamedTuple):
    """What the figure shows, each over the losses that the forecast reaches.

    Attributes:
        critical: critical batch size from initialisation to a loss.
        local: critical batch size of the training that happens at a loss.
        lowest_observed: lowest loss that was seen.
    """

    critical: tuple[Reading, ...]
    local: tuple[Reading, ...]
    lowest_observed: float


def forecast_data(forecast: Forecast) -> ForecastData:
    """Both critical batch sizes from the initial loss to a third of the lowest that was observed."""
    lowest = forecast.lowest_observed_loss
    losses = spaced(0.9 * forecast.initial_loss, min(lowest / BEYOND, 0.5 * forecast.initial_loss), points=POINTS)
    return ForecastData(
        read_out(forecast.critical_batch_size, losses), read_out(forecast.local_critical_batch_size, losses), lowest
    )


def plot_forecast(forecast: Forecast) -> go.Figure:
    """Critical batch size over loss with its 90 % band, what the probe observed apart from what is extrapolated.

    Training goes to the right. Lines are dotted where unresolved; a band that leaves the figure has no known upper end.
    """
    return draw_forecast(forecast_data(forecast))


def draw_forecast(data: ForecastData) -> go.Figure:
    """The figure of a forecast's data."""
    everything = (*data.critical, *data.local)
    loss = span_of([data.lowest_observed, *(reading.x for reading in everything)])
    size = span_of(ends(everything), least=8.0)
    figure = blank(
        "Critical batch size over the loss",
        xaxis=log_axis("loss (training goes to the right)", loss, falling=True),
        yaxis=log_axis("critical batch size (examples per step)", size, powers=True),
    )
    shade_observed(figure, loss, lowest=data.lowest_observed)
    draw_band(
        figure, data.local, name="of the training at that loss", colour=ORANGE, span=size, unit="examples per step"
    )
    draw_band(
        figure, data.critical, name="from the start to that loss", colour=BLUE, span=size, unit="examples per step"
    )
    return figure
