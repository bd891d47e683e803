"""What speaks against trusting a forecast, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchopt.errors import UnreachableGoalError
from batchopt.evidence import Branch, ProbeReport

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast

HARDLY_FELL = 0.97
"""A loss that stays above this share of the initial one is not progress."""

UNSTEADY = 1.5
"""Factor by which timings of steps may differ; set by hand. The cheapest batch size goes with the root of the price of
a step, so it is then known to a factor of 1.2, less than from one power of two to the next."""
NARROW = 2.0
"""Batch sizes within this factor hardly tell what the batch size does."""


def doubts_of_report(report: ProbeReport) -> list[str]:
    """What the probe did not get to, or did not resolve."""
    doubts = []
    if report.stopped is not None:
        doubts.append(f"The probe stopped before its plan was done: {report.stopped}.")
    if report.step_cost is not None and report.step_cost.scatter > UNSTEADY:
        doubts.append(
            f"The time of a step differed by a factor of {report.step_cost.scatter:.2g} between timings, as on a "
            "machine that other programs use: give plans a step cost of your own, or probe again on a quiet one."
        )
    unresolved = sum(1 for reading in report.noise_scales if not reading.resolved)
    if unresolved:
        are = "is" if unresolved == 1 else "are"
        doubts.append(f"{unresolved} of {len(report.noise_scales)} noise scales {are} unresolved and left out.")
    return doubts


def doubts_of_runs(runs: Sequence[Branch]) -> list[str]:
    """What no run shows, whether a probe made them or they were there before."""
    doubts = []
    sizes = {run.batch_size for run in runs if run.outcome != "diverged"}
    if len(sizes) < 2:
        doubts.append("Only one batch size was run, so what another one does is a guess.")
    elif max(sizes) <= NARROW * min(sizes):
        doubts.append(
            f"Batch sizes were run from {min(sizes)} to {max(sizes)} only, within a factor of {NARROW:g}, so what "
            "other batch sizes do is extrapolated far."
        )
    if all(run.is_constant for run in runs):
        doubts.append("No run's learning rate decayed, so what a decay brings is carried over from other trainings.")
    return doubts


def doubts_of_past_runs(runs: Sequence[Branch], *, adaptive: bool | None) -> list[str]:
    """What a probe would have seen to, and runs that were trained for something else may lack."""
    doubts = []
    if adaptive is None:
        doubts.append(
            "Whether the optimizer is adaptive, as Adam is, was not said, and it was taken not to be: say "
            "adaptive=True or adaptive=False (--adaptive or --no-adaptive)."
        )
    rates: dict[int, set[float]] = {}
    for run in runs:
        rates.setdefault(run.batch_size, set()).add(run.learning_rate)
    if all(len(own) < 2 for own in rates.values()):
        doubts.append(
            "Every batch size was run at one peak rate only, so which is best is carried over from other trainings."
        )
    seeds: dict[tuple[object, ...], set[int]] = {}
    for run in runs:
        seeds.setdefault((run.batch_size, run.learning_rate, run.learning_rate_schedule), set()).add(run.seed)
    if all(len(own) < 2 for own in seeds.values()):
        doubts.append(
            "Every setting was run with a single seed, so how much runs differ by their seed is taken from other "
            "trainings."
        )
    if all(run.outcome != "diverged" for run in runs):
        doubts.append(
            "No run diverged, so how high a rate is stable is not known, and plans stay near the highest that ran."
        )
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
