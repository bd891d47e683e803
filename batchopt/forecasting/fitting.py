"""A forecast put together from what was gathered of a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchopt.evidence import ProbeReport
from batchopt.forecasting.doubts import doubts_of_fit
from batchopt.forecasting.gathered import Gathered, constant_law, with_edge_of_stability
from batchopt.forecasting.metric_curve import doubts_of_metrics, fit_metric_curves
from batchopt.forecasting.overfitting import doubt_of_overfitting, lowest_followed, turned_up
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.probe_readings import batch_size_limit, noise_trend

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast


def fitted(kind: type[Forecast], known: Gathered, report: ProbeReport | None, *, seed: int) -> Forecast:
    """The forecast of `Forecast.fit`, which documents the arguments.

    Args:
        kind: of forecast.
        known: evidence from the probe, and from runs that were there before.
        report: of the probe; None where there was none.
        seed: of the posterior's draws.
    """
    law = LossPosterior.fit(
        known.runs,
        initial_loss=known.initial_loss,
        adaptive=known.adaptive,
        delay=known.delay,
        noise_scales=() if report is None else report.noise_scales,
        seed=seed,
    )
    forecast = kind(
        law=with_edge_of_stability(law, known),
        constant_law=constant_law(known, seed=seed),
        noise_trend=None if report is None else noise_trend(report),
        step_cost=None if report is None else report.step_cost,
        batch_size_limit=batch_size_limit(known.runs, report),
        warmup_examples=None if report is None else report.provenance.warmup_examples or None,
        task_schedule=None if report is None else report.provenance.learning_rate_schedule,
        doubts=(),
        metrics=() if report is None else fit_metric_curves(report.runs, report.provenance.evaluated),
        parameters=None if report is None else report.provenance.parameters,
        population=None if report is None else report.provenance.population,
        overfits_below=None if report is None else lowest_followed(report, law.lowest_loss),
        turned_up=None if report is None else turned_up(report),
        prior=None if report is None else report.provenance.prior,
    )
    seldom = [] if report is None else doubts_of_metrics(report.runs)
    doubts = (*known.doubts, *doubt_of_overfitting(forecast), *seldom, *doubts_of_fit(forecast))
    return replace(forecast, doubts=doubts)
