from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from visualization.samples import UNRESOLVED, Forecaster

from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.visualization.noise_scale import BEYOND, noise_scale_data, plot_noise_scale


def test_readings_stand_at_the_loss_where_they_were_measured(report: ProbeReport) -> None:
    data = noise_scale_data(report)
    assert [reading.x for reading in data.readings["simple"]] == [1.9, 1.0, 0.3, 0.75]
    assert [r.value for r in data.readings["simple"]] == [scale.batch_size.value for scale in report.noise_scales]
    assert [r.one_sided for r in data.readings["simple"]] == [False, False, False, True]
    assert (data.trend, data.lowest_observed) == ((), None)


def test_the_trend_is_the_forecasts_own(report: ProbeReport, forecast: Forecast) -> None:
    data = noise_scale_data(report, forecast)
    assert data.trend[0].x == forecast.initial_loss
    assert data.trend[-1].x == pytest.approx(forecast.lowest_observed_loss / BEYOND)
    middle = data.trend[20]
    assert middle.estimate == forecast.noise_scale(middle.x)


def test_readings_off_a_run_have_no_place(report: ProbeReport) -> None:
    assert noise_scale_data(replace(report, noise_scales=(replace(UNRESOLVED, at=None),))).readings == {}


def test_kinds_are_told_apart(report: ProbeReport) -> None:
    scales = (*report.noise_scales, replace(report.noise_scales[0], kind="other"))
    figure = plot_noise_scale(replace(report, noise_scales=scales))
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert names == ["measured (simple)", "measured (simple): lower bound only", "measured (other)"]


def test_loss_falls_to_the_right(report: ProbeReport) -> None:
    left, right = plot_noise_scale(report).layout.xaxis.range
    assert left > right


@pytest.mark.parametrize("scales", [(), (UNRESOLVED,)])
def test_little_data_still_renders(report: ProbeReport, scales: tuple[Any, ...]) -> None:
    few = replace(report, noise_scales=scales)
    assert plot_noise_scale(few).to_json()
    assert plot_noise_scale(few, cast("Forecast", Forecaster())).to_json()


def test_it_renders(report: ProbeReport, forecast: Forecast) -> None:
    assert "Infinity" not in plot_noise_scale(report, forecast).to_json()
