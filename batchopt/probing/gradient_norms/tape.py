"""What is written down on the way back: how every parameter is used, and the squared norms that follow.

A parameter that is used once is done with as soon as the gradient of its use is there; the uses of a shared one are
kept until all are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from batchopt.probing.gradient_norms.shared import SharedUses
from batchopt.probing.gradient_norms.uses import Inputs, OuterProducts, Rows, squares, wide, wide_dtype


class ByExample(Protocol):
    """A use that knows the norms of its gradients."""

    def squares(self, factor: Tensor | None) -> Tensor:
        """Squared norms in a metric, (B,)."""

    def dense(self, examples: slice) -> Tensor:
        """Gradients of some examples, (examples, *shape of the parameter)."""


@dataclass(slots=True)
class _Entry:
    """One parameter.

    Attributes:
        name: of the parameter.
        proxy: stands for it in the graph, so that a use that was not intercepted shows.
        factor: of the metric; None for the identity.
        uses: how often the forward pass used it.
        embedded: ids of its uses as an embedding.
        shared: its uses, where there are several.
        squares: what adds up to the squared norms, each (B,).
        ways: how they were taken.
    """

    name: str
    proxy: Tensor
    factor: Tensor | None
    uses: int = 0
    embedded: list[Tensor] = field(default_factory=list)
    shared: SharedUses = field(default_factory=SharedUses)
    squares: list[Tensor] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)


class Tape:
    """Uses of the trainable parameters in one forward and backward pass.

    Args:
        parameters: by name.
        factors: of the metric, one for each parameter, broadcastable to it; None for the identity.

    Attributes:
        recording: False while a further backward pass is to leave the tape alone.
        sums: whether sums of the gradients are wanted besides the squared norms.
        expanded_bytes: memory per example of gradients that are formed for all examples at once.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], factors: Sequence[Tensor] | None, *, sums: bool = True
    ) -> None:
        self.recording = True
        self.sums = sums
        self.expanded_bytes = 0
        self._transposed: dict[int, tuple[Tensor, int]] = {}
        self._parameters = list(parameters.values())
        self._keys = {id(parameter): key for key, parameter in enumerate(parameters.values())}
        self._entries = [
            _Entry(
                name=name,
                proxy=parameter.detach().requires_grad_(),
                factor=None if factors is None else torch.broadcast_to(factors[key], parameter.shape),
            )
            for key, (name, parameter) in enumerate(parameters.items())
        ]

    @property
    def proxies(self) -> list[Tensor]:
        """What stands for the parameters in the graph."""
        return [entry.proxy for entry in self._entries]

    def key(self, value: object) -> int | None:
        """Which of the parameters this is; None if none."""
        return self._keys.get(id(value))

    def parameter(self, key: int) -> nn.Parameter:
        """The parameter itself."""
        return self._parameters[key]

    def transposed(self, key: int, value: Tensor) -> Tensor:
        """Note that this is the transposed matrix of a parameter, of which no use is known yet."""
        self._transposed[id(value)] = value, key  # the tensor is kept, so that no other gets its id
        return value

    def transposed_key(self, value: object) -> int | None:
        """Which of the parameters this is the transposed matrix of; None if of none."""
        known = self._transposed.get(id(value))
        return None if known is None else known[1]

    def use(self, key: int) -> Tensor:
        """One more use of a parameter: what to compute with instead of it."""
        self._entries[key].uses += 1
        return self._entries[key].proxy

    def embeds(self, key: int, ids: Tensor) -> None:
        """That a use is an embedding of the rows `ids`, (B, T)."""
        self._entries[key].embedded.append(ids)

    def add_dense(self, key: int, gradients: Tensor, *, way: str) -> None:
        """A use's gradients of all examples, (B, *shape of the parameter)."""
        if not self.recording:
            return
        entry = self._entries[key]
        entry.ways.append(way)
        if entry.uses > 1:
            entry.shared.add_dense(gradients)
            return
        in_metric = gradients if entry.factor is None else gradients * entry.factor
        entry.squares.append(squares(in_metric.reshape(len(in_metric), -1), dims=(1,)))

    def add_sums(self, key: int, positions: Tensor) -> Tensor | None:
        """A use whose gradient is the sum over positions, (B, T, *shape): of a bias, or a scale. Returns their sum."""
        gradients = wide(positions[:, 0]) if positions.shape[1] == 1 else positions.sum(1, dtype=wide_dtype(positions))
        self.add_dense(key, gradients, way="sums over positions")
        return gradients.sum(0) if self.sums else None

    def add_rows(self, key: int, ids: Tensor, values: Tensor) -> None:
        """A use as an embedding: the gradients (B, T, features) of the rows `ids`, the tensor given to `embeds`."""
        if not self.recording:
            return
        entry, rows = self._entries[key], Rows(ids, values)
        entry.ways.append("sums over the equal rows of an embedding")
        if entry.uses > 1:
            entry.shared.rows.append(rows)
        else:
            entry.squares.append(rows.squares(len(entry.proxy), entry.factor))

    def add_experts(self, key: int, use: ByExample) -> None:
        """A use as the matrices of experts, each for some of the rows."""
        if not self.recording:
            return
        entry = self._entries[key]
        entry.ways.append("products of the rows of every expert")
        if entry.uses > 1:
            entry.shared.add_dense(use.dense(slice(None)))
        else:
            entry.squares.append(use.squares(entry.factor))

    def add_outer(
        self, key: int, left: Tensor, right: Inputs, plain: Callable[[], Tensor], *, bias_key: int | None = None
    ) -> Tensor | None:
        """A use as a linear map or a convolution.

        Args:
            key: of the parameter.
            left: (B, G, O, T), see `OuterProducts`.
            right: (B, G, I, T).
            plain: computes the sum of the gradients in the ordinary way.
            bias_key: of a bias that was added just now: at one position, its gradients are `left`.

        Returns:
            The sum of the gradients, in the parameter's shape; None where sums are not wanted.
        """
        if not self.recording:
            return plain()
        total = self._squares_of(key, OuterProducts(left, right, self._bias_squares(bias_key)))
        if not self.sums:
            return None
        return plain() if total is None else total.view(self._entries[key].proxy.shape)

    def _bias_squares(self, key: int | None) -> Tensor | None:
        entry = None if key is None else self._entries[key]
        return entry.squares[-1] if entry is not None and entry.uses == 1 and entry.factor is None else None

    def _squares_of(self, key: int, use: OuterProducts) -> Tensor | None:
        """Write a use down; the sum of its gradients where it came with the squared norms."""
        entry = self._entries[key]
        if entry.uses == 1:
            norms, total, way = use.squares_and_sum(entry.factor, sums=self.sums)
            entry.squares.append(norms)
            entry.ways.append(way)
            return total
        if entry.uses == 1 + len(entry.embedded):
            total, way = entry.shared.add_head(use, entry.embedded, entry.factor, sums=self.sums)
            entry.ways.append(way)
            return total
        entry.ways.append("all positions of a shared layer at once")
        entry.shared.outer.append(use)
        return None

    def squared_norms(self) -> Tensor | None:
        """Squared norms of the examples' gradients in the metric, (B,), after the backward pass; None without any."""
        for entry in self._entries:
            if entry.uses > 1:
                joined = entry.shared.squares(len(entry.proxy) if entry.proxy.ndim else 1, entry.factor)
                entry.squares = [] if joined is None else [joined]
        terms = [term for entry in self._entries for term in entry.squares]
        return torch.stack(terms).sum(0) if terms else None

    def first_non_finite(self) -> str | None:
        """Name of the first parameter with a gradient that is not finite."""
        for entry in self._entries:
            if not all(torch.isfinite(term).all() for term in entry.squares):
                return entry.name
        return None

    def ways(self) -> dict[str, str]:
        """Parameter -> how its squared norms were taken."""
        return {
            entry.name: "; ".join(dict.fromkeys(entry.ways)) or "no gradient: the loss does not depend on it"
            for entry in self._entries
        }
