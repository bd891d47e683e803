"""Normalisation within an example: layer, group, instance and root-mean-square norms, and BatchNorm in evaluation mode.

What is normalised over examples never comes here: `coupling_module` finds it first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape


def layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """`F.layer_norm`."""
    shape = tuple(normalized_shape)

    def normalised(inputs: Tensor) -> Tensor:
        rows = inputs.reshape(len(inputs), -1, *shape)
        return _recorded(recorder, rows, weight, bias, _LayerNorm(shape, eps)).view(inputs.shape)

    return _for_all(recorder, normalised, input, weight, bias)


def group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """`F.group_norm`: (images, channels, *space)."""

    def normalised(inputs: Tensor) -> Tensor:
        images = inputs.reshape(len(inputs), -1, inputs.shape[2], math.prod(inputs.shape[3:]))
        return _recorded(recorder, images, weight, bias, _GroupNorm(num_groups, eps)).view(inputs.shape)

    return _for_all(recorder, normalised, input, weight, bias)


def instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """`F.instance_norm`; running statistics stay as they are."""
    del momentum
    if use_input_stats:
        return group_norm(recorder, input, input.shape[1], weight, bias, eps)
    return batch_norm(recorder, input, running_mean, running_var, weight, bias, False, 0.0, eps)


def batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """`F.batch_norm` with its running statistics."""
    del momentum
    if training or running_mean is None or running_var is None:
        return NotImplemented
    channels = (-1, *(1,) * (input.ndim - 2))
    normalised = (input - running_mean.view(channels)) * torch.rsqrt(running_var + eps).view(channels)
    return _affine(recorder, normalised, weight, bias, channels).to(input.dtype)


def rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """`F.rms_norm`."""
    shape = list(normalized_shape)
    normalised = recorder.for_all(lambda inputs: F.rms_norm(inputs, shape, None, eps), input)
    return _affine(recorder, normalised, weight, None, tuple(shape))


RULES: dict[Any, Rule] = {
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
    F.rms_norm: rms_norm,
}


def _affine(
    recorder: Recorder, normalised: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    reason = "scale and shift of a norm"
    output = normalised
    if weight is not None:
        output = output * recorder.expanded(weight, reason=reason).view(shape)
    return output if bias is None else output + recorder.expanded(bias, reason=reason).view(shape)


def _for_all(
    recorder: Recorder,
    function: Callable[[Tensor], Tensor],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Any:
    if recorder.tape.key(input) is not None:
        return NotImplemented
    if not (recorder.is_shared_constant(weight) and recorder.is_shared_constant(bias)):
        return NotImplemented
    return recorder.for_all(function, input)


class _LayerNorm:
    """Normalises the trailing dimensions of (B, T, *shape)."""

    def __init__(self, shape: tuple[int, ...], eps: float) -> None:
        self.shape, self.eps = shape, eps

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, self.shape, weight, bias, self.eps)

    def to_input(self, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
        mask = [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(gradient, x, self.shape, mean, rstd, weight, None, mask)[0]

    def normalised(self, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        return (x - mean).mul_(rstd)

    def to_parameter(self, contribution: Tensor) -> Tensor:
        """(B, T, *shape)."""
        return contribution


class _GroupNorm:
    """Normalises groups of channels of (B, images, channels, positions)."""

    def __init__(self, groups: int, eps: float) -> None:
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        images = x.shape[0] * x.shape[1]
        y, mean, rstd = torch.native_group_norm(
            x.contiguous(), weight, bias, images, x.shape[2], x.shape[3], self.groups, self.eps
        )
        return y, mean, rstd

    def to_input(self, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
        images, mask = x.shape[0] * x.shape[1], [True, False, False]
        return torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(), x.contiguous(), mean, rstd, weight, images, x.shape[2], x.shape[3], self.groups, mask
        )[0]

    def normalised(self, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        grouped = x.reshape(*x.shape[:2], self.groups, -1)
        stats = (*x.shape[:2], self.groups, 1)
        return (grouped - mean.view(stats)).mul_(rstd.view(stats)).view(x.shape)

    def to_parameter(self, contribution: Tensor) -> Tensor:
        """(B, images, channels)."""
        return contribution.sum(3)


def _recorded(
    recorder: Recorder, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: _LayerNorm | _GroupNorm
) -> Tensor:
    (weight_proxy, weight_key), (bias_proxy, bias_key) = recorder.parameter(weight), recorder.parameter(bias)
    # Under autocast CUDA normalises in float32 and gives float32, a CPU keeps the type.
    wide = torch.is_autocast_enabled(x.device.type) and x.dtype not in (torch.float32, torch.float64)
    inputs = x.float() if wide else x
    output = _Norm.apply(inputs, weight_proxy, bias_proxy, recorder.tape, (weight_key, bias_key), norm)
    return output.to(x.dtype) if wide and x.device.type == "cpu" else output


class _Norm(torch.autograd.Function):
    """A norm with scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        tape: Tape,
        keys: tuple[int | None, int | None],
        norm: _LayerNorm | _GroupNorm,
    ) -> Tensor:
        y, mean, rstd = norm.forward(x, weight, bias)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.tape, ctx.keys, ctx.norm = tape, keys, norm
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        norm, tape, (weight_key, bias_key) = ctx.norm, ctx.tape, ctx.keys
        to_input = norm.to_input(gradient, x, mean, rstd, weight) if ctx.needs_input_grad[0] else None
        to_weight = to_bias = None
        if weight_key is not None:
            contribution = norm.normalised(x, mean, rstd).mul_(gradient)
            to_weight = tape.add_sums(weight_key, norm.to_parameter(contribution))
        if bias_key is not None:
            to_bias = tape.add_sums(bias_key, norm.to_parameter(gradient))
        return to_input, to_weight, to_bias, None, None, None
