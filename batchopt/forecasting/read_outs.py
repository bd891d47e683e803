"""Trade-offs and best rates, read off the losses at the ends of runs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.horizons import Ends, ends_of, horizons_for, rates_for
from batchopt.forecasting.posterior import LossPosterior
from batchopt.learning_rate_schedule import Shape
from batchopt.tradeoff import hyperbolas_through
from batchopt.uncertainty import Estimate, from_positive_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST_SIZES = 3
"""Batch sizes that a trade-off is read from at least, beside those at which the shortest run considered is enough."""
BEYOND = 16.0
"""The trade-off is read over batch sizes up to this factor beyond those that were run."""


@lru_cache(maxsize=8)
def shared_ends(law: LossPosterior, shape: Shape, sizes: tuple[float, ...], warmup_examples: int | None) -> Ends:
    """Losses over the grid, which all questions about a shape share."""
    return ends_of(law, shape, sizes, rates_for(law, sizes), horizons_for(law), warmup_examples=warmup_examples)


def hyperbola_to(
    law: LossPosterior, loss: float, shape: Shape, *, warmup_examples: int | None
) -> tuple[Floats, Floats]:
    """S_min and E_min of the trade-off to a loss, each (1 + draws,); inf where there is none."""
    if loss >= law.initial_loss:
        never = np.full(1 + law.draws, np.inf)
        return never, never
    low, high = law.batch_sizes
    octaves = range(math.floor(math.log2(max(1.0, low / BEYOND))), math.ceil(math.log2(high * BEYOND)) + 1)
    sizes = tuple(2.0**k for k in octaves)
    ends = shared_ends(law, shape, sizes, warmup_examples)
    needed, at_once = ends.examples_to(loss), ends.is_reached_at_once(loss)
    best = np.argmin(needed, axis=2)[..., None]
    fewest = np.take_along_axis(needed, best, axis=2)[..., 0]
    unknown = np.take_along_axis(at_once, best, axis=2)[..., 0]
    # What the shortest runs that are considered take says nothing of the trade-off: where in most draws there is little
    # beside them, they would show one of their own, the same for every loss.
    telling = np.sum(np.isfinite(fewest) & ~unknown, axis=1) >= FEWEST_SIZES
    if np.mean(telling) < 0.5:
        fewest = np.full_like(fewest, np.inf)
    return hyperbolas_through(np.array(sizes), fewest / np.array(sizes))


def critical_ratio(examples: Floats, steps: Floats, loss: float, *, lowest_observed: float) -> Estimate:
    """E_min / S_min in every draw, (1 + draws,) each.

    Raises:
        UnreachableGoalError: the best guess never reaches the loss, or shows no trade-off, or nothing is known of it.
    """
    good = np.isfinite(examples) & np.isfinite(steps) & (steps > 0) & (examples > 0)
    if np.isfinite(examples[0]) and np.isfinite(steps[0]) and not good[0]:
        raise UnreachableGoalError(f"no trade-off between steps and examples shows at loss {loss:.4g}")
    if not good[0] and loss > lowest_observed:
        raise UnreachableGoalError(
            f"loss {loss:.4g} is reached too soon for a trade-off to show: in the shortest runs that are considered or "
            "at too few batch sizes"
        )
    if not good[0]:
        raise UnreachableGoalError(
            f"loss {loss:.4g} is beyond what the forecast reaches (lowest observed: {lowest_observed:.4g})"
        )
    ratios = np.where(good, examples / np.where(good, steps, 1.0), np.inf)
    found = from_positive_draws(ratios)
    if found.low < 1.0 and math.isinf(found.high):
        raise UnreachableGoalError(f"the critical batch size to loss {loss:.4g} may be anything, from below 1 on")
    return found


def best_rate(rates: Floats, needed: Floats) -> Floats:
    """The rate with the fewest examples, (n,), by a parabola through the best and its neighbours, (n, r)."""
    logs = np.log(needed)
    best = np.clip(np.argmin(logs, axis=1), 1, len(rates) - 2)[:, None]
    left, middle, right = (np.take_along_axis(logs, best + k, axis=1)[:, 0] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (left - right) / (left - 2.0 * middle + right)
    step = math.log(rates[1] / rates[0])
    shift = np.clip(np.nan_to_num(shift), -1.0, 1.0)
    found = np.exp(np.log(rates)[best[:, 0]] + step * shift)
    # A draw that never reaches the loss has no best rate.
    return np.where(np.isfinite(needed.min(axis=1)), found, np.inf)


def check_reached(examples: float, batch_size: int, loss: float, rate: float | None = None) -> None:
    """Raise UnreachableGoalError where the examples to a loss are not finite."""
    if not math.isfinite(examples):
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        raise UnreachableGoalError(f"batch size {batch_size}{at} is not predicted to reach loss {loss:.4g}")
