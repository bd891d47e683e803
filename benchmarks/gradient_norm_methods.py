"""The ways to squared per-example gradient norms that are compared, each as its authors would have it used."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from models import Batch, Workload
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from batchopt.probing.gradients import Reading, make_reader, per_example_squared_norms

CHUNKS = (4, 16, 64, 256, 1024)
"""Examples at a time that are tried for vmap, which is measured with the fastest."""
TRYING_SECONDS = 20
"""No larger chunk is tried once so much time has passed."""


class Sums(NamedTuple):
    """What a step leaves."""

    squares: Tensor | None
    """Squared norms, shape (examples,); their sum, shape (), from a method that gives no more; None from plain."""
    mean: Sequence[Tensor] | None
    """The mean gradient by parameter; None from a method that does not give it."""


Step = Callable[[Batch], Sums]


class Method(NamedTuple):
    """One way to the norms."""

    make_step: Callable[[Workload, int | None], Step]
    """(workload on its device, examples at a time or None) -> step; works on a copy of the model."""
    package: str
    """Whose version is stated."""
    words: str

    def version(self) -> str:
        return version(self.package)


def plain(workload: Workload, chunk: int | None = None) -> Step:
    """Forward and backward of the mean loss."""
    model, loss = copy.deepcopy(workload.model), workload.loss

    def step(batch: Batch) -> Sums:
        model.zero_grad(set_to_none=True)
        loss(model, batch).mean().backward()
        return Sums(None, _gradients(model))

    return step


def batchopt_sums(workload: Workload, chunk: int | None = None) -> Step:
    """What a measurement of the noise scale reads: the sum of the squared norms and the sum of the gradients."""
    model = copy.deepcopy(workload.model)
    parameters = list(model.parameters())
    reader = make_reader(Reading(model, workload.loss, parameters[0].device), group_size=None)

    def step(batch: Batch) -> Sums:
        count = len(batch[0])
        sums = reader.read(batch, count)
        parts = (sums.total / count).split([p.numel() for p in parameters])
        return Sums(torch.tensor(sums.squares), [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])

    return step


def batchopt_norms(workload: Workload, chunk: int | None = None) -> Step:
    """The squared norms alone."""
    model = copy.deepcopy(workload.model)
    return lambda batch: Sums(per_example_squared_norms(model, workload.loss, batch), None)


def opacus_hooks(workload: Workload, chunk: int | None = None) -> Step:
    """Every example's gradient, stored."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    model = GradSampleModule(ModuleValidator.fix(copy.deepcopy(workload.model)), loss_reduction="mean")

    def step(batch: Batch) -> Sums:
        model.zero_grad(set_to_none=True)
        workload.loss(model, batch).mean().backward()
        norms = [p.grad_sample.flatten(1).norm(2, dim=1) for p in model.parameters()]
        return Sums(torch.stack(norms, dim=1).norm(2, dim=1).square(), _gradients(model))

    return step


def opacus_ghost(workload: Workload, chunk: int | None = None) -> Step:
    """The first of the two backward passes, which leaves the norms, and the mean gradient in `.grad`."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.validators import ModuleValidator

    fixed = ModuleValidator.fix(copy.deepcopy(workload.model))
    model = GradSampleModuleFastGradientClipping(fixed, loss_reduction="mean", use_ghost_clipping=True)

    def step(batch: Batch) -> Sums:
        model.zero_grad(set_to_none=True)
        workload.loss(model, batch).mean().backward()
        return Sums(model.get_norm_sample().square(), _gradients(model))

    return step


def backpack_norms(workload: Workload, chunk: int | None = None) -> Step:
    """BatchL2Grad, of the summed loss: of the mean loss it would give norms divided by the squared batch size."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model = copy.deepcopy(workload.model)
    model = extend(model, use_converter=not isinstance(model, nn.Sequential))

    def step(batch: Batch) -> Sums:
        model.zero_grad(set_to_none=True)
        with backpack(BatchL2Grad()):
            workload.loss(model, batch).sum().backward()
        missed = {type(m).__name__ for m in model.modules() if not _has_norms(m)}
        if missed:
            raise RuntimeError(f"no batch_l2 for the parameters of {', '.join(sorted(missed))}")
        squares = torch.stack([p.batch_l2 for p in model.parameters()]).sum(0)
        return Sums(squares, [gradient / len(squares) for gradient in _gradients(model)])

    return step


