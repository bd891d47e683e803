"""Parameters that are used more than once: the norm that counts is the norm of the sum over the uses.

A layer that is called twice, a recurrent cell, an embedding tied to the head. Uses of one form are joined as if they
were one use at more positions; forms are joined by their inner products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchopt.probing.gradient_norms.uses import (
    MOST_CANCELLATION,
    Inputs,
    OuterProducts,
    Rows,
    squares,
    wide,
)


@dataclass(frozen=True, slots=True)
class _TiedHead:
    """A linear map whose weight is otherwise used as an embedding only.

    Its output gradients are as large as all logits; what is needed of them later is at the embedding's rows.

    Attributes:
        squares: squared norms of its own gradients, (B,).
        at_rows: for every use as an embedding the output gradients at its rows, (B, T of the embedding, T).
        inputs: (B, features, T).
    """

    squares: Tensor
    at_rows: tuple[tuple[Tensor, Tensor], ...]
    inputs: Tensor

    def with_rows(self, rows: Rows, factor: Tensor | None) -> Tensor:
        """Inner products with the embedding's gradients, (B,)."""
        at_rows = next(gradients for ids, gradients in self.at_rows if ids is rows.ids)
        products = rows.in_metric(factor).to(self.inputs.dtype) @ self.inputs
        return (wide(at_rows) * wide(products)).sum((1, 2))


@dataclass(slots=True)
class SharedUses:
    """Uses of one parameter in a backward pass under way."""

    dense: Tensor | None = None
    outer: list[OuterProducts] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    head: _TiedHead | None = None

    def add_dense(self, gradients: Tensor) -> None:
        """A use's gradients, (B, *shape)."""
        self.dense = gradients if self.dense is None else self.dense + gradients

    def add_head(
        self, use: OuterProducts, embedded: list[Tensor], factor: Tensor | None, *, sums: bool
    ) -> tuple[Tensor | None, str]:
        """The only use as a linear map, where all others are as an embedding of rows `embedded`.

        Returns:
            The sum of its gradients, where it came with its norms; and the way.
        """
        own, total, way = use.squares_and_sum(factor, sums=sums)
        left = use.left[:, 0]
        at_rows = tuple((ids, left.gather(1, ids[:, :, None].expand(-1, -1, left.shape[2]))) for ids in embedded)
        self.head = _TiedHead(own, at_rows, use.right[:][:, 0])
        return total, way

    def squares(self, vocabulary: int, factor: Tensor | None) -> Tensor | None:
        """Squared norms of the sums, (B,); None where no use got a gradient.

        Inner products of different forms are added to their squared norms, with an absolute error of some u times the
        sum of the latter (u is the unit roundoff). Where forms cancel, an example's gradient is formed; of a tied head,
        whose gradient would have the size of all logits, it is not.

        Args:
            vocabulary: rows of the parameter.
            factor: of the metric.
        """
        outer = _joined(self.outer) if self.outer else None
        rows = Rows.joined(self.rows) if self.rows else None
        own = []
        if self.dense is not None:
            own.append(
                squares((self.dense if factor is None else self.dense * factor).reshape(len(self.dense), -1), dims=(1,))
            )
        if outer is not None:
            own.append(outer.squares_and_sum(factor, sums=False)[0])
        if rows is not None:
            own.append(rows.squares(vocabulary, factor))
        products = self._products(outer, rows, factor)
        if self.head is not None:
            own.append(self.head.squares)
            products += [self.head.with_rows(part, factor) for part in self.rows]
        if not products:
            return own[0] if own else None
        apart = torch.stack(own).sum(0)
        together = apart + 2.0 * torch.stack(products).sum(0)
        if self.head is None:
            cancels = MOST_CANCELLATION * together < apart
            for i in cancels.nonzero().flatten().tolist():
                together[i] = self._formed(i, outer, rows, vocabulary, factor)
        return together

    def _formed(
        self, i: int, outer: OuterProducts | None, rows: Rows | None, vocabulary: int, factor: Tensor | None
    ) -> Tensor:
        """Squared norm of an example's gradient, summed over all forms before its entries are squared."""
        one = slice(i, i + 1)
        forms = []
        if self.dense is not None:
            forms.append(self.dense[i])
        if outer is not None:
            forms.append(wide(outer.left[one]) @ wide(outer.right[one]).mT)
        if rows is not None:
            sums = wide(rows.values[i]).new_zeros(vocabulary, rows.values.shape[2])
            forms.append(sums.index_add_(0, rows.ids[i], wide(rows.values[i])))
        gradient = torch.stack([wide(form).flatten() for form in forms]).sum(0)
        return squares(gradient if factor is None else gradient * factor.flatten(), dims=(0,))

    def _products(self, outer: OuterProducts | None, rows: Rows | None, factor: Tensor | None) -> list[Tensor]:
        """Inner products of different forms, each (B,)."""
        products = []
        if self.dense is not None and outer is not None:
            products.append(outer.with_dense(self.dense, factor))
        if self.dense is not None and rows is not None:
            products.append(rows.with_dense(self.dense, factor))
        if rows is not None and outer is not None:
            products.append(rows.with_outer(outer, factor))
        return products


class _JoinedInputs:
    """Inputs of several uses, one after the other along the positions."""

    def __init__(self, parts: list[Inputs]) -> None:
        self._parts = parts
        first = parts[0].shape
        self.shape = torch.Size((*first[:3], sum(part.shape[3] for part in parts)))

    def __getitem__(self, rows: slice, /) -> Tensor:
        return torch.cat([part[rows] for part in self._parts], dim=3)


def _joined(uses: list[OuterProducts]) -> OuterProducts:
    """Several uses as one at the positions of all."""
    if len(uses) == 1:
        return uses[0]
    return OuterProducts(torch.cat([use.left for use in uses], dim=3), _JoinedInputs([use.right for use in uses]))
