from __future__ import annotations

from typing import cast

import pytest
from visualization.samples import Forecaster

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.forecast import Forecast
from batchopt.uncertainty import Estimate
from batchopt.visualization.forecast import draw_forecast, forecast_data, plot_forecast


class Hopeless(Forecaster):
    """Reaches no loss at all."""

    def critical_batch_size(self, loss: float) -> Estimate:
        raise UnreachableGoalError(f"{loss} is out of reach")


def stand_in(forecaster: Forecaster) -> Forecast:
    return cast("Forecast", forecaster)


@pytest.mark.usefixtures("few_points")
def test_both_curves_are_the_forecasts_own_and_render(forecast: Forecast) -> None:
    data = forecast_data(forecast)
    assert 2 <= len(data.critical) <= 3
    assert data.critical[1].estimate == forecast.critical_batch_size(data.critical[1].x)
    assert data.local[1].estimate == forecast.local_critical_batch_size(data.local[1].x)
    assert data.critical[0].x < forecast.initial_loss
    assert data.critical[-1].x >= 0.999 * forecast.lowest_observed_loss / 3.0
    assert "Infinity" not in draw_forecast(data).to_json()


def test_what_is_out_of_reach_or_open_is_not_made_up() -> None:
    data = forecast_data(stand_in(Forecaster()))
    assert min(reading.x for reading in data.critical) >= 0.3
    assert [reading.one_sided for reading in data.critical] == [reading.x < 0.5 for reading in data.critical]


def test_the_open_band_leaves_the_figure() -> None:
    figure = plot_forecast(stand_in(Forecaster()))
    top = 10.0 ** figure.layout.yaxis.range[1]
    band = figure.data[0]
    assert max(band.y) == pytest.approx(top)
    assert "Infinity" not in figure.to_json()
    assert {trace.line.dash for trace in figure.data[1:3]} == {"solid", "dot"}


def test_a_forecast_that_reaches_nothing_still_renders() -> None:
    assert plot_forecast(stand_in(Hopeless())).to_json()