def functional_vmap(workload: Workload, chunk: int | None = None) -> Step:
    """Every example's gradient by torch.func, so many examples at a time that it takes least time."""
    model = copy.deepcopy(workload.model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss_of_one(parameters: dict[str, Tensor], *example: Tensor) -> Tensor:
        def call(*inputs: Any) -> Any:
            return functional_call(model, parameters, inputs)

        return workload.loss(call, tuple(leaf[None] for leaf in example))[0]

    def gradients(*examples: Tensor) -> dict[str, Tensor]:
        in_dims = (None, *(0 for _ in examples))
        return vmap(grad(loss_of_one), in_dims=in_dims, randomness="different")(parameters, *examples)

    return _Chunked(gradients, chunk)


class _Chunked:
    """Reduces stacked gradients, some examples at a time.

    Args:
        gradients: (examples) -> gradients by parameter, stacked.
        chunk: examples at a time; None for the fastest on the first batch.
    """

    def __init__(self, gradients: Callable[..., dict[str, Tensor]], chunk: int | None) -> None:
        self._gradients = gradients
        self.chunk = chunk

    def __call__(self, batch: Batch) -> Sums:
        if self.chunk is None:
            self.chunk = self._fastest(batch)
        return self._reduced(batch, self.chunk)

    def _fastest(self, batch: Batch) -> int:
        sizes = [size for size in CHUNKS if size < len(batch[0])] + [len(batch[0])]
        seconds: dict[int, float] = {}
        begin = time.perf_counter()
        for size in sizes:
            if time.perf_counter() - begin < TRYING_SECONDS:
                seconds[size] = self._seconds_per_example(batch, size)
        return min(seconds, key=lambda size: seconds[size])

    def _reduced(self, batch: Batch, chunk: int) -> Sums:
        squares: list[Tensor] = []
        totals: list[Tensor] = []
        for part in zip(*(leaf.split(chunk) for leaf in batch), strict=True):
            stacked = list(self._gradients(*part).values())
            squares.append(torch.stack([g.flatten(1).norm(2, dim=1) for g in stacked]).square().sum(0))
            totals = _added(totals, [g.sum(0) for g in stacked])
        return Sums(torch.cat(squares), [total / len(batch[0]) for total in totals])

    def _seconds_per_example(self, batch: Batch, chunk: int) -> float:
        """The second of two chunks; the first warms up."""
        few = tuple(leaf[:chunk] for leaf in batch)
        self._reduced(few, chunk)
        wait(batch[0].device)
        begin = time.perf_counter()
        self._reduced(few, chunk)
        wait(batch[0].device)
        return (time.perf_counter() - begin) / chunk


def one_at_a_time(workload: Workload, batch: Batch) -> Sums:
    """One backward pass of each example's own loss: slow, and right."""
    step = plain(workload)
    squares: list[Tensor] = []
    totals: list[Tensor] = []
    for i in range(len(batch[0])):
        gradients = [g.double() for g in step(tuple(leaf[i : i + 1] for leaf in batch)).mean or ()]
        squares.append(torch.stack([g.square().sum() for g in gradients]).sum())
        totals = _added(totals, gradients)
    return Sums(torch.stack(squares), [total / len(batch[0]) for total in totals])


def worst_error(sums: Sums, truth: Sums) -> float:
    """Largest relative error of a squared norm, or of the mean gradient if that is larger."""
    assert truth.squares is not None
    assert truth.mean is not None
    errors = []
    if sums.squares is not None:
        squares = truth.squares if sums.squares.ndim else truth.squares.sum()
        errors.append(float(((sums.squares.to(squares) - squares).abs() / squares).max()))
    if sums.mean is not None:
        squared = sum(_squared_distance(gradient, sums.mean) for gradient in truth.mean)
        errors.append(math.sqrt(squared / sum(float(gradient.square().sum()) for gradient in truth.mean)))
    return max(errors)


def _squared_distance(gradient: Tensor, others: Sequence[Tensor]) -> float:
    """From the nearest of the same shape: peers may rename and reorder the parameters."""
    return min((float((gradient - g).square().sum()) for g in others if g.shape == gradient.shape), default=math.inf)


def wait(device: torch.device) -> None:
    """Until all work on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _added(totals: list[Tensor], further: list[Tensor]) -> list[Tensor]:
    """In place, so that no more than one sum is held."""
    return [total.add_(one) for total, one in zip(totals, further, strict=True)] if totals else further


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _has_norms(module: nn.Module) -> bool:
    return all(hasattr(parameter, "batch_l2") for parameter in module.parameters(recurse=False))


METHODS = {
    "plain": Method(plain, "torch", "forward and backward"),
    "batchopt": Method(batchopt_sums, "batchopt", "norms and mean gradient, as the noise scale is measured"),
    "batchopt-norms": Method(batchopt_norms, "batchopt", "per_example_squared_norms"),
    "opacus-hooks": Method(opacus_hooks, "opacus", "GradSampleModule"),
    "opacus-ghost": Method(opacus_ghost, "opacus", "GradSampleModuleFastGradientClipping, first backward pass"),
    "backpack": Method(backpack_norms, "backpack-for-pytorch", "BatchL2Grad"),
    "vmap": Method(functional_vmap, "torch", "torch.func.vmap(grad), in chunks"),
}
OURS = ("batchopt", "batchopt-norms")
