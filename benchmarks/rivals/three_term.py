"""Three-term law of decayed losses over batch size and steps (Schaipp 2026, arXiv 2607.01487) at one model size.

loss = E + b / B^beta + c / K^gamma, with K steps of B examples; the term of the model size is part of E. It says
nothing of the rate: it is fitted to the best loss of each batch size and horizon.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

Floats = np.ndarray
EXPONENT, EXPONENT_SD = 0.3, 0.8
"""Of both exponents, of their logarithms: they are 0.1 and 0.2 on language models, of order one on small problems."""
ERROR = 0.01
"""Of a log loss; a residual beyond counts by its size."""


@dataclass(frozen=True, slots=True)
class ThreeTermLaw:
    """Logs of E, b, beta, c and gamma, (5,), and the units of B and K."""

    parameters: Floats
    units: tuple[float, float]

    def log_losses(self, batch_sizes: Floats, steps: Floats) -> Floats:
        """Log losses at the ends of decays at the best rate."""
        return _log_losses(self.parameters, np.asarray(batch_sizes) / self.units[0], np.asarray(steps) / self.units[1])


def _log_losses(parameters: Floats, batch_sizes: Floats, steps: Floats) -> Floats:
    floor, noise, beta, bias, gamma = np.exp(parameters)
    return np.log(floor + noise * batch_sizes**-beta + bias * steps**-gamma)


def fit_three_term(batch_sizes: Floats, steps: Floats, log_losses: Floats) -> ThreeTermLaw:
    """Fit the law to the best decayed loss of each batch size and number of steps."""
    sizes, steps, log_losses = (np.asarray(each, float) for each in (batch_sizes, steps, log_losses))
    units = float(np.exp(np.log(sizes).mean())), float(np.exp(np.log(steps).mean()))
    middle = math.exp(np.median(log_losses))

    def residuals(parameters: Floats) -> Floats:
        off = (_log_losses(parameters, sizes / units[0], steps / units[1]) - log_losses) / ERROR
        return np.concatenate([off, (parameters[[2, 4]] - math.log(EXPONENT)) / EXPONENT_SD])

    found = []
    for share, power in itertools.product((0.1, 0.6), (0.1, 0.3, 1.0)):
        rest = 0.5 * (1.0 - share) * middle
        start = np.log([share * middle, rest, power, rest, power])
        found.append(least_squares(residuals, start, loss="soft_l1", bounds=(start - 10.0, start + 10.0), max_nfev=300))
    return ThreeTermLaw(min(found, key=lambda each: each.cost).x, units)
