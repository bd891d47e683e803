"""Sums of gradients, and their gathering into a bounded number of groups, however many gradients come.

Groups are filled one after another. When all are full, neighbours are merged and every further group holds twice as
many units, so that there are always between half the capacity and the capacity of them, of about equal size.

Notation
    w_u      weight of a unit: the example's, the sum of the group's; 1 where the loss gives no weights
    g_u      gradient of a unit's own mean loss, (parameters,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from batchopt.errors import NonFiniteLossError
from batchopt.noise_scale import GradientMoments
from batchopt.probing.gradient_norms.one_pass import OVERFLOW, not_finite
from batchopt.probing.gradient_norms.uses import wide

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUPS_BYTES = 2**30
"""Where 32 group sums would take more memory than this, half as many are kept."""
MANY_GROUPS, FEW_GROUPS = 32, 16
_BLOCK = {"cpu": 2**14, "elsewhere": 2**20}
"""Coordinates that are multiplied at a time: so few that they stay in a core's cache, which takes half as long as 2^18;
or so many that a device has enough to do."""


Gradients = Mapping[str, Tensor]
"""Parameter name -> gradients of several units, stacked along the first dimension."""


@dataclass(frozen=True, slots=True)
class GradientSums:
    """Sums over the units of a batch.

    Attributes:
        units: number of units.
        weights: sum of w_u.
        weights_squared: sum of w_u^2.
        total: sum of w_u g_u, (parameters,); float64 for float64 models, else float32.
        total_squared: sum of w_u^2 g_u, (parameters,); None where all weights are 1, and then it is `total`.
        squares: sum of w_u^2 |g_u|^2.
        curved: sum of w_u h_u, (parameters,), where h_u is g_u times a Hessian and products of gradients are taken
            with it: `squares` is then the sum of w_u^2 g_u . h_u. None where curvature is not measured.
    """

    units: int
    weights: float
    weights_squared: float
    total: Tensor
    total_squared: Tensor | None
    squares: float
    curved: Tensor | None = None

    def __add__(self, other: GradientSums) -> GradientSums:
        squared = None
        if self.total_squared is not None or other.total_squared is not None:
            ours = self.total if self.total_squared is None else self.total_squared
            theirs = other.total if other.total_squared is None else other.total_squared
            squared = ours + theirs
        return GradientSums(
            units=self.units + other.units,
            weights=self.weights + other.weights,
            weights_squared=self.weights_squared + other.weights_squared,
            total=self.total + other.total,
            total_squared=squared,
            squares=self.squares + other.squares,
            curved=None if self.curved is None or other.curved is None else self.curved + other.curved,
        )


class MomentAccumulator:
    """Group sums of a measurement under way.

    Args:
        quota: units of a group to begin with.
        group_size: examples per unit.
        gradient_bytes: memory of one gradient; decides how many groups are kept.
        add_up: sums over the processes, where each holds some coordinates of the gradients; None where this one holds
            all of them.

    Attributes:
        group_size: examples per unit.
    """

    def __init__(
        self, *, quota: int, group_size: int, gradient_bytes: int, add_up: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.group_size = group_size
        self._add_up = add_up
        self._quota = quota
        self._capacity = MANY_GROUPS if MANY_GROUPS * gradient_bytes <= GROUPS_BYTES else FEW_GROUPS
        self._groups: list[GradientSums] = []
        self._open: GradientSums | None = None

    @property
    def units(self) -> int:
        """Units so far."""
        return sum(group.units for group in self.groups)

    @property
    def groups(self) -> list[GradientSums]:
        """Full groups and the one being filled, which joins its neighbour while it is less than half full."""
        if self._open is None:
            return self._groups
        if self._groups and 2 * self._open.units < self._quota:
            return [*self._groups[:-1], self._groups[-1] + self._open]
        return [*self._groups, self._open]

    @property
    def missing(self) -> int:
        """Units that the group being filled still takes."""
        return self._quota - (self._open.units if self._open else 0)

    def add(self, sums: GradientSums) -> None:
        """Take the sums of further units, drawn after all before."""
        self._open = sums if self._open is None else self._open + sums
        if self._open.units < self._quota:
            return
        self._groups.append(self._open)
        self._open = None
        if len(self._groups) == self._capacity:
            self._groups = [first + second for first, second in zip(self._groups[::2], self._groups[1::2], strict=True)]
            self._quota *= 2

    def is_zero(self) -> bool:
        """Whether every gradient was exactly zero."""
        return all(group.squares == 0 and not bool(group.total.any()) for group in self.groups)

    def moments(self, population: int | None) -> GradientMoments:
        """The moments of all groups so far."""
        groups = self.groups
        sums = [group.total for group in groups]
        curved = any(group.curved is not None for group in groups)
        others = [group.total if group.curved is None else group.curved for group in groups] if curved else sums
        sum_gram = self._gram(sums, others)
        sum_gram = (sum_gram + sum_gram.T) / 2.0
        cross_gram = sum_gram
        if any(group.total_squared is not None for group in groups):
            squared = [g.total if g.total_squared is None else g.total_squared for g in groups]
            cross_gram = self._gram(squared, others)
        return GradientMoments(
            units=np.array([group.units for group in groups], dtype=np.float64),
            weights=np.array([group.weights for group in groups]),
            weights_squared=np.array([group.weights_squared for group in groups]),
            sum_gram=sum_gram,
            cross_gram=cross_gram,
            squares=np.array([group.squares for group in groups]),
            group_size=self.group_size,
            population=population,
            definite=groups[0].curved is None,
        )

    def _gram(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float64]:
        return self.over_coordinates(torch.from_numpy(gram(first, second))).numpy()

    def over_coordinates(self, sums: Tensor) -> Tensor:
        """Sums over the coordinates that this process holds, made those over all."""
        return sums if self._add_up is None else self._add_up(sums)


def sum_gradients(gradients: Gradients, weights: Tensor | None) -> GradientSums:
    """Sums over stacked gradients, in float32, or float64 for float64 models.

    Raises:
        NonFiniteLossError: a gradient is NaN or infinite.
    """
    flat = {name: wide(gradient).flatten(1) for name, gradient in gradients.items()}
    squares = sum(torch.linalg.vector_norm(g, dim=1).square() for g in flat.values())
    units = len(next(iter(flat.values())))
    if weights is None:
        total, squared, sums = _concatenated(flat, lambda g: g.sum(0)), None, (float(units), float(units))
    else:
        w = wide(weights)
        squares = squares * w.square()
        total = _concatenated(flat, lambda g: w.to(g.dtype) @ g)
        squared = _concatenated(flat, lambda g: w.square().to(g.dtype) @ g)
        sums = (w.double().sum().item(), w.double().square().sum().item())
    square = float(torch.as_tensor(squares).double().sum())
    check_finite_gradients(gradients)
    if not math.isfinite(square):
        raise NonFiniteLossError(OVERFLOW)
    return GradientSums(units, *sums, total, squared, square)


def gram(first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float64]:
    """Inner products in float64 of two lists of vectors, block by block: the whole is never copied.

    Returns:
        Shape (len(first), len(second)).
    """
    device = first[0].device
    products = torch.zeros(len(first), len(second), dtype=torch.float64, device=device)
    width = _BLOCK.get(device.type, _BLOCK["elsewhere"])
    for begin in range(0, len(first[0]), width):
        block = slice(begin, begin + width)
        left = torch.stack([vector[block] for vector in first]).double()
        right = left if second is first else torch.stack([vector[block] for vector in second]).double()
        products += left @ right.T
    return products.cpu().numpy()


def _concatenated(flat: Gradients, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([reduce(gradient) for gradient in flat.values()])


def check_finite_gradients(gradients: Gradients) -> None:
    """Raise if a gradient is not finite.

    Raises:
        NonFiniteLossError: naming the parameter.
    """
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise NonFiniteLossError(not_finite(name))
