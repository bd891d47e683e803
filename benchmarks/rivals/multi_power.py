"""Multi-Power Law (Luo et al. 2025, arXiv 2503.12811): loss curves of one batch size and one peak learning rate.

Notation
    eta_k     rate of piece k, over the peak
    S_1       sum of rates over steps so far, over the peak; S_k of the pieces from k on
    L         L_0 + A (S_1 + S_W)^(-alpha) - LD, S_W of the warm-up
    LD        B sum over drops of (eta_{k-1} - eta_k) G(eta_k^(-gamma) S_k), G(x) = 1 - (1 + C x)^(-beta)

Fitted to log losses by a robust loss, as by its authors, from a few starts. beta and gamma are held near what the
authors found at three model sizes (0.59, 0.64), since a cell here has two cooldowns, and the others by wide beliefs, so
that no fit ends where a decay brings nothing. Rates are relative to the peak
and steps to the first loss, so that A, B and C are of order one; what there is of the rate's unit goes into C.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

Floats = np.ndarray
ALPHA, SPEED, BETA, GAMMA = 0.5, 2.0, 0.59, 0.64
GAIN = 0.5
"""B over the lowest loss."""
BELIEFS_SD = np.array([2.0, 4.0, 4.0, 0.3, 0.3])
"""Of the logs of alpha, B, C, beta and gamma about these."""
ROBUST = 0.02
"""Log loss beyond which a residual counts by its size."""
_LEAST_RATE = 1e-3
"""Of the peak: where a rate ends at 0 its power would not be finite."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the law reads of a run at a point: progress, and of each drop of the rate its size, rate and later sum.

    Attributes:
        progress: S_1 + S_W.
        drops: eta_{k-1} - eta_k, (k,).
        rates: eta_k, (k,).
        later: S_k, (k,).
    """

    progress: float
    drops: Floats
    rates: Floats
    later: Floats


def schedule(steps: Floats, rates: Floats) -> Schedule:
    """Of a run in pieces of so many steps at such relative rates; a rise of the rate is warm-up."""
    sums = np.cumsum((steps * rates)[::-1])[::-1]
    drops = -np.diff(rates)
    falls = np.flatnonzero(drops > 0)
    return Schedule(float(sums[0]), drops[falls], np.maximum(rates[1:][falls], _LEAST_RATE), sums[1:][falls])


@dataclass(frozen=True, slots=True)
class MultiPowerLaw:
    """Log of L_0, A, alpha, B, C, beta and gamma, (7,), and the unit of S."""

    parameters: Floats
    unit: float

    def log_losses(self, runs: list[Schedule]) -> Floats:
        """Log losses at the ends of runs."""
        return _log_losses(self.parameters, runs, self.unit)


def _log_losses(parameters: Floats, runs: list[Schedule], unit: float) -> Floats:
    floor, scale, power, gain, speed, beta, gamma = np.exp(parameters)
    found = []
    for run in runs:
        forgotten = 1.0 - (1.0 + speed * run.rates**-gamma * run.later / unit) ** -beta
        found.append(floor + scale * (run.progress / unit) ** -power - gain * np.sum(run.drops * forgotten))
    lowest = 1e-3 * math.exp(parameters[0])  # the law may go below 0
    return np.log(np.maximum(found, lowest))


def fit_multi_power(runs: list[Schedule], log_losses: Floats) -> MultiPowerLaw:
    """Fit the law to points of runs of one batch size and rate, some of them after a decay."""
    log_losses = np.asarray(log_losses)
    unit = min(run.progress for run in runs)
    lowest, highest = math.exp(log_losses.min()), math.exp(log_losses.max())

    believed = np.log([ALPHA, GAIN * lowest, SPEED, BETA, GAMMA])

    def residuals(parameters: Floats) -> Floats:
        off = (_log_losses(parameters, runs, unit) - log_losses) / ROBUST
        return np.concatenate([off, (parameters[2:] - believed) / BELIEFS_SD])

    found = []
    for floor, power, gain in itertools.product((0.3, 0.9), (0.3, 0.8), (0.1, 1.0)):
        start = np.log([floor * lowest, highest - floor * lowest, power, gain * lowest, 1.0, BETA, GAMMA])
        bounds = (start - 12.0, start + 12.0)
        found.append(least_squares(residuals, start, loss="soft_l1", bounds=bounds, max_nfev=200))
    best = min(found, key=lambda each: each.cost)
    return MultiPowerLaw(best.x, unit)
