"""Closed forms: the cheapest constant batch size, the optimal varying one, and what errors and variation cost.

Notation (McCandlish et al. 2018, arXiv 1812.06162, appendix D)
    s        progress, in steps of an infinitely large batch
    B_n(s)   local noise scale, or local critical batch size
    r        exchange rate: examples that are worth one step
    gamma    (int sqrt(B_n) ds)^2 / (S_min E_min): what varying the batch size optimally makes of the trade-off
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from batchopt._checks import check_increasing, check_positive
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def least_cost_batch_size(critical_batch_size: float, price: StepCost) -> float:
    """B = sqrt(B_crit a / b), where (a + b B)(1 + B_crit / B) is least; knees are left out.

    0 where only examples cost (the smaller the better), infinite where only steps do.

    Example:
        >>> least_cost_batch_size(400.0, StepCost(per_step=64.0, per_example=1.0))
        160.0
    """
    check_positive("critical_batch_size", critical_batch_size)
    if price.per_example == 0:
        return math.inf
    return math.sqrt(critical_batch_size * price.per_step / price.per_example)


def optimal_batch_sizes(noise_scales: Sequence[float], exchange_rate: float) -> Floats:
    """B(s) = sqrt(r B_n(s)), the optimal varying batch size (eq. D.4), (k,)."""
    check_positive("exchange_rate", exchange_rate)
    for noise_scale in noise_scales:
        check_positive("every noise scale", noise_scale)
    return np.sqrt(exchange_rate * np.asarray(noise_scales, float))


def schedule_gamma(progress: Sequence[float], noise_scales: Sequence[float]) -> float:
    """gamma of a run, at most 1: the front with a varying batch is (S/S_min - 1)(E/E_min - 1) = gamma.

    Args:
        progress: s, rising, (k,).
        noise_scales: B_n there, (k,).

    Example:
        >>> round(schedule_gamma([0.0, 1.0, 2.0], [5.0, 5.0, 5.0]), 12)
        1.0
    """
    check_increasing("progress", progress)
    if len(progress) != len(noise_scales) or len(progress) < 2:
        raise ValueError(f"two points at least, as many noise scales: got {len(progress)} and {len(noise_scales)}")
    s, b = np.asarray(progress, float), np.asarray(noise_scales, float)
    steps_min, examples_min = s[-1] - s[0], np.trapezoid(b, s)
    return float(np.trapezoid(np.sqrt(b), s) ** 2 / (steps_min * examples_min))


def regret_of_error(factor: float, *, balanced: bool = False) -> float:
    """Extra cost, as a share, of planning with a critical batch size that is wrong by a factor.

    At the optimum of a + b B with equal parts: (sqrt f + 1/sqrt f - 2) / 4, because the batch size errs by sqrt f
    only; of a batch size that is itself set to the critical one (balanced steps and examples): (f + 1/f - 2) / 4.

    Example:
        >>> regret_of_error(4.0), regret_of_error(4.0, balanced=True)
        (0.125, 0.5625)
    """
    check_positive("factor", factor)
    f = factor if balanced else math.sqrt(factor)
    return (f + 1.0 / f - 2.0) / 4.0
