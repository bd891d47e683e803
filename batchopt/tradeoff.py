"""The steps-versus-examples trade-off of reaching a loss at different batch sizes.

Notation (McCandlish et al. 2018, arXiv 1812.06162)
    S_min    fewest steps, at an infinite batch                 -> steps_min
    E_min    fewest examples, at a batch of one                 -> examples_min
    B_crit   E_min / S_min (their eq. 2.12)                     -> critical_batch_size
    (S / S_min - 1) (E / E_min - 1) = 1 (their eq. 2.11), so S = S_min (1 + B_crit / B), E = E_min (1 + B / B_crit)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import optimize

from batchopt._checks import check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.uncertainty import WIDEST_RESOLVED, Estimate, log_normal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

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


@dataclass(frozen=True, slots=True)
class TradeoffFit(Record):
    """A fitted trade-off.

    Attributes:
        law: the best fit.
        critical_batch_size: with its interval; unresolved where the batch sizes lie on one side of it.
        steps_min: likewise.
        examples_min: likewise.
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

    The steps must be the fewest of each batch size, its learning rate tuned; otherwise the fit mixes trade-off and tuning.

    Args:
        batch_sizes: examples per step, (k,), at least three different ones.
        steps: steps to the loss, (k,).

    Raises:
        EvidenceError: fewer than three different batch sizes.
        ValueError: lengths differ, or a value is not positive.
    """
    sizes, counts = np.asarray(batch_sizes, float), np.asarray(steps, float)
    if sizes.shape != counts.shape:
        raise ValueError(f"as many steps as batch sizes are needed, got {counts.size} and {sizes.size}")
    for name, values in (("every batch size", sizes), ("every number of steps", counts)):
        for value in values:
            check_positive(name, float(value))
    if len(np.unique(sizes)) < 3:
        raise EvidenceError(f"a trade-off needs at least 3 different batch sizes, got {len(np.unique(sizes))}")
    best = _solve(sizes, counts)
    residuals = _residuals(best.x, sizes, counts)
    log_steps_min, log_crit = (float(value) for value in best.x)
    law = TradeoffLaw(math.exp(log_steps_min), math.exp(log_steps_min + log_crit))
    return TradeoffFit(law, *_intervals(best, residuals), rms=float(np.sqrt(np.mean(residuals**2))))


def _residuals(parameters: Floats, sizes: Floats, counts: Floats) -> Floats:
    log_steps_min, log_crit = parameters
    return np.asarray(log_steps_min + np.logaddexp(0.0, log_crit - np.log(sizes)) - np.log(counts))


def _solve(sizes: Floats, counts: Floats) -> optimize.OptimizeResult:
    low, high = math.log(sizes.min()) - 12.0, math.log(sizes.max()) + 12.0
    starts = np.linspace(math.log(sizes.min()), math.log(sizes.max()), 5)
    fits = []
    for log_crit in starts:
        log_steps_min = float(np.mean(np.log(counts) - np.logaddexp(0.0, log_crit - np.log(sizes))))
        bounds = ([-np.inf, low], [np.inf, high])
        fits.append(
            optimize.least_squares(
                _residuals, [log_steps_min, log_crit], bounds=bounds, args=(sizes, counts), xtol=1e-12, ftol=1e-12
            )
        )
    return min(fits, key=lambda fit: float(fit.cost))


def _intervals(fit: optimize.OptimizeResult, residuals: Floats) -> tuple[Estimate, Estimate, Estimate]:
    """Estimates of B_crit, S_min and E_min, from the Jacobian's covariance."""
    dof = max(1, len(residuals) - 2)
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * float(residuals @ residuals) / dof
    log_steps_min, log_crit = (float(value) for value in fit.x)
    # A free direction of the fit has no curvature, which the pseudo-inverse reports as no variance.
    singular = np.linalg.svd(fit.jac, compute_uv=False)
    free = bool(singular[-1] < 1e-4 * singular[0])
    variances = (covariance[1, 1], covariance[0, 0], covariance.sum())
    values = (log_crit, log_steps_min, log_steps_min + log_crit)
    pairs = zip(values, variances, strict=True)
    crit, steps_min, examples_min = (_identified(value, variance, dof, free=free) for value, variance in pairs)
    return crit, steps_min, examples_min


def _identified(log_value: float, variance: float, dof: int, *, free: bool) -> Estimate:
    log_se = math.sqrt(max(0.0, variance))
    estimate = None if free or log_se > math.log(WIDEST_RESOLVED) else log_normal(math.exp(log_value), log_se, dof=dof)
    if estimate is None or estimate.high > WIDEST_RESOLVED * estimate.low:
        return Estimate(math.exp(log_value), 0.0, math.inf, False)
    return estimate
