"""What speaks against trusting a forecast, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchopt.errors import UnreachableGoalError
from batchopt.evidence import ProbeReport

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast

HARDLY_FELL = 0.97
"""A loss that stays above this share of the initial one is not progress."""


def doubts_of_report(report: ProbeReport) -> list[str]:
    """What the probe did not get to, or did not resolve."""
    doubts = []
    if report.stopped is not None:
        doubts.append(f"The probe stopped before its plan was done: {report.stopped}.")
    unresolved = sum(1 for reading in report.noise_scales if not reading.resolved)
    if unresolved:
        are = "is" if unresolved == 1 else "are"
        doubts.append(f"{unresolved} of {len(report.noise_scales)} noise scales {are} unresolved.")
    if len({branch.batch_size for branch in report.runs if branch.outcome != "diverged"}) < 2:
        doubts.append("Only one batch size was run, so what another one does is a guess.")
    if all(branch.is_constant for branch in report.runs):
        doubts.append("No run's learning rate decayed, so what a decay brings is carried over from other trainings.")
    return doubts


def doubts_of_fit(forecast: Forecast) -> list[str]:
    """What the fitted law does not know at the lowest loss that was seen."""
    if forecast.lowest_observed_loss > HARDLY_FELL * forecast.initial_loss:
        return [
            f"The losses hardly fell: the lowest was {forecast.lowest_observed_loss:.4g} "
            f"of {forecast.initial_loss:.4g} at initialisation, which tells nothing of the trade-off."
        ]
    loss = min(forecast.lowest_observed_loss, 0.9 * forecast.initial_loss)
    try:
        estimate = forecast.critical_batch_size(loss)
    except UnreachableGoalError:
        return ["No trade-off between steps and examples shows at the lowest observed loss."]
    if not estimate.resolved:
        return [f"The critical batch size at the lowest observed loss is unresolved: {estimate}."]
    return []
