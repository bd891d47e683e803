"""The steps-versus-examples trade-off of reaching a loss at different batch sizes.

Notation (McCandlish et al. 2018, arXiv 1812.06162)
    S_min    fewest steps, at an infinite batch                 -> steps_min
    E_min    fewest examples, at a batch of one                 -> examples_min
    B_crit   E_min / S_min (their eq. 2.12)                     -> critical_batch_size
    (S / S_min - 1) (E / E_min - 1) = 1 (their eq. 2.11), so S = S_min (1 + B_crit / B), E = E_min (1 + B / B_crit)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchopt._checks import check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.uncertainty import WIDEST_RESOLVED, Estimate, t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
BEYOND = 1e3
"""How far beyond the batch sizes B_crit is looked for: the hyperbola is then its own limit to 0.1 %."""


@dataclass(frozen=True, slots=True)
class TradeoffLaw(Record):
    """The trade-off hyperbola.

    Example:
        >>> law = TradeoffLaw(steps_min=1_000.0, examples_min=200_000.0)
        >>> law.critical_batch_size, law.steps(200.0), law.examples(200.0)
        (200.0, 2000.0, 400000.0)
    """

    SCHEMA: ClassVar[str] = "batchopt.tradeoff/1"

    steps_min: float
    examples_min: float

    def __post_init__(self) -> None:
        check_positive("steps_min", self.steps_min)
        check_positive("examples_min", self.examples_min)

    @property
    def critical_batch_size(self) -> float:
        """B_crit: there a run takes twice the fewest steps and twice the fewest examples."""
        return self.examples_min / self.steps_min

    def steps(self, batch_size: float) -> float:
        """Steps at a batch size."""
        check_positive("batch_size", batch_size)
        return self.steps_min + self.examples_min / batch_size

    def examples(self, batch_size: float) -> float:
        """Examples at a batch size."""
        check_positive("batch_size", batch_size)
        return self.examples_min + self.steps_min * batch_size

    def batch_size_at_steps(self, steps: float) -> float:
        """The batch size that takes `steps` steps.

        Raises:
            ValueError: no batch size takes so few.
        """
        check_positive("steps", steps)
        if steps <= self.steps_min:
            raise ValueError(f"steps must exceed the fewest possible ({self.steps_min:.6g}), got {steps!r}")
        return self.examples_min / (steps - self.steps_min)


@dataclass(frozen=True, slots=True)
class TradeoffFit(Record):
    """A fitted trade-off.

    Attributes:
        law: the best fit.
        critical_batch_size: with its interval; unresolved where the batch sizes lie on one side of it, and then one end
            is 0 or infinite.
        steps_min: likewise; unresolved, with a lower end of 0, where no batch was large enough to show it.
        examples_min: likewise, where no batch was small enough.
        rms: root-mean-square residual of log steps.
    """

    SCHEMA: ClassVar[str] = "batchopt.tradeoff_fit/1"

    law: TradeoffLaw
    critical_batch_size: Estimate
    steps_min: Estimate
    examples_min: Estimate
    rms: float


def fit_tradeoff(batch_sizes: Sequence[float], steps: Sequence[float]) -> TradeoffFit:
    """Fit the hyperbola to the steps that each batch size took to one loss, by least squares of log steps.

    The steps must be the fewest of each batch size, its learning rate tuned; otherwise the fit mixes trade-off and
    tuning. Intervals are profiles of the squared error with Student's t and take the residuals as independent: where
    the law itself is off they are too narrow.

    Args:
        batch_sizes: examples per step, (k,), at least three different ones.
        steps: steps to the loss, (k,).

    Raises:
        EvidenceError: fewer than three different batch sizes.
        ValueError: lengths differ, or a value is not positive.
    """
    from scipy import optimize  # at the top it would be a third of every command's start

    sizes, counts = np.asarray(batch_sizes, float), np.asarray(steps, float)
    if sizes.shape != counts.shape:
        raise ValueError(f"as many steps as batch sizes are needed, got {counts.size} and {sizes.size}")
    for name, values in (("every batch size", sizes), ("every number of steps", counts)):
        for value in values:
            check_positive(name, float(value))
    if len(np.unique(sizes)) < 3:
        raise EvidenceError(f"a trade-off needs at least 3 different batch sizes, got {len(np.unique(sizes))}")
    logs = np.log(sizes), np.log(counts)
    low, high = math.log(sizes.min() / BEYOND), math.log(sizes.max() * BEYOND)
    grid = np.linspace(low, high, 200)
    start = int(np.argmin(_profile(grid, *logs)[1]))
    bracket = grid[max(0, start - 1)], grid[min(len(grid) - 1, start + 1)]
    found = optimize.minimize_scalar(
        lambda log_crit: float(_profile(np.array([log_crit]), *logs)[1][0]),
        bounds=bracket,
        method="bounded",
        options={"xatol": 1e-10},
    )
    log_crit = float(found.x)
    (log_steps_min,), (error,) = _profile(np.array([log_crit]), *logs)
    law = TradeoffLaw(math.exp(log_steps_min), math.exp(log_steps_min + log_crit))
    intervals = _intervals(log_crit, (low, high), *logs)
    return TradeoffFit(law, *intervals, rms=math.sqrt(float(error) / len(sizes)))


def hyperbolas_through(batch_sizes: Floats, steps: Floats) -> tuple[Floats, Floats]:
    """S_min and E_min of many trade-offs at once, by least squares of relative errors, each (n,).

    Args:
        batch_sizes: (k,).
        steps: fewest steps of each batch size, (n, k); infinite where the loss is not reached.

    Returns:
        Fewest steps and fewest examples; infinite where fewer than three batch sizes reach the loss, or where they show
        no trade-off.
    """
    # (S_min + E_min / B) / S = 1 has the two unknowns in closed form for every row.
    reached = np.isfinite(steps)
    u = np.where(reached, 1.0 / np.where(reached, steps, 1.0), 0.0)
    w = u / batch_sizes
    uu, uw, ww = (u * u).sum(1), (u * w).sum(1), (w * w).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = uu * ww - uw**2
        steps_min = (ww * u.sum(1) - uw * w.sum(1)) / determinant
        examples_min = (uu * w.sum(1) - uw * u.sum(1)) / determinant
        good = (reached.sum(axis=1) >= 3) & (steps_min > 0) & (examples_min > 0)
    return np.where(good, steps_min, np.inf), np.where(good, examples_min, np.inf)


def _profile(log_crits: Floats, log_sizes: Floats, log_counts: Floats) -> tuple[Floats, Floats]:
    """For each log B_crit, (m,): the best log S_min, which is a mean residual, and the sum of squares left, (m,)."""
    residuals = log_counts - np.logaddexp(0.0, log_crits[:, None] - log_sizes)
    means = residuals.mean(axis=1)
    return means, np.sum((residuals - means[:, None]) ** 2, axis=1)


def _intervals(
    log_crit: float, bounds: tuple[float, float], log_sizes: Floats, log_counts: Floats
) -> tuple[Estimate, Estimate, Estimate]:
    """Estimates of B_crit, S_min and E_min: the parameters that the squared error does not refuse.

    A law is not refused where its squared error exceeds the least by no more than t^2 times the residual variance.
    """
    (log_steps_min,), (least,) = _profile(np.array([log_crit]), log_sizes, log_counts)
    points = len(log_sizes)
    most = float(least) * (1.0 + t_quantile(points - 2) ** 2 / (points - 2))

    def excess(at: float) -> float:
        return float(_profile(np.array([at]), log_sizes, log_counts)[1][0] - most)

    low, high = (_crossing(excess, log_crit, bound) for bound in bounds)
    accepted = np.linspace(bounds[0] if low is None else low, bounds[1] if high is None else high, 400)
    means, errors = _profile(accepted, log_sizes, log_counts)
    reach = np.sqrt(np.maximum(0.0, most - errors) / points)
    lows, highs = means - reach, means + reach
    return (
        _estimate(log_crit, -math.inf if low is None else low, math.inf if high is None else high),
        _estimate(float(log_steps_min), -math.inf if high is None else lows.min(), highs.max()),
        _estimate(
            float(log_steps_min) + log_crit,
            -math.inf if low is None else (lows + accepted).min(),
            (highs + accepted).max(),
        ),
    )


def _crossing(excess: Callable[[float], float], inside: float, bound: float) -> float | None:
    """Where the error becomes too large between the best fit and a bound; None if it does not."""
    from scipy import optimize  # at the top it would be a third of every command's start

    if excess(inside) >= 0:
        return inside
    return float(optimize.brentq(excess, inside, bound)) if excess(bound) > 0 else None


def _estimate(log_value: float, log_low: float, log_high: float) -> Estimate:
    value = math.exp(log_value)
    # Rounding must not put an end of an interval without width beyond the value.
    low, high = min(value, math.exp(log_low)), max(value, math.exp(log_high))
    return Estimate(value, low, high, high <= WIDEST_RESOLVED * low)
