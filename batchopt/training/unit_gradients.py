"""One training step's gradient, taken in units that tell signal from noise.

Numbers stay on the device until they are asked for, so that a step does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchopt.errors import TaskError
from batchopt.probing.losses import Batch, Loss, batch_loss, per_example_losses, rows_of
from batchopt.probing.moments import GradientSums
from batchopt.probing.reading import rows
from batchopt.training.running_noise import StepMoments

Grads = Sequence["Tensor | None"]
"""One gradient for each parameter; None where the loss does not depend on it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step.

    Attributes:
        value: its mean loss.
        weight: sum of its weights; None where the loss gives none.
        examples: in it.
        gradients: of its mean loss times its share of the step, scaled.
    """

    value: Tensor
    weight: Tensor | None
    examples: int
    gradients: Grads


@dataclass(frozen=True, slots=True)
class Step:
    """How a step's gradient is taken.

    Attributes:
        model: without wrappers that reduce gradients.
        loss: (model, batch) -> losses, or (losses, weights).
        device: of the model.
        mixed: dtype of mixed precision; None takes the caller's own.
        scaler: of float16 gradients, or None.
    """

    model: nn.Module
    loss: Loss
    device: torch.device
    mixed: torch.dtype | None
    scaler: torch.amp.GradScaler | None

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of mixed precision as things are."""
        kind = self.device.type
        if self.mixed is None and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.mixed

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that get a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def losses(self, batch: Batch, model: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
        """Losses of the examples, and their weights."""
        model = self.model if model is None else model
        return per_example_losses(model, self.loss, batch, device=self.device, autocast=self.autocast)

    def backward(self, batch: Batch, model: nn.Module) -> tuple[Tensor, Tensor]:
        """A plain backward pass through `model`; the batch's loss and weight."""
        losses, weights = self.losses(batch, model)
        value = batch_loss(losses, weights)
        (value if self.scaler is None else self.scaler.scale(value)).backward()  # type: ignore[no-untyped-call]
        return value.detach(), losses.new_full((), len(losses)) if weights is None else weights.sum()

    def part(self, batch: Batch, share: float = 1.0) -> Part:
        """The scaled gradient of a part of a step's batch, not added to `.grad`.

        Args:
            batch: the part.
            share: of the step's examples.

        Raises:
            TaskError: the loss does not depend on the parameters.
        """
        losses, weights = self.losses(batch)
        weight = None if weights is None else weights.sum()
        value = losses.mean()
        if weights is not None and weight is not None:
            # A part without weight adds nothing to a step that has some: 0, not 0/0.
            value = (weights * losses).sum() / torch.where(weight == 0, torch.ones_like(weight), weight)
        if not value.requires_grad:
            raise TaskError("the loss must depend on the model's trainable parameters, and it is detached from them")
        objective = value * share
        scaled = objective if self.scaler is None else self.scaler.scale(objective)
        gradients = torch.autograd.grad(scaled, self.parameters(), allow_unused=True)
        return Part(value.detach(), weight, len(losses), gradients)

    def scale(self) -> Tensor:
        """What gradients are multiplied by, a scalar on the device."""
        one = torch.ones((), device=self.device)
        return one if self.scaler is None else self.scaler.scale(one)


@dataclass(frozen=True, slots=True)
class Pending:
    """Moments whose numbers may still be on their way from the device.

    Attributes:
        numbers: scalars in one tensor.
        finish: makes the moments of the numbers.
        arrived: recorded after the copy from a CUDA device; None elsewhere.
    """

    numbers: Tensor
    finish: Callable[[list[float]], StepMoments]
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, scalars: Sequence[Tensor], finish: Callable[[list[float]], StepMoments]) -> Pending:
        """Sends the scalars on their way."""
        numbers = torch.stack([scalar.detach().double() for scalar in scalars])
        if not numbers.is_cuda:
            return cls(numbers, finish, None)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(host, finish, arrived)

    @classmethod
    def known(cls, moments: StepMoments) -> Pending:
        """Moments that are there."""
        return cls(torch.empty(0), lambda _: moments, None)

    @property
    def is_ready(self) -> bool:
        """Whether the numbers are there."""
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def moments(self) -> StepMoments:
        """The moments; waits for them if it must."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.finish(self.numbers.tolist())


def read_whole(
    step: Step, gradients: Grads, *, weight: Tensor | float, examples: int, divisor: Tensor | float
) -> Pending:
    """What the gradient of a whole step says, by its norm.

    Args:
        step: how it was taken.
        gradients: of the step's mean loss, scaled.
        weight: sum of the examples' weights.
        examples: of the step.
        divisor: what their weighted losses were divided by.
    """
    there = (torch.as_tensor(number, dtype=torch.float32, device=step.device) for number in (weight, divisor))
    numbers = [square(gradients), *there, step.scale()]

    def finish(numbers: list[float]) -> StepMoments:
        whole, weight, divisor, scale = numbers
        return StepMoments.of_whole(square=whole * (divisor / scale) ** 2, weight=weight**2, share=weight**2 / examples)

    return Pending.of(numbers, finish)


def read_halves(step: Step, batch: Batch) -> tuple[Tensor, Pending]:
    """Add the batch's gradient to `.grad`, taken in two halves; its loss, and what the halves say.

    Raises:
        TaskError: a batch of one example has no halves, or the batch cannot be taken apart.
    """
    count = rows_of(batch)
    if count < 2:
        raise TaskError("a step of one example has no noise in it: accumulate gradients, and call micro_batch()")
    middle = count // 2
    bounds = (0, middle), (middle, count)
    parts = [step.part(rows(batch, count, begin, end), (end - begin) / count) for begin, end in bounds]
    weight, shares, halves = _by_weight(parts, count)
    total = _sum(*halves)
    numbers = [square(total), square(halves[0]) + square(halves[1]), weight, step.scale(), *shares]

    def finish(numbers: list[float]) -> StepMoments:
        whole_square, unit_squares, weight, scale, *shares = numbers
        factor = (weight / scale) ** 2
        return StepMoments.of_units(
            square=whole_square * factor,
            unit_squares=unit_squares * factor,
            coefficients=weight,
            coefficients_squared=weight**2 * sum(share**2 for share in shares),
            freedom=weight**2 / count,
            examples=count,
            group_size=count - middle,
        )

    pending = Pending.of(numbers, finish)
    add_gradients(step.parameters(), total)
    return parts[0].value * shares[0] + parts[1].value * shares[1], pending


def _by_weight(parts: Sequence[Part], count: int) -> tuple[Tensor, list[Tensor], list[Grads]]:
    """Weight of a step, the parts' shares of it, and what each adds to the step's gradient."""
    if any(part.weight is None for part in parts):
        shares = [part.value.new_full((), part.examples / count) for part in parts]
        return parts[0].value.new_full((), float(count)), shares, [part.gradients for part in parts]
    weights = [part.value.new_zeros(()) if part.weight is None else part.weight for part in parts]
    whole = torch.stack(weights).sum()
    shares = [weight / whole for weight in weights]
    pairs = zip(parts, shares, strict=True)
    return whole, shares, [_times(part.gradients, share * (count / part.examples)) for part, share in pairs]


def moments_of_examples(sums: GradientSums) -> StepMoments:
    """What the sums over a batch's examples say.

    Raises:
        TaskError: fewer than two examples.
    """
    n, weight = sums.units, sums.weights
    if n < 2:
        raise TaskError("a step of one example has no noise in it: accumulate gradients, and call micro_batch()")
    total = _dot(sums.total, sums.total)
    cross = total if sums.total_squared is None else _dot(sums.total_squared, sums.total)
    residuals = sums.squares - 2.0 * cross / weight + sums.weights_squared * total / weight**2
    share = weight**2 / n
    return StepMoments(
        product=total - sums.squares,
        pairs=weight**2 - sums.weights_squared,
        scatter=residuals * n / (n - 1),
        freedom=share,
        square=total,
        weight=weight**2,
        share=share,
        examples=n,
        group_size=1,
    )


def add_gradients(parameters: Sequence[nn.Parameter], gradients: Grads) -> None:
    """Add to `.grad`, as a backward pass does."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)


