"""Mixtures of experts: `F.grouped_mm`, in which every row of an input meets the matrix of its own expert.

The rows of all examples are sorted by expert and multiplied in one call. An example's gradient of an expert's matrix is
a sum over the rows that went there.

Notation
    B, S     examples in the batch; rows of an example (tokens, each as often as it has experts)
    E        experts
    I, O     features of a row before and after
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape
from batchopt.probing.gradient_norms.uses import MOST_CANCELLATION, slices, squares, wide


def grouped_product(
    recorder: Recorder, input: Tensor, weight: Tensor, offs: Tensor | None = None, **settings: Any
) -> Any:
    """Rows with one matrix of an (E, I, O) parameter each, or of an (E, O, I) one's transposed."""
    transposed = recorder.tape.transposed_key(weight)
    key = recorder.tape.key(weight) if transposed is None else transposed
    plain = weight.ndim == 3 and input.ndim == 2 and not any(value is not None for value in settings.values())
    if key is None or offs is None or not plain or recorder.tape.key(input) is not None:
        return NotImplemented
    with recorder.examples.together():
        inputs, ends = recorder.examples.all_of(input), recorder.examples.all_of(offs).contiguous()
        positions = torch.arange(inputs.shape[1], device=inputs.device, dtype=ends.dtype)
        if not bool((ends[:, -1] == len(positions)).all()):  # of rows that are no expert's the output is undefined
            return NotImplemented
        experts = torch.searchsorted(ends, positions.expand(len(ends), -1).contiguous(), right=True)
        proxy = recorder.tape.use(key)
        matrices = proxy if transposed is None else proxy.mT
        outputs = _Grouped.apply(inputs, matrices, experts, recorder.tape, key, transposed is not None)
        outputs = outputs.view(*experts.shape, -1)  # out here: autograd allows no writes into views made inside
    return recorder.examples.one_of(outputs)


_PRODUCT: Any = getattr(torch, "_grouped_mm", None)
"""What `F.grouped_mm` calls; torch before 2.8 has none."""
RULES: dict[Any, Rule] = {} if _PRODUCT is None else {_PRODUCT: grouped_product}


@dataclass(frozen=True, slots=True)
class ExpertProducts:
    """Gradients sum_s left_s right_s^T over the rows of each expert; rounding is as of `OuterProducts`.

    Attributes:
        left: (B, S, rows of the parameter's matrices).
        right: (B, S, columns of them).
        experts: (B, S).
        count: of experts.
    """

    left: Tensor
    right: Tensor
    experts: Tensor
    count: int

    def squares(self, factor: Tensor | None) -> Tensor:
        """Squared norms, (B,): by Gram matrices, or of formed gradients where rows cancel, or in a metric."""
        count, rows, out = self.left.shape
        if factor is not None:
            return torch.cat([self._formed(slice(i, i + 1), factor) for i in range(count)])
        parts = []
        for some in slices(count, 4 * rows * (3 * rows + out + self.right.shape[2])):
            left, right = wide(self.left[some]), wide(self.right[some])
            same = self.experts[some, :, None] == self.experts[some, None, :]
            gram = (left @ left.mT) * (right @ right.mT) * same
            norms, alone = gram.sum((1, 2)), gram.diagonal(dim1=1, dim2=2).sum(1)
            for i in (MOST_CANCELLATION * norms < alone).nonzero().flatten().tolist():
                norms[i] = self._formed(slice(some.start + i, some.start + i + 1), None)[0]
            parts.append(norms)
        return torch.cat(parts)

    def dense(self, examples: slice) -> Tensor:
        """Gradients of some examples, (examples, E, *matrix)."""
        left, right, experts = wide(self.left[examples]), wide(self.right[examples]), self.experts[examples]
        gradients = left.new_zeros(len(left), self.count, left.shape[2], right.shape[2])
        for e in range(self.count):
            mine = (experts == e)[:, :, None]
            gradients[:, e] = (left * mine).mT @ right
        return gradients

    def _formed(self, examples: slice, factor: Tensor | None) -> Tensor:
        gradients = self.dense(examples)
        return squares(gradients if factor is None else gradients * factor, dims=(1, 2, 3))


class _Grouped(torch.autograd.Function):
    """Rows (B, S, I), each times the matrix of its expert, of (E, I, O): (B S, O)."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, matrices: Tensor, experts: Tensor, tape: Tape, key: int, transposed: bool
    ) -> Tensor:
        order = experts.flatten().argsort(stable=True)
        ends = torch.bincount(experts.flatten(), minlength=len(matrices)).cumsum(0, dtype=torch.int32)
        ctx.save_for_backward(input, matrices, experts, order, ends)
        ctx.tape, ctx.key, ctx.transposed = tape, key, transposed
        return _in_order(_PRODUCT(input.flatten(0, 1)[order], matrices, offs=ends), order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, matrices, experts, order, ends = ctx.saved_tensors
        ordered = gradient[order]
        to_input = to_matrices = None
        if ctx.needs_input_grad[0]:
            to_input = _in_order(_PRODUCT(ordered, matrices.mT, offs=ends), order).view(input.shape)
        each = gradient.view(*experts.shape, -1)
        left, right = (each, input) if ctx.transposed else (input, each)
        ctx.tape.add_experts(ctx.key, ExpertProducts(left, right, experts, len(matrices)))
        if ctx.tape.sums:
            to_matrices = _PRODUCT(input.flatten(0, 1)[order].mT, ordered, offs=ends)
        return to_input, to_matrices, None, None, None, None


def _in_order(sorted_rows: Tensor, order: Tensor) -> Tensor:
    rows = torch.empty_like(sorted_rows)
    rows[order] = sorted_rows
    return rows
