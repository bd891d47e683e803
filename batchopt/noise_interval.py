"""The 90 % interval of a gradient noise scale, from group sums of gradients measured at frozen weights.

The noise scale is a ratio whose denominator may be zero, so what is tested is noise - B signal = 0: the interval holds
every B that is not refused (Fieller 1954), each under the variance that the signal has if that B is true (a score
interval, as Wilson's of a proportion). The variance follows Hoeffding's decomposition of the signal, a U-statistic:
a jackknife counts its quadratic part twice, and with it the interval of a weak signal would be far too wide.

Notation (units: measured gradients, of single examples or of groups)
    G, Sigma   mean gradient and covariance of the units' gradients; S ~ |G|^2, N ~ tr(Sigma), B = N / S
    n, J       units, and groups that they are summed in
    e          (1 - n / population) / n: covariance of the mean of the units, in Sigma
    r          noise along the mean gradient, G' Sigma G / |G|^2
    t2         tr(Sigma^2); (tr Sigma)^2 / t2 is the number of dimensions that hold the noise

    Var(S) = 4 |G|^2 r e + 2 t2 e^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.uncertainty import Estimate, t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CORRECTED_SHARE = 2.0 / 3.0
"""Weight of the corrected estimate of the noise along G against the uncorrected one: see `_noise_along`."""
ROUNDING = 1e-30
"""A signal below this share of the noise is none."""
FEWEST_GROUPS = 4
"""Fewer groups don't show in how many dimensions the noise is; the worst is then taken, a single one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What the interval needs beside signal and noise.

    Attributes:
        groups: J.
        mean_variance: e.
        mean_square: |mean of the gradients|^2, which is the signal and the noise that is left in the mean.
        along_mean: variance of a unit's gradient along the mean gradient, times `mean_square`.
        quadratic: t2.
        noise_variance: variance of the squared residuals of units.
        covariance: of the squared residual of a unit and its projection on the mean gradient.
    """

    groups: int
    mean_variance: float
    mean_square: float
    along_mean: float
    quadratic: float
    noise_variance: float
    covariance: float


def noise_spread(
    *,
    units: Floats,
    residual_gram: Floats,
    projections: Floats,
    squared_residuals: Floats,
    mean_square: float,
    left: float,
    definite: bool = True,
) -> Spread:
    """The spread of units, from that of groups of them.

    Args:
        units: in each group, (J,).
        residual_gram: inner products of the groups' summed residuals, (J, J).
        projections: inner products of the groups' summed residuals with the mean, (J,).
        squared_residuals: sum of the squared residuals in each group, (J,).
        mean_square: |mean|^2.
        left: share of the population that was not drawn; 1 for an infinite one.
        definite: whether products are inner products, so that tr(Sigma^2) is at most tr(Sigma)^2.
    """
    n, groups = float(units.sum()), len(units)
    root = np.sqrt(units)
    noise = float(squared_residuals.sum()) / (n - 1.0)
    excess = (squared_residuals - noise * units) / root
    # Every gradient is part of the mean that it is projected on: left in, its own square would pass for covariance.
    along = projections / root - excess / n
    quadratic = _trace_of_square(residual_gram / np.outer(root, root)) if groups >= FEWEST_GROUPS else noise**2
    return Spread(
        groups=groups,
        mean_variance=left / n,
        mean_square=mean_square,
        along_mean=float(along @ along) / (groups - 1),
        quadratic=min(quadratic, noise**2) if definite else max(quadratic, 0.0),
        noise_variance=float(excess @ excess) / (groups - 1),
        covariance=float(excess @ along) / (groups - 1),
    )


def noise_scale_interval(signal: float, noise: float, spread: Spread) -> Estimate:
    """noise / signal with its interval, in units.

    Resolved where the signal is refused to be zero at 95 %, one-sided. Else the upper end is infinite and the lower one
    a 95 % bound. Of zero width where the whole population was drawn.

    Args:
        signal: estimate of |G|^2; a negative one bounds the noise scale no better than zero.
        noise: estimate of tr(Sigma).
        spread: of the units they were estimated from.
    """
    if noise <= 0:
        return Estimate(0.0, 0.0, math.inf, False)
    signal = signal if signal > ROUNDING * noise else 0.0
    # The variance of noise - B signal is square B^2 + linear B.
    square = 2.0 * spread.quadratic * spread.mean_variance**2
    linear = _linear_variance(signal, noise, spread)
    z = t_quantile(_degrees_of_freedom(signal, noise, square, linear, spread.groups))
    resolved = signal > _least_signal(noise, square, spread)
    # (noise - B signal)^2 = z^2 (square B^2 + linear B), which is a B^2 - 2 b B + c = 0
    a, b, c = signal**2 - z**2 * square, noise * signal + z**2 * linear / 2.0, noise**2
    root = math.sqrt(max(0.0, b**2 - a * c))
    low = c / (b + root) if b + root > 0 else 0.0
    value = max(low, noise / signal) if signal > 0 else low
    high = max(value, (b + root) / a) if resolved else math.inf
    return Estimate(value, low, high, resolved)


def _linear_variance(signal: float, noise: float, spread: Spread) -> float:
    """What the variance of noise - B signal has in proportion to B, where |G|^2 = noise / B.

    The noise's own variance is taken at the geometric mean of `noise` and B `signal`, which makes its part of the
    interval symmetric on the log scale.
    """
    along = 4.0 * noise * _noise_along(signal, noise, spread)
    own = spread.noise_variance * signal / noise
    return max(0.0, along - 4.0 * spread.covariance + own) * spread.mean_variance


def _noise_along(signal: float, noise: float, spread: Spread) -> float:
    """Noise along the mean gradient.

    Along the measured mean it is biased towards the average direction of the noise, which is in that mean. Corrected
    for this it is unbiased, but errs together with the signal, so that a signal that is too small would seem sure:
    the truth is covered with some of both.
    """
    uncorrected = spread.along_mean / spread.mean_square if spread.mean_square > 0 else 0.0
    if signal <= 0:
        return min(uncorrected, noise)
    corrected = max(0.0, spread.along_mean - spread.quadratic * spread.mean_variance) / signal
    return min(CORRECTED_SHARE * corrected + (1.0 - CORRECTED_SHARE) * uncorrected, noise)


def _degrees_of_freedom(signal: float, noise: float, square: float, linear: float, groups: int) -> float:
    """Welch and Satterthwaite's: J - 1 of the linear part; the quadratic one rests on all pairs and counts as known."""
    whole = linear * signal + square * noise
    share = linear * signal / whole if whole > 0 else 0.0
    return (groups - 1) / share**2 if share > 1e-6 else math.inf


def _least_signal(noise: float, square: float, spread: Spread) -> float:
    """95 % quantile of the signal's estimate where G = 0.

    It is a weighted sum of centred chi-squares, and skewed where few dimensions hold the noise (Cornish and Fisher).
    """
    t = t_quantile(spread.groups - 1)
    skewness = min(math.sqrt(8.0), math.sqrt(8.0 * spread.quadratic) / noise)  # the most is that of one dimension
    return (t + skewness * (t**2 - 1.0) / 6.0) * math.sqrt(square)


def _trace_of_square(gram: Floats) -> float:
    """Unbiased tr(Sigma^2) from the inner products of J vectors with covariance Sigma, in any direction of their mean.

    From U-centred products of pairs (Szekely and Rizzo 2014, arXiv 1310.2926); the diagonal, where heavy tails show
    first, is not used.
    """
    count = len(gram)
    pairs = gram - np.diag(np.diag(gram))
    rows = pairs.sum(1) / (count - 2)
    centred = pairs - rows[:, None] - rows[None, :] + pairs.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(centred, 0.0)
    return float((centred**2).sum()) / (count * (count - 3))
