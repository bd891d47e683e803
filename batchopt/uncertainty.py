"""Estimates with 90 % intervals, and how intervals are made.

Notation
    theta    the estimated quantity; log theta is close to normal for the positive quantities here
    se       standard error
    J        number of jackknife groups; an interval then uses Student's t with J - 1 degrees of freedom
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import special

from batchopt._checks import check_finite
from batchopt._codec import Record
from batchopt._wording import number
from batchopt.errors import UnresolvedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.90
"""Every interval in batchopt is a two-sided interval at this level."""

WIDEST_RESOLVED = 30.0
"""A positive quantity that is known to no better than this factor between its interval's ends decides nothing."""


@dataclass(frozen=True, slots=True)
class Estimate(Record):
    """A number with its 90 % interval.

    Attributes:
        value: the best guess, finite.
        low: lower end of the interval; may be -inf.
        high: upper end of the interval; may be inf.
        resolved: whether the evidence supports `value`; `float(estimate)` raises where it does not.

    Example:
        >>> reading = Estimate(value=120.0, low=90.0, high=160.0, resolved=True)
        >>> float(reading)
        120.0
        >>> str(reading)
        '120 (90 to 160)'
    """

    SCHEMA: ClassVar[str] = "batchopt.estimate/1"

    value: float
    low: float
    high: float
    resolved: bool

    def __post_init__(self) -> None:
        check_finite("value", self.value)
        if math.isnan(self.low) or math.isnan(self.high) or not self.low <= self.value <= self.high:
            raise ValueError(f"low <= value <= high must hold, got {self.low!r}, {self.value!r}, {self.high!r}")
        if self.resolved and not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"a resolved estimate needs a finite interval, got {self.low!r} to {self.high!r}")

    def __float__(self) -> float:
        """The bare number.

        Raises:
            UnresolvedError: the evidence does not support one.
        """
        if not self.resolved:
            raise UnresolvedError(
                f"unresolved: {self}. Measure more examples, or read .value with .low and .high instead.", self
            )
        return self.value

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"more than {number(self.low)}"
        doubt = "" if self.resolved else ", unresolved"
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)}{doubt})"

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity, for a positive factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.resolved)

    def widened(self, factor: float) -> Estimate:
        """The estimate of a positive quantity that something independent changes by up to `factor` either way, at 90 %.

        Example:
            >>> print(Estimate(100.0, 80.0, 125.0, True).widened(1.25))
            100 (72.9 to 137)
        """
        if factor == 1.0 or self.low <= 0:
            return self
        ends = (math.hypot(math.log(end / self.value), math.log(factor)) for end in (self.low, self.high))
        low, high = (math.exp(end) if end < math.log(sys.float_info.max) else math.inf for end in ends)
        return Estimate(self.value, self.value / low, self.value * high, self.resolved and math.isfinite(high))


def from_draws(value: float, draws: NDArray[np.float64], *, resolved: bool = True) -> Estimate:
    """The estimate whose interval holds the central 90 % of posterior draws, and `value`.

    Args:
        value: the best guess, finite.
        draws: draws of the quantity, (n_draws,); infinite draws widen the interval to infinity.
        resolved: False where something besides the width says that the number is not to be believed.
    """
    tail = (1.0 - LEVEL) / 2.0
    low = min(value, float(np.quantile(draws, tail, method="lower")))
    high = max(value, float(np.quantile(draws, 1.0 - tail, method="higher")))
    return Estimate(value, low, high, resolved and math.isfinite(low) and math.isfinite(high))


def from_positive_draws(draws: NDArray[np.float64]) -> Estimate:
    """As `from_draws` for a positive quantity: the first draw is the best guess, and a wide interval is unresolved.

    Args:
        draws: best guess, then posterior draws, (1 + n_draws,); the best guess finite.
    """
    estimate = from_draws(float(draws[0]), draws[1:] if len(draws) > 1 else draws)
    return estimate if estimate.high <= WIDEST_RESOLVED * estimate.low else unresolved(estimate)


