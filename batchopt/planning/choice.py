"""Choosing a setting from predictions.

The predictions come as draws: row 0 is the best guess, the others are draws of what is believed. The choice is by the
mean log over all draws, so that a setting which is a little better on the best guess and disastrous on some draws loses
to one that is good on all. Of settings that come out equal, the one with the fewest steps is taken.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from batchopt._checks import check_count
from batchopt.errors import UnreachableGoalError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

EQUAL = 0.01
"""Settings within this share of the best one's cost, or loss, are equal: no forecast tells them apart."""
GIVEN_UP = 8.0
"""A draw counts with at most this multiple of what the best setting takes in half of the draws, also where it never
gets there: a run so far behind is given up. With ten times the longest horizon that is considered in its place, the few
draws in which hardly any setting arrives decide: then 9 of 69 plans for swept problems never arrive, with it 7."""
RUINED = 100.0
"""And with this multiple where the run diverges: a budget may be gone before somebody looks. With 8, plans of the demo
took rates that kill the network in one of six draws."""
DIVERGED = 3.0
"""A draw in which the run diverges counts as this many times the initial loss."""


def candidate_batch_sizes(low: int, high: int, *, multiple_of: int = 1) -> list[int]:
    """`multiple_of` times powers of two within [low, high]; never empty.

    Raises:
        UnreachableGoalError: no multiple lies within the bounds.

    Example:
        >>> candidate_batch_sizes(8, 40)
        [8, 16, 32]
        >>> candidate_batch_sizes(10, 100, multiple_of=24)
        [24, 48, 96]
    """
    check_count("smallest batch size", low)
    check_count("largest batch size", high, least=low)
    check_count("multiple_of", multiple_of)
    sizes = [multiple_of * 2**k for k in range(high.bit_length())]
    fitting = [size for size in sizes if low <= size <= high]
    first_multiple = math.ceil(low / multiple_of) * multiple_of
    if not fitting and first_multiple <= high:
        fitting = [first_multiple]
    if not fitting:
        raise UnreachableGoalError(
            f"no multiple of {multiple_of} lies within batch sizes {low} to {high}: widen the bounds"
        )
    return fitting


def mean_log(values: Floats, *, most: float | Floats) -> Floats:
    """Mean over draws (axis 0) of log values, of which larger and infinite ones count as `most`."""
    return np.asarray(np.mean(np.log(np.minimum(values, most)), axis=0))


def choose(scores: Floats, log_steps: Floats) -> tuple[int, ...] | None:
    """Where the score is least, or equal to that with fewer steps; None where every score is infinite.

    Args:
        scores: mean logs of cost or loss, of any shape; infinite where a setting is out of the question.
        log_steps: of each setting, of the same shape.
    """
    if not np.isfinite(scores).any():
        return None
    equal = scores <= scores.min() + EQUAL
    at = int(np.argmin(np.where(equal, log_steps, np.inf)))
    return tuple(int(i) for i in np.unravel_index(at, scores.shape))
