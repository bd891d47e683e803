"""Choosing the best constant plan from predicted steps.

The predictions come as draws: row 0 is the best guess, the others are draws of what is believed. The choice is by the
mean log cost over all draws, so that a setting which is a little better on the best guess and disastrous on some draws
loses to one that is good on all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt._checks import check_count
from batchopt.errors import UnreachableGoalError
from batchopt.planning.plan import Alternative
from batchopt.step_cost import StepCost
from batchopt.uncertainty import from_positive_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

UNREACHED = 100.0
"""A draw that never gets there counts as this many times the dearest one that does."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted at k settings of one batch size each.

    Attributes:
        batch_size: examples per step.
        learning_rates: candidates, (k,).
        steps: (1 + n_draws, k), inf where a draw does not get there.
        losses: loss at the end, (1 + n_draws, k).
    """

    batch_size: int
    learning_rates: Floats
    steps: Floats
    losses: Floats


def candidate_batch_sizes(low: int, high: int, *, multiple_of: int = 1) -> list[int]:
    """Powers of two and one and a half times them within [low, high], as multiples of `multiple_of`; never empty.

    Raises:
        UnreachableGoalError: no multiple lies within the bounds.

    Example:
        >>> candidate_batch_sizes(8, 40)
        [8, 12, 16, 24, 32]
        >>> candidate_batch_sizes(10, 40, multiple_of=8)
        [16, 24, 32]
    """
    check_count("smallest batch size", low)
    check_count("largest batch size", high, least=low)
    check_count("multiple_of", multiple_of)
    powers = [2**k for k in range(high.bit_length())]
    sizes = sorted({*powers, *(3 * power // 2 for power in powers[1:])})
    fitting = [size for size in sizes if low <= size <= high and size % multiple_of == 0]
    first_multiple = math.ceil(low / multiple_of) * multiple_of
    if not fitting and first_multiple <= high:
        fitting = [first_multiple]
    if not fitting:
        raise UnreachableGoalError(
            f"no multiple of {multiple_of} lies within batch sizes {low} to {high}: widen the bounds"
        )
    return fitting


def mean_log(values: Floats) -> Floats:
    """Mean over draws (axis 0) of log values, a draw that is infinite counted as `UNREACHED` times the dearest."""
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.all(np.isnan(finite)):
        return np.full(values.shape[1:], np.inf)
    dearest = float(np.nanmax(finite)) * UNREACHED
    return np.asarray(np.mean(np.log(np.where(np.isfinite(values), values, dearest)), axis=0))


def alternative(
    prediction: Prediction, column: int, *, price: StepCost, measured: StepCost | None
) -> Alternative | None:
    """The point of the trade-off at one candidate learning rate; None where the best guess does not get there."""
    steps = prediction.steps[:, column]
    if not (math.isfinite(steps[0]) and math.isfinite(prediction.losses[0, column])):
        return None
    size = prediction.batch_size
    estimate = from_positive_draws(steps)
    return Alternative(
        batch_size=size,
        learning_rate=float(prediction.learning_rates[column]),
        loss=from_positive_draws(prediction.losses[:, column]),
        steps=estimate,
        examples=estimate.scaled(float(size)),
        seconds=None if measured is None else estimate.scaled(measured(size)),
        cost=estimate.scaled(price(size)),
    )


def choose_reaching(
    predictions: Sequence[Prediction], *, price: StepCost, measured: StepCost | None
) -> tuple[Alternative, tuple[Alternative, ...]]:
    """The cheapest setting that reaches the goal's loss, and the best of every batch size.

    Raises:
        UnreachableGoalError: no setting reaches it.
    """
    found = []
    for prediction in predictions:
        scores = mean_log(prediction.steps) + math.log(price(prediction.batch_size))
        # The best guess must get there, whatever the draws say.
        scores = np.where(np.isfinite(prediction.steps[0]), scores, np.inf)
        column = int(np.argmin(scores))
        point = alternative(prediction, column, price=price, measured=measured)
        if point is not None:
            found.append((float(scores[column]), point))
    return _best(found, "no batch size and learning rate within the bounds reaches the loss")


def choose_lowest(
    predictions: Sequence[Prediction], *, price: StepCost, measured: StepCost | None
) -> tuple[Alternative, tuple[Alternative, ...]]:
    """The setting with the lowest loss at the end of the budget, and the best of every batch size.

    Raises:
        UnreachableGoalError: no setting takes a whole step or stays stable within the budget.
    """
    found = []
    for prediction in predictions:
        scores = mean_log(prediction.losses)
        column = int(np.argmin(scores))
        point = alternative(prediction, column, price=price, measured=measured)
        if point is not None:
            found.append((float(scores[column]), point))
    return _best(found, "no batch size and learning rate within the bounds stays stable within the budget")


def _best(found: list[tuple[float, Alternative]], otherwise: str) -> tuple[Alternative, tuple[Alternative, ...]]:
    if not found:
        raise UnreachableGoalError(f"{otherwise}: ask for a loss nearer to what was observed, or widen the bounds")
    best = min(found, key=lambda pair: pair[0])[1]
    return best, tuple(point for _, point in found)