def unresolved(estimate: Estimate) -> Estimate:
    """The same numbers, not to be believed."""
    return Estimate(estimate.value, estimate.low, estimate.high, False)


def log_normal(value: float, log_se: float, *, dof: float = math.inf) -> Estimate:
    """The estimate of a positive quantity whose logarithm has standard error `log_se`.

    Args:
        value: the best guess, positive.
        log_se: standard error of log(value); unresolved where it is so large that the upper end is infinite.
        dof: degrees of freedom of `log_se`; infinite means known.
    """
    factor = math.exp(min(t_quantile(dof) * log_se, 700.0))
    high = value * factor
    return Estimate(value, value / factor, high, math.isfinite(high))


def ratio_interval(
    numerator: float,
    denominator: float,
    deleted_numerators: NDArray[np.float64],
    deleted_denominators: NDArray[np.float64],
    *,
    variance_factor: float = 1.0,
) -> Estimate:
    """The ratio of a positive quantity to one that may be zero, from a delete-one-group jackknife.

    Args:
        numerator: estimate from all groups.
        denominator: likewise.
        deleted_numerators: the estimate without group j, (J,).
        deleted_denominators: likewise, (J,).
        variance_factor: share of the population that was not drawn (1 for an infinite one), which the jackknife does
            not know.

    Returns:
        On the log scale where the denominator is clearly positive. Else unresolved, with Fieller's lower bound and an
        infinite upper end. Of zero width where the whole population was drawn.
    """
    if variance_factor == 0 and numerator > 0 and denominator > 0:
        ratio = numerator / denominator
        return Estimate(ratio, ratio, ratio, True)
    dof = len(deleted_numerators) - 1
    covariance = _jackknife_covariance(deleted_numerators, deleted_denominators) * variance_factor
    t = t_quantile(dof)
    positive = denominator > 0 and numerator > 0 and min(deleted_denominators.min(), deleted_numerators.min()) > 0
    if not positive or denominator - t * math.sqrt(covariance[1, 1]) <= 0:
        return _fieller_bound(numerator, denominator, covariance, t)
    logs = np.log(deleted_numerators / deleted_denominators)
    whole = math.log(numerator / denominator)
    corrected = whole - dof * (float(logs.mean()) - whole) * variance_factor
    log_se = math.sqrt(float(_jackknife_covariance(logs, logs)[0, 0]) * variance_factor)
    return log_normal(math.exp(corrected), log_se, dof=dof)


def _jackknife_covariance(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    groups = len(first)
    return np.asarray(np.cov(first, second, bias=True) * (groups - 1))


def _fieller_bound(numerator: float, denominator: float, covariance: NDArray[np.float64], t: float) -> Estimate:
    """Lower bound of numerator / denominator where the denominator may be zero (Fieller 1954).

    The ratios r that are not refused satisfy (numerator - r denominator)^2 <= t^2 Var(numerator - r denominator). With
    a denominator that may be zero they are everything above a bound: the smallest non-negative r that is not refused.
    """
    a = denominator**2 - t**2 * covariance[1, 1]
    b = numerator * denominator - t**2 * covariance[0, 1]
    c = numerator**2 - t**2 * covariance[0, 0]
    # a r^2 - 2 b r + c <= 0 with a <= 0; at r = 0 the left side is c.
    low = 0.0
    if c > 0:
        root = math.sqrt(max(0.0, b * b - a * c))
        low = c / (b + root) if b + root > 0 else math.inf
    if not math.isfinite(low):
        low = 0.0
    value = max(low, numerator / denominator) if denominator > 0 else low
    return Estimate(value, low, math.inf, False)


def t_quantile(dof: float) -> float:
    """Standard errors from the value to an end of an interval; `dof` may be infinite."""
    upper = 1.0 - (1.0 - LEVEL) / 2.0
    return float(special.ndtri(upper)) if math.isinf(dof) else float(special.stdtrit(dof, upper))
