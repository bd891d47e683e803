"""Populations of gradients whose noise scale is known, to be drawn from without a model.

Notation
    G, Sigma   mean gradient and covariance; tr(Sigma) = 1 here, so that |G|^2 = 1 / noise scale
    rho        share of the noise along G
    d_eff      (tr Sigma)^2 / tr(Sigma^2), the number of dimensions that hold the noise
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from batchopt.probing.moments import GradientSums

Floats = NDArray[np.float64]

Tail = Literal["normal", "student", "lognormal"]
"""Of the length of a residual: none; Student's t with 5 degrees of freedom; log-normal with a sigma of 1."""


class Source(Protocol):
    """Units of one repetition."""

    truth: float
    """The noise scale of what is drawn from, in examples."""
    size: int | None
    """Examples in it; None for infinite."""

    def take(self, units: int) -> GradientSums:
        """Sums over further units."""


@dataclass(frozen=True)
class Population:
    """What gradients look like.

    Attributes:
        name: in words.
        noise_scale: tr(Sigma) / |G|^2 in examples; infinite without signal.
        variances: of the noise by dimension, (dimensions,), sum 1.
        direction: of G, (dimensions,), length 1.
        tail: of the residuals' lengths.
        weighted: whether examples have weights of 1 to 8, as sequences of unlike lengths do.
        group_size: examples per unit.
        size: examples in a population that is drawn anew for every repetition; None for infinite.
    """

    name: str
    noise_scale: float
    variances: Floats
    direction: Floats
    tail: Tail = "normal"
    weighted: bool = False
    group_size: int = 1
    size: int | None = None

    @property
    def mean(self) -> Floats:
        """G, (dimensions,)."""
        return self.direction / math.sqrt(self.noise_scale)

    @property
    def rho(self) -> float:
        """Share of the noise along G."""
        return float(self.direction**2 @ self.variances)

    @property
    def d_eff(self) -> float:
        """Number of dimensions that hold the noise."""
        return 1.0 / float((self.variances**2).sum())

    def source(self, rng: np.random.Generator) -> Source:
        """What one repetition draws from."""
        if self.size is not None:
            return FiniteSource(self, rng)
        return GaussianSource(self, rng) if self.tail == "normal" and not self.weighted else SampledSource(self, rng)

    def sample(self, examples: int, rng: np.random.Generator) -> Floats:
        """Single gradients, (examples, dimensions)."""
        residuals = np.sqrt(self.variances) * rng.standard_normal((examples, len(self.variances)))
        if self.tail == "student":
            residuals *= np.sqrt(3.0 / rng.chisquare(5.0, (examples, 1)))
        elif self.tail == "lognormal":
            residuals *= np.exp(rng.standard_normal((examples, 1)) - 1.0)
        return self.mean + residuals


class GaussianSource:
    """Sums over Gaussian gradients, drawn without the gradients themselves: a total, and a scatter about it."""

    def __init__(self, population: Population, rng: np.random.Generator) -> None:
        self.truth = population.noise_scale
        self.size: int | None = None
        self._mean = population.mean
        self._variances = population.variances / population.group_size
        self._distinct, self._counts = np.unique(self._variances, return_counts=True)
        self._rng = rng

    def take(self, units: int) -> GradientSums:
        """Sums over further units."""
        total = units * self._mean
        total = total + np.sqrt(units * self._variances) * self._rng.standard_normal(len(total))
        scatter = self._rng.chisquare((units - 1) * self._counts) @ self._distinct if units > 1 else 0.0
        return _sums(units, total, float(scatter + total @ total / units))


class SampledSource:
    """Sums over gradients that are drawn one by one."""

    def __init__(self, population: Population, rng: np.random.Generator) -> None:
        self.size: int | None = None
        self._population = population
        self._rng = rng
        # Weights of 1 to 8, all as likely: E w^2 / (E w)^2 = 25.5 / 4.5^2. They are independent of the gradients.
        self.truth = population.noise_scale * (25.5 / 4.5**2 if population.weighted else 1.0)

    def take(self, units: int) -> GradientSums:
        """Sums over further units."""
        gradients = self._population.sample(units, self._rng)
        if not self._population.weighted:
            return _sums(units, gradients.sum(0), float((gradients**2).sum()))
        weights = self._rng.integers(1, 9, units).astype(float)
        weighted = weights[:, None] * gradients
        return GradientSums(
            units=units,
            weights=float(weights.sum()),
            weights_squared=float((weights**2).sum()),
            total=torch.from_numpy(weighted.sum(0)),
            total_squared=torch.from_numpy(weights @ weighted),
            squares=float((weighted**2).sum()),
        )


class FiniteSource:
    """A data set, drawn from without replacement; its own mean and covariance are the truth."""

    def __init__(self, population: Population, rng: np.random.Generator) -> None:
        assert population.size is not None
        self._gradients = population.sample(population.size, rng)  # the order is random already
        self._drawn = 0
        self.size: int | None = population.size
        mean = self._gradients.mean(0)
        self.truth = float(self._gradients.var(0, ddof=1).sum() / (mean @ mean))

    def take(self, units: int) -> GradientSums:
        """Sums over further units."""
        gradients = self._gradients[self._drawn : self._drawn + units]
        self._drawn += units
        return _sums(len(gradients), gradients.sum(0), float((gradients**2).sum()))


def _sums(units: int, total: Floats, squares: float) -> GradientSums:
    return GradientSums(units, float(units), float(units), torch.from_numpy(total), None, squares)


def isotropic(noise_scale: float, dimensions: int = 200) -> Population:
    """The same noise in all directions."""
    direction = np.eye(1, dimensions)[0]
    return Population("isotropic", noise_scale, np.full(dimensions, 1.0 / dimensions), direction)


def few_dimensions(noise_scale: float, dimensions: int = 20) -> Population:
    """Noise that falls by 0.7 from one dimension to the next, and a signal that is spread over all of them."""
    variances = 0.7 ** np.arange(dimensions)
    direction = np.full(dimensions, dimensions**-0.5)
    return Population("few dimensions", noise_scale, variances / variances.sum(), direction)


def along_the_gradient(noise_scale: float, dimensions: int = 100) -> Population:
    """Half of the noise along G, the rest in all other directions."""
    variances = np.full(dimensions, 0.5 / (dimensions - 1))
    variances[0] = 0.5
    return Population("half along G", noise_scale, variances, np.eye(1, dimensions)[0])


def heavy_tailed(noise_scale: float, tail: Tail) -> Population:
    """The same noise in all directions, of lengths that vary from example to example."""
    return replace(isotropic(noise_scale, 50), name=f"tail: {tail}", tail=tail)
