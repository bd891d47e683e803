"""The noise scale weighed with the curvature of the loss: tr(H Sigma) / G'HG (McCandlish et al. 2018, eq. 2.8).

A unit is the mean gradient g_u of a group of examples and its product h_u = H_u g_u with the Hessian of the mean loss
of another group, so that E[h_u | g_u] = H g_u. For two units the mean of g_j . h_k is G'HG, and that of g_u . h_u is
larger by tr(H Sigma) / (examples in a group): the estimator and the interval are those of the plain noise scale with
these products in place of the inner products of gradients. Neither number need be positive; the reading is then
unresolved.

In the optimizer's metric P the unit is P g_u, its product H_u P g_u, and the ratio tr(H P Sigma P) / G'P H P G.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchopt.errors import TaskError
from batchopt.probing.gradient_norms.uses import wide
from batchopt.probing.losses import Batch, batch_loss
from batchopt.probing.moments import GradientSums, check_finite_gradients
from batchopt.probing.reading import Reading, rows
from batchopt.probing.task import whole_parameters

PRODUCT_COST = 2
"""Examples' worth of gradients that a Hessian-vector product of one example takes."""


class CurvatureReader:
    """One unit per `group_size` examples for a gradient, and as many others for its product with their Hessian.

    Args:
        reading: what to read.
        group_size: examples of a gradient, and of a Hessian.
    """

    def __init__(self, reading: Reading, *, group_size: int) -> None:
        self._reading = reading
        self._parameters = list(whole_parameters(reading.model).values())
        self.group_size = group_size

    @property
    def drawn(self) -> int:
        """Examples that a unit takes of a batch."""
        return 2 * self.group_size

    @property
    def cost(self) -> int:
        """Examples' worth of gradients that a unit costs."""
        return (1 + PRODUCT_COST) * self.group_size

    @property
    def method(self) -> str:
        """How gradients are taken, in words."""
        return (
            f"mean gradients of groups of {self.group_size} examples, each times the Hessian of as many others "
            f"(Hessian-vector products, counted as {PRODUCT_COST} gradients an example)"
        )

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the units of a batch."""
        if count < self.drawn:
            raise TaskError(f"a batch must hold at least one unit of {self.drawn} examples, got {count} examples")
        begins = range(0, count - self.drawn + 1, self.drawn)
        return reduce(add, (self._unit(rows(batch, count, begin, begin + self.drawn)) for begin in begins))

    def _unit(self, batch: Batch) -> GradientSums:
        half = self.group_size
        losses, weights = self._reading.losses(rows(batch, 2 * half, 0, half))
        gradients = self._reading.gradients(batch_loss(losses, weights))
        check_finite_gradients(gradients)
        direction = self._twice_in_metric(list(gradients.values()))
        curved = _flat(self._product(rows(batch, 2 * half, half, 2 * half), direction))
        total = _flat(direction)
        weight = 1.0 if weights is None else float(weights.sum())
        return GradientSums(
            units=1,
            weights=weight,
            weights_squared=weight**2,
            total=weight * total,
            total_squared=None if weights is None else weight**2 * total,
            squares=weight**2 * float(total.double() @ curved.double()),
            curved=weight * curved,
        )

    def _product(self, batch: Batch, direction: list[Tensor]) -> list[Tensor]:
        """The Hessian of the mean loss of a batch times a direction, by differentiating twice."""
        with _twice_differentiable():
            losses, weights = self._reading.losses(batch)
            gradients = torch.autograd.grad(
                batch_loss(losses, weights), self._parameters, allow_unused=True, create_graph=True
            )
            pairs = [(g, d) for g, d in zip(gradients, direction, strict=True) if g is not None and g.requires_grad]
            if not pairs:
                return [torch.zeros_like(parameter) for parameter in self._parameters]
            inner = sum(((g * d).sum() for g, d in pairs), start=losses.new_zeros(()))
            products = torch.autograd.grad(inner, self._parameters, allow_unused=True)
        return [
            torch.zeros_like(parameter) if product is None else product.detach()
            for parameter, product in zip(self._parameters, products, strict=True)
        ]

    def _twice_in_metric(self, gradients: list[Tensor]) -> list[Tensor]:
        """P g: the metric's factors are its square root."""
        if self._reading.factors is None:
            return gradients
        return [(g * factor.square()).to(g.dtype) for g, factor in zip(gradients, self._reading.factors, strict=True)]


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention and recurrent layers by the kernels that have a second derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings for hardware that is not there
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.cudnn.flags(enabled=False),
            torch.backends.mkldnn.flags(enabled=False),
        ):
            yield


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([wide(gradient).flatten() for gradient in gradients])