def square(gradients: Grads) -> Tensor:
    """Sum of the squares of all entries, a float64 scalar on their device.

    Raises:
        TaskError: there is no gradient.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        raise TaskError("the loss must depend on the model's trainable parameters, and gave none a gradient")
    full = [gradient if gradient.dtype.itemsize > 2 else gradient.float() for gradient in present]
    return torch.stack([norm.double() for norm in torch._foreach_norm(full)]).square().sum()


def flatten(gradients: Grads, parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients in one vector, zeros where there is none."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).detach().flatten() for g, p in pairs])


def unflatten(flat: Tensor, parameters: Sequence[nn.Parameter], used: Sequence[bool]) -> Grads:
    """Views of a vector in the parameters' shapes, None where unused; copies where layout or dtype differ."""
    gradients: list[Tensor | None] = []
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    for part, parameter, is_used in zip(parts, parameters, used, strict=True):
        shaped = part.view(parameter.shape)
        if not parameter.is_contiguous() or part.dtype != parameter.dtype:
            shaped = torch.empty_like(parameter).copy_(shaped)
        gradients.append(shaped.detach() if is_used else None)
    return gradients


def _times(gradients: Grads, factor: Tensor) -> Grads:
    # Never in place: autograd may hand out one tensor for two parameters, or one that is repeated without a copy.
    return [None if gradient is None else gradient * factor for gradient in gradients]


def _sum(first: Grads, second: Grads) -> Grads:
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    sums = iter(torch._foreach_add([a for a, _ in both], [b for _, b in both]) if both else ())
    return [_one_of(a, b) if a is None or b is None else next(sums) for a, b in zip(first, second, strict=True)]


def _one_of(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    either = second if first is None else first
    return None if either is None else either.clone(memory_format=torch.contiguous_format)


def _dot(first: Tensor, second: Tensor) -> float:
    # In float64: the difference of two such products is what counts.
    return float(torch.dot(first.double(), second.double()))
