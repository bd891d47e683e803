from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from visualization.samples import Forecaster

from batchopt.evidence import Branch, LossCurve, ProbeReport, TrainingLosses
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.visualization.loss_curves import DIVERGED, loss_curves_data, plot_loss_curves


def only(report: ProbeReport, *branches: Branch) -> ProbeReport:
    return replace(report, reference=None, branches=branches)


def test_every_run_is_there_and_the_reference_is_known(report: ProbeReport) -> None:
    data = loss_curves_data(report)
    assert len(data.curves) == len(report.runs)
    assert [curve.reference for curve in data.curves] == [False] * len(report.branches) + [True]
    assert data.initial_loss == 2.3
    assert all(curve.predicted == () for curve in data.curves)


def test_the_start_has_no_place_on_a_logarithmic_axis(report: ProbeReport) -> None:
    assert report.reference is not None
    curve = loss_curves_data(report).curves[-1]
    assert curve.examples == report.reference.curve.examples[1:]
    assert curve.losses == report.reference.curve.losses[1:]


def test_losses_of_training_batches_are_points_too(report: ProbeReport) -> None:
    training = TrainingLosses((0.0, 50.0, 300.0), (2.3, 2.1, -0.1), (0.1, 0.1, 0.1))
    branch = Branch(32, 0.1, LossCurve((0, 100), (2.3, 2.0)), training=training)
    (curve,) = loss_curves_data(only(report, branch)).curves
    assert (curve.examples, curve.losses) == ((50.0, 100.0), (2.1, 2.0))


def test_without_an_evaluation_the_forecast_knows_the_initial_loss(report: ProbeReport, forecast: Forecast) -> None:
    training = TrainingLosses((0.0, 50.0), (2.3, 2.1), (0.1, 0.1))
    bare = only(report, Branch(32, 0.1, LossCurve((), ()), training=training))
    assert loss_curves_data(bare).initial_loss is None
    assert loss_curves_data(bare, forecast).initial_loss == forecast.initial_loss


def test_the_forecast_is_of_the_same_settings(report: ProbeReport, forecast: Forecast) -> None:
    curve = loss_curves_data(report, forecast).curves[-1]
    examples, loss = curve.predicted[3]
    assert loss == pytest.approx(forecast.losses_along(curve.batch_size, curve.learning_rate, (examples,))[0], rel=1e-3)
    assert curve.predicted[-1][0] == pytest.approx(curve.examples[-1])


def test_runs_that_are_not_predictable_have_no_dashed_line(report: ProbeReport) -> None:
    diverged = [c for c in loss_curves_data(report, cast("Forecast", Forecaster())).curves if c.outcome == "diverged"]
    assert [c.predicted for c in diverged] == [()]


def test_a_diverged_run_does_not_flatten_the_others(report: ProbeReport) -> None:
    wild = Branch(32, 9.0, LossCurve((0, 100, 200), (2.3, 50.0, 1e9)), outcome="diverged")
    figure = plot_loss_curves(replace(report, branches=(wild,)))
    assert 10.0 ** figure.layout.yaxis.range[1] < 1.3 * DIVERGED * 2.3
    assert [trace.name for trace in figure.data if trace.marker.symbol == "x"] == ["diverged"]


def test_each_kind_of_line_is_named_once(report: ProbeReport, forecast: Forecast) -> None:
    figure = plot_loss_curves(report, forecast)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == sorted(set(named))
    assert {"measured", "reference run", "forecast of the same runs", "diverged"} <= set(named)
    assert "Infinity" not in figure.to_json()


def test_each_batch_size_has_a_panel_on_the_same_axes(report: ProbeReport) -> None:
    figure = plot_loss_curves(report)
    sizes = sorted({run.batch_size for run in report.runs})
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"batch size {size}" for size in sizes]
    axes = [figure.layout.xaxis, figure.layout.xaxis2]
    assert axes[0].range == axes[1].range
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    for trace in figure.data:
        if trace.hovertemplate is not None:
            panel = 0 if trace.xaxis in (None, "x") else int(trace.xaxis[1:]) - 1
            assert titles[panel] in trace.hovertemplate


def test_runs_of_one_batch_size_differ_in_colour_by_their_rate(report: ProbeReport) -> None:
    figure = plot_loss_curves(report)
    rates = {run.learning_rate for run in report.runs}
    colours = {trace.line.color for trace in figure.data if trace.line.color is not None}
    assert len(colours) == len(rates) > 1
    bars = [trace.marker.colorbar for trace in figure.data if trace.marker.colorbar.title.text is not None]
    assert [bar.title.text for bar in bars] == ["learning rate"]


@pytest.mark.parametrize("curve", [LossCurve((), ()), LossCurve((0,), (2.3,)), LossCurve((500,), (2.0,))])
def test_little_data_still_renders(report: ProbeReport, curve: Any) -> None:
    assert plot_loss_curves(only(report, Branch(32, 0.1, curve)), cast("Forecast", Forecaster())).to_json()
    assert plot_loss_curves(only(report)).to_json()


def test_a_cooldown_is_a_curve_of_its_own_from_where_it_branches_off(report: ProbeReport, forecast: Forecast) -> None:
    training = TrainingLosses((8_100.0, 9_000.0, 9_900.0), (0.9, 0.7, 0.6), (0.1, 0.1, 0.1))
    schedule = LearningRateSchedule((0, 8_000, 10_000), (1.0, 1.0, 0.0))
    cooldown = Branch(32, 0.1, LossCurve((10_000,), (0.5,)), training=training, learning_rate_schedule=schedule)
    whole = only(report, cooldown)
    (curve,) = (curve for curve in loss_curves_data(whole, forecast).curves if curve.falls is not None)
    assert curve.falls == (8_000, 10_000)
    assert (curve.examples[0], curve.losses[-1]) == (8_100.0, 0.5)
    assert curve.predicted[-1][1] < curve.predicted[0][1]
    (trace,) = (trace for trace in plot_loss_curves(whole, forecast).data if trace.line.dash == "dot")
    assert trace.name == "cooldowns"
    assert "falling from 8,000 to 10,000 examples" in trace.hovertemplate
