"""Linear maps: `F.linear`, and products of an activation with a weight matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms.autocast import as_in_autocast
from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape


def linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` with any number of leading dimensions."""
    return _recorded(recorder, input, weight, bias, transposed=False)


def product(recorder: Recorder, input: Tensor, other: Tensor) -> Any:
    """`input @ weight`."""
    return _recorded(recorder, input, other, None, transposed=True)


def biased_product(recorder: Recorder, input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> Any:
    """`torch.addmm`: bias + input @ weight."""
    if scales or input.ndim != 1:
        return NotImplemented
    return _recorded(recorder, mat1, mat2, input, transposed=True)


def transpose(recorder: Recorder, input: Tensor, dim0: int = 0, dim1: int = 1) -> Any:
    """A parameter's transposed matrix or matrices, because `input @ weight.T` is a linear map as well.

    It hangs on the parameter itself, so that a use that no rule sees brings a gradient there, and shows.
    """
    key = recorder.tape.key(input)
    dimensions = input.ndim
    if key is None or dimensions < 2 or {dim0 % dimensions, dim1 % dimensions} != {dimensions - 2, dimensions - 1}:
        return NotImplemented
    return recorder.tape.transposed(key, input.mT)


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: product,
    torch.mm: product,
    Tensor.matmul: product,
    Tensor.mm: product,
    Tensor.__matmul__: product,
    torch.addmm: biased_product,
    Tensor.T.__get__: transpose,  # type: ignore[attr-defined]
    Tensor.mT.__get__: transpose,  # type: ignore[attr-defined]
    Tensor.t: transpose,
    torch.t: transpose,
    Tensor.transpose: transpose,
    torch.transpose: transpose,
}


def _recorded(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Any:
    key = recorder.tape.transposed_key(weight)
    if key is not None:
        weight, transposed = recorder.tape.parameter(key), not transposed
    fits = weight.ndim == 2 and recorder.tape.key(input) is None and recorder.tape.transposed_key(input) is None
    if not (fits and recorder.is_shared_constant(weight) and recorder.is_shared_constant(bias)):
        return NotImplemented
    with recorder.examples.together():
        inputs = as_in_autocast(recorder.examples.all_of(input))
        (weight_proxy, weight_key), (bias_proxy, bias_key) = recorder.parameter(weight), recorder.parameter(bias)
        outputs = _Linear.apply(inputs, weight_proxy, bias_proxy, recorder.tape, (weight_key, bias_key), transposed)
    return recorder.examples.one_of(outputs)


class _Linear(torch.autograd.Function):
    """input @ weight^T + bias for all examples; `transposed`: input @ weight + bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tape: Tape,
        keys: tuple[int | None, int | None],
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.tape, ctx.keys, ctx.transposed = tape, keys, transposed
        matrix = (weight.mT if transposed else weight).to(input.dtype)
        output = F.linear(input, matrix, None if bias is None else bias.to(input.dtype))
        # As it is a view of a matrix, and autograd allows no ReLU(inplace=True) on a view made here.
        return torch.ops.aten._unsafe_view(output, output.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        tape, (weight_key, bias_key) = ctx.tape, ctx.keys
        matrix = (weight.mT if ctx.transposed else weight).to(gradient.dtype)
        to_input = gradient @ matrix if ctx.needs_input_grad[0] else None
        outputs, inputs = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (gradient, input))
        to_bias = None if bias_key is None else tape.add_sums(bias_key, outputs)
        to_weight = None
        if weight_key is not None:
            left, right = (inputs, outputs) if ctx.transposed else (outputs, inputs)
            to_weight = tape.add_outer(
                weight_key,
                left.mT[:, None],
                right.mT[:, None],
                lambda: left.flatten(0, 1).mT @ right.flatten(0, 1),
                bias_key=None if ctx.transposed else bias_key,
            )
        return to_input, to_weight, to_bias, None, None, None
