"""What one use of a parameter adds to every example's gradient, in the form in which its norm is cheapest.

Notation
    B, T     examples in the batch; positions at which an example uses the parameter (tokens, pixels, time steps)
    G        groups of a convolution, 1 elsewhere
    F        factors of the metric, of the parameter's shape; None for the identity
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CACHED_BYTES = 2**22
"""Per-example weight gradients are formed so many bytes at a time on a CPU: what stays in its cache is cheap."""
CHUNK_BYTES = 2**28
"""The same on other devices, and of anything else that is formed for some examples at a time."""
BYTES_OF_FORMED = 12.0
"""Memory traffic for an entry of an example's gradient in float32: written, and read for its norm and for the sum."""
OPERATIONS_PER_BYTE = {"cpu": 6.0}
OPERATIONS_PER_BYTE_ELSEWHERE = 16.0
"""Floating-point operations in the time of a byte of that traffic, by type of device; measured on a server's CPU, which
keeps it in its cache, and roughly a GPU's. They choose between exact ways: a wrong one costs time, not accuracy."""
MOST_CANCELLATION = 64.0
"""Squared norms below this part of what they are summed up from are taken of the formed gradient instead. A sum of
products is then off by at most about 3 * 64 * 2^-24 = 1.1e-5 in float32, whatever the model's dtype, and by 2e-14 in
float64; see `OuterProducts`. Rare, so the threshold costs nothing."""


