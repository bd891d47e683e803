"""One forward and one backward pass of a batch, and what they say about every example's gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.gradient_norms import (
    attention,
    convolution,
    embedding,
    experts,
    linear,
    masks,
    normalization,
    recurrent,
)
from batchopt.probing.gradient_norms.custom_functions import custom_functions
from batchopt.probing.gradient_norms.examples import CannotVectoriseError, Examples
from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape
from batchopt.probing.gradient_norms.wrappers import without_checkpoints, without_warnings

RULES: dict[Any, Rule] = {
    **attention.RULES,
    **convolution.RULES,
    **embedding.RULES,
    **experts.RULES,
    **linear.RULES,
    **normalization.RULES,
    **recurrent.RULES,
}
ALWAYS: dict[Any, Rule] = {**attention.ALWAYS, **masks.ALWAYS, **recurrent.ALWAYS}

OVERFLOW = "the square of a gradient overflows: scale the loss down"
Losses = Any
"""(batch) -> (losses of shape (examples,), their weights or None)."""


@dataclass(frozen=True, slots=True)
class ExampleGradients:
    """What one pass over some examples gives.

    Attributes:
        squares: squared norms of the gradients in the metric, (examples,), of the weighted losses where asked for.
        weights: of the examples, or None where the loss gives none.
        total: sum of the gradients by parameter, not in the metric; empty where sums are not wanted.
        total_squared: the same with squared weights; None without weights.
        ways: parameter -> how its squared norms were taken.
        bytes_each: memory that the pass took per example, about.
    """

    squares: Tensor
    weights: Tensor | None
    total: tuple[Tensor, ...]
    total_squared: tuple[Tensor, ...] | None
    ways: dict[str, str]
    bytes_each: int


def read_examples(
    losses: Losses,
    parameters: Mapping[str, nn.Parameter],
    batch: Any,
    *,
    count: int,
    batched: Sequence[int],
    factors: Sequence[Tensor] | None = None,
    weighted: bool = True,
    sums: bool = True,
    own_buffers: bool = False,
) -> ExampleGradients:
    """Squared norms of the gradients of some examples, and their sum.

    Args:
        losses: (batch) -> (losses, weights or None); called with a batch of one example under `torch.vmap`.
        parameters: the trainable ones by name.
        batch: of the examples.
        count: examples in it.
        batched: which leaves of the batch hold one row per example.
        factors: of the metric, one for each parameter; None for the identity.
        weighted: whether an example's gradient counts with its weight.
        sums: whether the sums are wanted.
        own_buffers: see `Recorder`; needed where `writes_into_shared`.

    Raises:
        BranchesDivergeError: control flow depends on data, and the examples go different ways.
        CannotVectoriseError: a parameter is used where it can't be seen, or control flow may depend on random numbers.
        NonFiniteLossError: a gradient is NaN or infinite.
        TaskError: the loss does not depend on the parameters, or a layer couples the examples.
        Exception: whatever `torch.vmap` raises over a model that it can't follow.
    """
    tape = Tape(parameters, factors, sums=sums)
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    saved = _Saved(besides=[*tape.proxies, *tensors])
    with saved:
        values, weights = _forward(losses, tape, batch, count, batched, own_buffers)
    if not values.requires_grad:
        raise TaskError("the loss must depend on the model's trainable parameters, and it is detached from them")
    objective = values if weights is None or not weighted else values * weights
    squared = values * weights.square() if weights is not None and weighted and sums else None
    total_squared = None
    # Norms are added up in float32 also where the caller is in mixed precision.
    with torch.autocast(values.device.type, enabled=False):
        total = _gradients(objective.sum(), tape, parameters, keep=squared is not None)
        with torch.no_grad():
            squares = tape.squared_norms()
        squares = values.new_zeros(count) if squares is None else squares.detach()
        if not torch.isfinite(squares).all():
            name = tape.first_non_finite()
            raise NonFiniteLossError(OVERFLOW if name is None else not_finite(name))
        if squared is not None:
            tape.recording = False
            total_squared = _gradients(squared.sum(), tape, parameters, keep=False)
    bytes_each = tape.expanded_bytes + saved.total // count
    return ExampleGradients(squares, weights, total, total_squared, tape.ways(), bytes_each)


def joined(parts: Sequence[tuple[list[int], ExampleGradients]]) -> ExampleGradients:
    """Several passes as one.

    Args:
        parts: positions of a pass's examples in the batch, and what it gave; together all positions.
    """
    order = torch.tensor([i for chosen, _ in parts for i in chosen]).argsort()
    passes = [part for _, part in parts]
    ways: dict[str, list[str]] = {}
    for part in passes:
        for name, way in part.ways.items():
            ways.setdefault(name, []).append(way)

    def in_order(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(tuple(values))[order]

    def added(sums: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(torch.stack(each).sum(0) for each in zip(*sums, strict=True))

    weights = [part.weights for part in passes if part.weights is not None]
    squared = [part.total_squared for part in passes if part.total_squared is not None]
    return ExampleGradients(
        squares=in_order(part.squares for part in passes),
        weights=in_order(weights) if weights else None,
        total=added(part.total for part in passes),
        total_squared=added(squared) if squared else None,
        ways={name: "; ".join(dict.fromkeys(each)) for name, each in ways.items()},
        bytes_each=max(part.bytes_each for part in passes),
    )


def _forward(
    losses: Losses, tape: Tape, batch: Any, count: int, batched: Sequence[int], own_buffers: bool
) -> tuple[Tensor, Tensor | None]:
    leaves, structure = pytree.tree_flatten(batch)
    weighted = False

    def of_one(*example: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal weighted
        one = list(leaves)
        for k, leaf in zip(batched, example, strict=True):
            one[k] = leaf[None]
        given = [one[k] for k in batched]
        recorder = Recorder(tape, Examples(count), given, own_buffers=own_buffers, rules=RULES, always=ALWAYS)
        with custom_functions(recorder), recorder:
            values, weights = losses(pytree.tree_unflatten(one, structure))
        recorder.branches.check()
        weighted = weights is not None
        return values[0], torch.ones_like(values[0]) if weights is None else weights[0]

    with without_checkpoints(), without_warnings():
        values, weights = torch.vmap(of_one, randomness="different")(*(leaves[k] for k in batched))
    return values, weights.detach() if weighted else None


def _gradients(
    objective: Tensor, tape: Tape, parameters: Mapping[str, nn.Parameter], *, keep: bool
) -> tuple[Tensor, ...]:
    inputs = (*tape.proxies, *parameters.values())
    gradients = torch.autograd.grad(objective, inputs, allow_unused=True, retain_graph=keep)
    for name, gradient in zip(parameters, gradients[len(parameters) :], strict=True):
        if gradient is not None:
            raise CannotVectoriseError(f"parameter {name!r} is used outside of torch's functions")
    if not tape.sums:
        return ()
    pairs = zip(tape.proxies, gradients, strict=False)
    return tuple(torch.zeros_like(proxy) if gradient is None else gradient for proxy, gradient in pairs)


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory of what a forward pass keeps for the backward pass.

    Args:
        besides: tensors that are there anyway.
    """

    def __init__(self, besides: Sequence[Tensor]) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in besides}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def writes_into_shared(error: Exception) -> bool:
    """Whether a pass failed because an example's values were written into a tensor that all of them share."""
    return isinstance(error, RuntimeError) and "(self, *extra_args) is not possible" in str(error)


def not_finite(name: str) -> str:
    """What to say of a parameter whose gradient is not finite."""
    return f"the gradient of parameter {name!r} is NaN or infinite: look for what is not finite in data or loss"
