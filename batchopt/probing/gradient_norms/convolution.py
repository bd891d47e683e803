"""Convolutions and transposed convolutions in one to three dimensions.

A convolution is a linear map of patches: its weight's gradient is a sum over positions of an output's gradient times
the patch under it. For a transposed one, input and output change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms.autocast import as_in_autocast
from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.tape import Tape


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Where a kernel looks, one number per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool


def _convolution(dimensions: int) -> Rule:
    def rule(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        kernel, dilations = tuple(weight.shape[2:]), _per_dimension(dilation, dimensions)
        if padding == "same":
            return _same_padding(recorder, input, weight, bias, dilations, groups)
        geometry = _Geometry(
            kernel=kernel,
            stride=_per_dimension(stride, dimensions),
            padding=_per_dimension(0 if padding == "valid" else padding, dimensions),
            dilation=dilations,
            output_padding=(0,) * dimensions,
            groups=groups,
            transposed=False,
        )
        return _recorded(recorder, input, weight, bias, geometry)

    return rule


def _transposed_convolution(dimensions: int) -> Rule:
    def rule(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        geometry = _Geometry(
            kernel=tuple(weight.shape[2:]),
            stride=_per_dimension(stride, dimensions),
            padding=_per_dimension(padding, dimensions),
            dilation=_per_dimension(dilation, dimensions),
            output_padding=_per_dimension(output_padding, dimensions),
            groups=groups,
            transposed=True,
        )
        return _recorded(recorder, input, weight, bias, geometry)

    return rule


RULES: dict[Any, Rule] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed_convolution(1),
    torch.conv_transpose2d: _transposed_convolution(2),
    torch.conv_transpose3d: _transposed_convolution(3),
}


def _same_padding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    """`padding="same"`: where it is odd, one more at the end of each dimension, as torch does."""
    sides: list[int] = []
    for size, step in zip(weight.shape[:1:-1], dilation[::-1], strict=True):
        total = step * (size - 1)
        sides += [total // 2, total - total // 2]
    rule = RULES[(torch.conv1d, torch.conv2d, torch.conv3d)[len(dilation) - 1]]
    return rule(recorder, F.pad(input, sides), weight, bias, 1, 0, dilation, groups)


def _recorded(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Any:
    if not (recorder.is_shared_constant(weight) and recorder.is_shared_constant(bias)):
        return NotImplemented
    if recorder.tape.key(input) is not None:
        return NotImplemented
    dimensions = len(geometry.kernel)
    with recorder.examples.together():
        inputs = as_in_autocast(recorder.examples.all_of(input))
        images = inputs.reshape(-1, *inputs.shape[-1 - dimensions :])
        (weight_proxy, weight_key), (bias_proxy, bias_key) = recorder.parameter(weight), recorder.parameter(bias)
        outputs = _Convolution.apply(
            images, weight_proxy, bias_proxy, recorder.tape, (weight_key, bias_key), geometry, len(inputs)
        )
        outputs = outputs.view(*inputs.shape[: -1 - dimensions], *outputs.shape[1:])
    return recorder.examples.one_of(outputs)


class _Convolution(torch.autograd.Function):
    """A convolution of all examples' images, (images, channels, *space), with as many images for every example."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tape: Tape,
        keys: tuple[int | None, int | None],
        geometry: _Geometry,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.tape, ctx.keys, ctx.geometry, ctx.count = tape, keys, geometry, count
        kernel, shift = weight.to(images.dtype), None if bias is None else bias.to(images.dtype)
        g = geometry
        return torch.convolution(
            images, kernel, shift, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        tape, geometry, (weight_key, bias_key) = ctx.tape, ctx.geometry, ctx.keys
        matrix = weight.to(gradient.dtype)
        to_images = _plain(gradient, images, matrix, geometry, 0) if ctx.needs_input_grad[0] else None
        outputs = _by_example(gradient, ctx.count)
        to_bias = None if bias_key is None else tape.add_sums(bias_key, outputs.flatten(3).movedim(2, 3).flatten(1, 2))
        to_weight = None
        if weight_key is not None:
            inputs = _by_example(images, ctx.count)
            near, far = (inputs, outputs) if geometry.transposed else (outputs, inputs)
            to_weight = tape.add_outer(
                weight_key,
                _positions(_grouped(near, geometry.groups)),
                _Patches(far, geometry, near.shape[3:]),
                lambda: _plain(gradient, images, matrix, geometry, 1),
            )
        return to_images, to_weight, to_bias, None, None, None, None


class _Patches:
    """What the kernel sees at every position, (B, G, channels of a group x kernel, positions), made on demand.

    Args:
        images: (B, images per example, channels, *space).
        geometry: of the kernel.
        positions: how many there are, by dimension.
    """

    def __init__(self, images: Tensor, geometry: _Geometry, positions: Sequence[int]) -> None:
        self._images = images
        self._geometry = geometry
        self._positions = tuple(positions)
        features = images.shape[2] // geometry.groups * math.prod(geometry.kernel)
        self.shape = torch.Size((len(images), geometry.groups, features, images.shape[1] * math.prod(positions)))

    def __getitem__(self, rows: slice, /) -> Tensor:
        g, images = self._geometry, self._images[rows]
        padded = F.pad(images, [side for padding in g.padding[::-1] for side in (padding, padding)])
        # A transposed convolution with output padding, or a stride that does not divide, leaves a rest unseen; where
        # the outermost patch begins, there has to be enough.
        steps = padded.stride()
        windows = padded.as_strided(
            (*padded.shape[:3], *g.kernel, *self._positions),
            (
                *steps[:3],
                *(step * dilation for step, dilation in zip(steps[3:], g.dilation, strict=True)),
                *(step * stride for step, stride in zip(steps[3:], g.stride, strict=True)),
            ),
            padded.storage_offset(),
        )
        count, per_example, channels = padded.shape[:3]
        kernel, space = math.prod(g.kernel), math.prod(self._positions)
        patches = windows.reshape(count, per_example, g.groups, channels // g.groups * kernel, space)
        return _positions(patches)


def _plain(gradient: Tensor, images: Tensor, weight: Tensor, geometry: _Geometry, which: int) -> Tensor:
    """The ordinary gradient of a convolution: of its images (0) or its weight (1)."""
    g = geometry
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        gradient, images, weight, None, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups, mask
    )[which]


def _by_example(images: Tensor, count: int) -> Tensor:
    """(B, images per example, channels, *space)."""
    return images.reshape(count, -1, *images.shape[1:])


def _grouped(images: Tensor, groups: int) -> Tensor:
    """(B, images per example, G, channels of a group, positions)."""
    count, per_example, channels = images.shape[:3]
    return images.reshape(count, per_example, groups, channels // groups, -1)


def _positions(patches: Tensor) -> Tensor:
    """(B, images, G, features, positions) -> (B, G, features, images x positions)."""
    if patches.shape[1] == 1:
        return patches[:, 0]
    return patches.movedim(1, 3).flatten(3)


def _per_dimension(value: Any, dimensions: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    values = tuple(value)
    return values * dimensions if len(values) == 1 else values
