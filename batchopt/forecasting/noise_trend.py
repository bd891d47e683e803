"""The noise scale over the whole training, from a few readings.

A Gaussian process regresses the logarithm of the noise scale on the logarithm of the loss, each reading with its own
measurement variance: a constant and a slope carry it beyond the readings, a smooth remainder bends it between them, and
the interval widens with the distance from what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from batchopt._checks import check_increasing, check_positive
from batchopt._codec import Record
from batchopt.noise_scale import NoiseScale
from batchopt.uncertainty import Estimate, log_normal

LEVEL_SD = 3.0
"""Prior spread of the log noise scale around the readings' mean."""
SLOPE_SD = 1.5
"""Prior spread of d log(noise scale) / d log(loss)."""
BEND_SD = 0.4
"""Spread of what a straight line misses, per factor e of loss."""
READING_SD = 0.2
"""Scatter of readings along a run beyond their measured variance: the noise scale of a moment jumps about its trend."""
_NORMAL_95 = 1.645


@dataclass(frozen=True, slots=True)
class NoiseTrend(Record):
    """log noise scale over log loss, tabulated.

    Attributes:
        kind: which noise scale.
        log_losses: rising, (k,).
        means: expected log noise scale there, (k,).
        sds: its standard deviation, (k,).
        measured: lowest and highest loss of a resolved reading.
    """

    SCHEMA: ClassVar[str] = "batchopt.noise_trend/1"

    kind: str
    log_losses: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]
    measured: tuple[float, float]

    def __post_init__(self) -> None:
        check_increasing("log_losses", self.log_losses)
        if not len(self.log_losses) == len(self.means) == len(self.sds):
            raise ValueError("log_losses, means and sds must have the same length")

    def __call__(self, loss: float) -> Estimate:
        """Noise scale at a loss, in examples.

        Raises:
            ValueError: the loss is further from the readings than the table goes.
        """
        mean, sd = self.log_moments(loss)
        return log_normal(math.exp(mean), sd)

    def log_moments(self, loss: float) -> tuple[float, float]:
        """Mean and standard deviation of the log noise scale at a loss; raises as calling does."""
        check_positive("loss", loss)
        at = math.log(loss)
        if not self.log_losses[0] <= at <= self.log_losses[-1]:
            low, high = math.exp(self.log_losses[0]), math.exp(self.log_losses[-1])
            raise ValueError(
                f"loss must lie within {low:.3g} to {high:.3g}, where the noise trend is known, got {loss}"
            )
        return float(np.interp(at, self.log_losses, self.means)), float(np.interp(at, self.log_losses, self.sds))


def fit_noise_trend(readings: Sequence[NoiseScale], *, factor: float = 100.0) -> NoiseTrend | None:
    """Fit the trend to resolved readings of one kind; None where fewer than two are resolved.

    Args:
        readings: noise scales with `at` filled in.
        factor: how far beyond the measured losses the table goes.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct

    usable = [(reading, reading.at) for reading in readings if reading.resolved and reading.at is not None]
    if len(usable) < 2:
        return None
    losses = np.array([at.loss for _, at in usable])
    values = np.log([reading.batch_size.value for reading, _ in usable])
    errors = np.array([log_standard_error(reading.batch_size) for reading, _ in usable])
    centre, level = float(np.log(losses).mean()), float(values.mean())
    kernel = (
        ConstantKernel(LEVEL_SD**2, "fixed")
        + ConstantKernel(SLOPE_SD**2, "fixed") * DotProduct(0.0, "fixed")
        + ConstantKernel(BEND_SD**2, "fixed") * RBF(1.0, "fixed")
    )
    regressor = GaussianProcessRegressor(kernel, alpha=errors**2 + READING_SD**2, optimizer=None)
    regressor.fit((np.log(losses) - centre)[:, None], values - level)
    reach = math.log(factor)
    grid = np.linspace(math.log(losses.min()) - reach, math.log(losses.max()) + reach, 81)
    means, sds = regressor.predict((grid - centre)[:, None], return_std=True)
    return NoiseTrend(
        kind=usable[0][0].kind,
        log_losses=tuple(map(float, grid)),
        means=tuple(map(float, means + level)),
        sds=tuple(map(float, sds)),
        measured=(float(losses.min()), float(losses.max())),
    )


def log_standard_error(reading: Estimate) -> float:
    """Standard error of the log of a resolved estimate, from its interval."""
    return math.log(reading.high / reading.low) / (2.0 * _NORMAL_95)
