"""Where a trial lies among the others: all its numeric and categorical parameters, on one scale.

The pace of a trial carries over to those near it, so every coordinate is in units of the distance over which that
fades: octaves of batch size and learning rate, shares of the range of every other parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BATCH_SIZE_OCTAVES = 2.0
LEARNING_RATE_OCTAVES = 1.5
OTHER_SHARE = 0.5
"""Of the range of another parameter."""
OTHER_CHOICE = 1.0
"""Distance of two choices of a categorical parameter."""


@dataclass(frozen=True, slots=True)
class Places:
    """The coordinates of a study.

    Attributes:
        others: parameters beside batch size and learning rate that every trial has, by name.
    """

    others: tuple[tuple[str, BaseDistribution], ...] = ()

    @property
    def n_dimensions(self) -> int:
        """Coordinates of a place."""
        return 2 + sum(_width(distribution) for _, distribution in self.others)

    def of(self, batch_size: float, learning_rate: float, params: Mapping[str, Any]) -> Floats:
        """The place of one trial, (n_dimensions,)."""
        return np.concatenate([self.of_settings([batch_size], [learning_rate])[0], self.of_others(params)])

    def of_settings(self, batch_sizes: Sequence[float] | Floats, learning_rates: Sequence[float] | Floats) -> Floats:
        """The first two coordinates, (k, 2)."""
        return np.stack(
            [np.log2(batch_sizes) / BATCH_SIZE_OCTAVES, np.log2(learning_rates) / LEARNING_RATE_OCTAVES], axis=1
        )

    def of_others(self, params: Mapping[str, Any]) -> Floats:
        """The coordinates of the other parameters; a value that is missing lies in the middle."""
        parts = [_coordinates(distribution, params.get(name)) for name, distribution in self.others]
        return np.array([x for part in parts for x in part])


def numeric_or_choice(distribution: BaseDistribution) -> bool:
    """Whether a parameter can be given a place."""
    return isinstance(distribution, CategoricalDistribution | FloatDistribution | IntDistribution)


def share(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """Where a value lies between the ends of its range, from 0 to 1."""
    low, high, at = float(distribution.low), float(distribution.high), float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at) if at > 0 else -math.inf
    return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5


def _width(distribution: BaseDistribution) -> int:
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1


def _coordinates(distribution: BaseDistribution, value: Any) -> list[float]:
    if isinstance(distribution, CategoricalDistribution):
        # Two different choices are 1 apart: each is half a square away from nothing.
        return [OTHER_CHOICE / math.sqrt(2.0) * (choice == value) for choice in distribution.choices]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [0.5 / OTHER_SHARE]
    return [share(distribution, value) / OTHER_SHARE]