class Inputs(Protocol):
    """(B, G, I, T), given for a slice of the examples at a time: a tensor, or patches that are made on demand."""

    @property
    def shape(self) -> torch.Size:
        """(B, G, I, T)."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class OuterProducts:
    """Gradients sum_t left_t right_t^T, as of a linear layer: left is an output's gradient, right an input.

    Rounding, with unit roundoff u of the dtype that sums are added up in (2^-24 for all but float64): Gram matrices
    give a squared norm n with an absolute error of about 3 u d, where d = sum_t |left_t|^2 |right_t|^2 is what the
    positions would add up to if they were orthogonal. (Errors that all have one sign are bounded by
    (O + I) u (sum_t |left_t| |right_t|)^2.) Where positions cancel, d / n grows without bound; the formed gradient's
    squared norm is off by about u sqrt(d / n) of itself only. So examples with d > `MOST_CANCELLATION` n are formed.
    The inputs' own rounding, by the forward and backward pass, comes on top in every way.

    Attributes:
        left: (B, G, O, T).
        right: (B, G, I, T).
        left_squares: squared norms of left, (B,), where it has one position and one group and they are known.
    """

    left: Tensor
    right: Inputs
    left_squares: Tensor | None = None

    def squares_and_sum(self, factor: Tensor | None, *, sums: bool) -> tuple[Tensor, Tensor | None, str]:
        """Squared norms, (B,), by the cheapest of three exact ways.

        Args:
            factor: of the metric.
            sums: whether the sum of the gradients is needed as well; it comes for nothing where they are formed.

        Returns:
            The squared norms; the sum of the gradients, (G, O, I), where it comes with them, else None; the way.
        """
        _, groups, out, positions = self.left.shape
        inner = self.right.shape[2]
        if positions == 1:
            return self._rank_one(factor), None, "norms of inputs times norms of output gradients"
        gradient = f"every example's {out} x {inner} gradient{f' ({groups} groups)' * (groups > 1)}"
        if factor is None and self._gram_is_cheaper(sums):
            return self._by_gram(), None, f"Gram matrices of {positions} positions, cheaper than {gradient}"
        norms, total = self._formed(factor)
        reason = f"cheaper than Gram matrices of {positions} positions" if factor is None else "scaled by the metric"
        return norms, total, f"{gradient}, {reason}"

    def _gram_is_cheaper(self, sums: bool) -> bool:
        """By the operations of an example; the sum in the ordinary way takes those of the product anyway."""
        _, _, out, positions = self.left.shape
        inner = self.right.shape[2]
        per_byte = OPERATIONS_PER_BYTE.get(self.left.device.type, OPERATIONS_PER_BYTE_ELSEWHERE)
        gram = 2.0 * positions**2 * (out + inner)
        product = 2.0 * positions * out * inner
        return gram < BYTES_OF_FORMED * per_byte * out * inner + (0.0 if sums else product)

    def dense(self, rows: slice) -> Tensor:
        """Gradients of some examples, (rows, G, O, I)."""
        return self.left[rows] @ self.right[rows].mT

    def with_dense(self, gradients: Tensor, factor: Tensor | None) -> Tensor:
        """Inner products with dense gradients of the same parameter, (B,)."""
        count, groups, out, _ = self.left.shape
        shape = (groups, out, self.right.shape[2])
        in_metric = None if factor is None else factor.square().reshape(shape)
        parts = []
        for rows in slices(count, 8 * groups * out * shape[2]):
            product = wide(self.dense(rows)) * wide(gradients[rows].reshape(-1, *shape))
            parts.append((product if in_metric is None else product * in_metric).sum((1, 2, 3)))
        return torch.cat(parts)

    def _rank_one(self, factor: Tensor | None) -> Tensor:
        left, right = self.left.squeeze(3), self.right[:].squeeze(3)
        if factor is None and left.shape[1] == 1 and self.left_squares is not None:
            return self.left_squares * squares(right, dims=(1, 2))
        if factor is None:
            return (squares(left, dims=(2,)) * squares(right, dims=(2,))).sum(1)
        weights = factor.square().reshape(left.shape[1], left.shape[2], right.shape[2])
        return torch.einsum("bgo,goi,bgi->b", wide(left).square(), weights, wide(right).square())

    def _by_gram(self) -> Tensor:
        count, groups, out, positions = self.left.shape
        floats = groups * (2 * positions**2 + positions * (out + self.right.shape[2]))
        parts = []
        for rows in slices(count, 4 * floats):
            left, right = wide(self.left[rows]), wide(self.right[rows])
            left_gram, right_gram = left.mT @ left, right.mT @ right
            norms = (left_gram * right_gram).sum((1, 2, 3))
            alone = (left_gram.diagonal(dim1=2, dim2=3) * right_gram.diagonal(dim1=2, dim2=3)).sum((1, 2))
            cancels = MOST_CANCELLATION * norms < alone
            if cancels.any():
                norms[cancels], _ = OuterProducts(left[cancels], right[cancels])._formed(None)
            parts.append(norms)
        return torch.cat(parts)

    def _formed(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        count, groups, out, _ = self.left.shape
        shape = (groups, out, self.right.shape[2])
        in_metric = None if factor is None else factor.reshape(shape)
        total = torch.zeros(shape, dtype=wide_dtype(self.left), device=self.left.device)
        parts = []
        buffer = None
        made = 0 if isinstance(self.right, Tensor) else math.prod(self.right.shape[1:])
        bytes_each = self.left.element_size() * (math.prod(shape) + made)
        for rows in slices(count, bytes_each, device=self.left.device):
            size = rows.stop - rows.start
            buffer = self.left.new_empty(size, *shape) if buffer is None else buffer[:size]
            gradients = torch.matmul(self.left[rows], self.right[rows].mT, out=buffer)
            total += gradients.sum(0, dtype=total.dtype) if size > 1 else gradients[0]
            parts.append(squares(gradients if in_metric is None else gradients * in_metric, dims=(1, 2, 3)))
        return torch.cat(parts), total


@dataclass(frozen=True, slots=True)
class Rows:
    """Gradients with `values` added at the rows `ids`, as of an embedding.

    Attributes:
        ids: (B, T).
        values: (B, T, features).
    """

    ids: Tensor
    values: Tensor

    @classmethod
    def joined(cls, uses: list[Rows]) -> Rows:
        """Several uses as one at the positions of all."""
        if len(uses) == 1:
            return uses[0]
        return cls(torch.cat([use.ids for use in uses], dim=1), torch.cat([use.values for use in uses], dim=1))

    def squares(self, vocabulary: int, factor: Tensor | None) -> Tensor:
        """Squared norms, (B,): of the sums over equal rows, without a buffer of the vocabulary's size."""
        count, positions, features = self.values.shape
        example = torch.arange(count, device=self.ids.device)[:, None]
        distinct, position = torch.unique(example * vocabulary + self.ids, return_inverse=True)
        values = wide(self.values).reshape(count * positions, features)
        sums = values.new_zeros(len(distinct), features).index_add_(0, position.flatten(), values)
        if factor is not None:
            sums = sums * factor[distinct % vocabulary]
        return sums.new_zeros(count).index_add_(0, distinct // vocabulary, squares(sums, dims=(1,)))

    def in_metric(self, factor: Tensor | None) -> Tensor:
        """The values times the squared factor, so that a product with them is one in the metric."""
        return self.values if factor is None else self.values * factor.square()[self.ids]

    def with_dense(self, gradients: Tensor, factor: Tensor | None) -> Tensor:
        """Inner products with dense gradients of the same parameter, (B,)."""
        at_rows = gradients.gather(1, self.ids[:, :, None].expand(-1, -1, gradients.shape[2]))
        return (wide(at_rows) * wide(self.in_metric(factor))).sum((1, 2))

    def with_outer(self, outer: OuterProducts, factor: Tensor | None) -> Tensor:
        """Inner products with a linear map's gradients of the same parameter, (B,)."""
        left = outer.left[:, 0]
        at_rows = left.gather(1, self.ids[:, :, None].expand(-1, -1, left.shape[2]))
        products = self.in_metric(factor).to(left.dtype) @ outer.right[:][:, 0]
        return (wide(at_rows) * wide(products)).sum((1, 2))


def slices(count: int, bytes_each: int, *, device: torch.device | None = None) -> list[slice]:
    """The examples in slices of a bounded size in memory; with a device, of what its cache holds."""
    size = CACHED_BYTES if device is not None and device.type == "cpu" else CHUNK_BYTES
    step = max(1, size // max(1, bytes_each))
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def squares(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sums of squares over some dimensions, added up in float32 at least."""
    return torch.linalg.vector_norm(tensor, dim=dims, dtype=wide_dtype(tensor)).square()


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 for float64."""
    return tensor.to(wide_dtype(tensor))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over this tensor are added up in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
