"""A forecast in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchopt._wording import number
from batchopt.errors import UnreachableGoalError

if TYPE_CHECKING:
    from batchopt.forecasting.forecast import Forecast


def in_words(forecast: Forecast) -> str:
    """What it is of, the critical batch size to the lowest loss that was seen, and its doubts."""
    lowest, initial = forecast.lowest_observed_loss, forecast.initial_loss
    low, high = forecast.law.batch_sizes
    lines = [
        f"Forecast from losses of {number(initial)} down to {number(lowest)}, batch sizes {low:,} to {high:,}, "
        f"learning rates up to {forecast.law.highest_rate:.3g}"
    ]
    if lowest < initial:
        try:
            lines.append(f"Critical batch size to {number(lowest)}: {forecast.critical_batch_size(lowest)}")
        except UnreachableGoalError as error:
            lines.append(f"No critical batch size: {error}")
    return "\n".join([*lines, *(f"Doubt: {doubt}" for doubt in forecast.doubts)])
