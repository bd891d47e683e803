"""Embeddings: rows of a weight, looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.errors import TaskError
from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape


def embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """`F.embedding`; gradients are dense, also with `sparse`."""
    del sparse
    key = recorder.tape.key(weight)
    if key is None or max_norm is not None:
        return NotImplemented
    if scale_grad_by_freq:
        raise TaskError(
            "an embedding with scale_grad_by_freq=True divides gradients by how often a row occurs in the batch, so no "
            "example has its own gradient: set scale_grad_by_freq=False to measure"
        )
    del norm_type
    padding = None if padding_idx is None else padding_idx % len(weight)
    with recorder.examples.together():
        ids = recorder.examples.all_of(input).long()
        flat = ids.reshape(len(ids), -1)
        recorder.tape.embeds(key, flat)
        outputs = _Embedding.apply(flat, recorder.tape.use(key), recorder.tape, key, padding)
        outputs = outputs.view(*ids.shape, weight.shape[1])
    return recorder.examples.one_of(outputs)


RULES: dict[Any, Rule] = {F.embedding: embedding}


class _Embedding(torch.autograd.Function):
    """Rows `ids`, (B, T), of a weight."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, tape: Tape, key: int, padding: int | None) -> Tensor:
        ctx.ids, ctx.tape, ctx.key, ctx.padding, ctx.vocabulary = ids, tape, key, padding, len(weight)
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values = gradient
        if ctx.padding is not None:
            values = gradient.masked_fill((ctx.ids == ctx.padding)[:, :, None], 0.0)
        ctx.tape.add_rows(ctx.key, ctx.ids, values)
        total = None
        if ctx.tape.sums:
            total = torch.ops.aten.embedding_dense_backward(values, ctx.ids, ctx.vocabulary, -1, False)
        return None, total, None, None, None
