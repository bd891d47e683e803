"""A training step read by what each of its micro-batches adds to the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from batchopt.errors import TaskError
from batchopt.probing.distributed import DefaultGroup
from batchopt.training.pace import Pace
from batchopt.training.running_noise import StepMoments
from batchopt.training.stopwatch import Mark, Span, Stopwatch
from batchopt.training.unit_gradients import Pending, Step, square

CHANGED = 1e-3
"""Relative change of the squared gradient from which it counts as clipped or unscaled."""


class MicroBatches:
    """What the micro-batches of one step after another add to `.grad`, which is only looked at.

    Args:
        step: how gradients are taken.
        outer: the model as it is trained.
        group: the ranks of a data-parallel training; what was accumulated before they are reduced is read.
        watch: takes the times.
        is_added_up: whether `.grad` is the sum over the ranks by the end of a step.
    """

    name = "micro-batches"
    method = "the micro-batches of a step"

    def __init__(
        self,
        step: Step,
        outer: nn.Module,
        group: DefaultGroup | None,
        watch: Stopwatch,
        *,
        is_added_up: bool = False,
    ) -> None:
        self.pace = Pace()
        self._step, self._outer, self._group, self._watch = step, outer, group, watch
        self._is_added_up = is_added_up
        self._is_reduced = group is not None and not is_added_up
        self._failure: Exception | None = None
        self._begun: Mark | None = None
        self.plain: Span | None = None
        self.begin()

    def begin(self) -> None:
        """A new step."""
        self.examples, self.weight = 0, 0.0
        self._failure = None
        self._sizes: list[int] = []
        self._weights: list[float] = []
        self._squares: list[Tensor] = []
        self._accumulated: Tensor | None = None
        self._before: Sequence[Tensor | None] = []
        self._spans: list[Span] = []

    def seen(self, examples: int, weight: float) -> None:
        """A micro-batch has been, whether it is looked at or not."""
        self.examples, self.weight = self.examples + examples, self.weight + weight

    def add(self, examples: int, weight: float) -> None:
        """Look at what a micro-batch has added. What goes wrong is kept for `finish`, where ranks wait."""
        begin = self._watch.mark()
        # Set by the wrapper's forward pass: whether the backward pass after it reduces, and was not under no_sync().
        if self._is_reduced and getattr(self._outer, "require_forward_param_sync", True):
            return
        try:
            self._look(examples, weight)
        except Exception as error:
            self._failure = error
        self._spans.append((begin, self._watch.mark()))

    def finish(self, divisor: float | None = None, trouble: Exception | None = None) -> Pending:
        """What the micro-batches say.

        Args:
            divisor: what their weighted losses were divided by; the weight of those that were looked at if None.
            trouble: what went wrong before, and the other ranks are to be told.

        Raises:
            TaskError: fewer than two micro-batches, or, when the numbers are asked for, a gradient that is no longer
                what they have added up.
        """
        begin = self._watch.mark()
        self._failure = self._failure or trouble
        if self._group is None:
            pending = self._own(divisor)
        elif self._is_added_up:
            pending = self._added_up(self._group, divisor)
        else:
            pending = self._together(self._group, divisor)
        self._spans.append((begin, self._watch.mark()))
        if self.plain is not None:
            self._watch.submit(self._tell, [*self._spans, self.plain])
        return pending

    def end(self, *, was_read: bool) -> None:
        """A step is over; those that were not read are what readings are compared with."""
        now = self._watch.mark()
        if self._begun is not None and not was_read:
            self.plain = self._begun, now
        self._begun = now
        self.begin()

    def gradients(self) -> list[Tensor | None]:
        """What has been accumulated."""
        return [parameter.grad for parameter in self._step.parameters()]

    def _look(self, examples: int, weight: float) -> None:
        now = self.gradients()
        before = self._before or [None] * len(now)
        pairs = zip(now, before, strict=True)
        self._squares.append(square([g if g is None or b is None else g - b for g, b in pairs]))
        self._sizes.append(examples)
        self._weights.append(weight)
        self._accumulated = square(now)
        self._before = [None if gradient is None else gradient.clone() for gradient in now]

    def _own(self, divisor: float | None) -> Pending:
        if self._failure is not None:
            raise self._failure
        if len(self._sizes) < 2 or self._accumulated is None:
            raise TaskError(
                f"a step must have at least two micro-batches to be read, got {len(self._sizes)} (with "
                "DistributedDataParallel, under no_sync()): call backward(batch) in place of loss.backward()"
            )
        last = self._accumulated if self._is_reduced else square(self.gradients())
        unit_squares = torch.stack(self._squares).sum()
        weight, weights_squared, freedom, examples = self._coefficients()
        largest = max(self._sizes)

        def finish(numbers: list[float]) -> StepMoments:
            accumulated, last, unit_squares, scale = numbers
            if abs(last - accumulated) > CHANGED * accumulated:
                raise TaskError(
                    "step() must come before gradients are unscaled or clipped, and after the last micro_batch(): "
                    f"their squared norm was {accumulated:.6g} and is {last:.6g}"
                )
            factor = ((weight if divisor is None else divisor) / scale) ** 2
            return StepMoments.of_units(
                square=accumulated * factor,
                unit_squares=unit_squares * factor,
                coefficients=weight,
                coefficients_squared=weights_squared,
                freedom=freedom,
                examples=round(examples),
                group_size=largest,
            )

        return Pending.of([self._accumulated, last, unit_squares, self._step.scale()], finish)

    def _coefficients(self) -> tuple[float, float, float, float]:
        """Sums over the micro-batches: of w, w^2, w^2 / n and n, where w is the weight of one and n its examples."""
        pairs = [(weight, size) for weight, size in zip(self._weights, self._sizes, strict=True) if size > 0]
        weights = [weight for weight, _ in pairs]
        freedom = sum(weight**2 / size for weight, size in pairs)
        return sum(weights), sum(weight**2 for weight in weights), freedom, float(sum(self._sizes))

    def _together(self, group: DefaultGroup, divisor: float | None) -> Pending:
        """The same, added up over the ranks: all of them say the same."""
        failure: Exception | None = None
        moments: StepMoments | None = None
        try:
            moments = self._own(divisor).moments()
        except Exception as error:  # held back until the others know
            failure = error
        sums = group.add_up(torch.tensor(_numbers(moments), dtype=torch.float64)).tolist()
        if failure is not None:
            raise failure
        if sums[0] or moments is None:
            raise TaskError("the micro-batches could not be read, since another rank failed")
        product, pairs, scatter, freedom, squared, weight, share, examples = sums[1:]
        return Pending.known(
            StepMoments(product, pairs, scatter, freedom, squared, weight, share, round(examples), moments.group_size)
        )

    def _added_up(self, group: DefaultGroup, divisor: float | None) -> Pending:
        """What the micro-batches of all ranks say, of whose gradients `.grad` is the sum."""
        failure, whole, numbers = self._failure, 0.0, [1.0] + [0.0] * 5
        try:
            if failure is None:
                whole = float(square(self.gradients()))
                units = float(torch.stack(self._squares).sum()) if self._squares else 0.0
                numbers = [0.0, units, *self._coefficients()]
        except Exception as error:  # held back until the others know
            failure = error
        sums = group.add_up(torch.tensor(numbers, dtype=torch.float64)).tolist()
        failures, units, weight, weights_squared, freedom, examples = sums
        if failure is not None:
            raise failure
        if failures:
            raise TaskError("the micro-batches could not be read, since another rank failed")
        factor = ((weight if divisor is None else divisor) / float(self._step.scale())) ** 2
        return Pending.known(
            StepMoments.of_units(
                square=whole * factor,
                unit_squares=units * factor,
                coefficients=weight,
                coefficients_squared=weights_squared,
                freedom=freedom,
                examples=round(examples),
                group_size=max(1, round(examples * weights_squared / weight**2)) if weight else 1,
            )
        )

    def _tell(self, seconds: list[float]) -> None:
        self.pace.took(extra=sum(seconds[:-1]), plain=seconds[-1])


def _numbers(moments: StepMoments | None) -> list[float]:
    """Whether it failed, then the sums."""
    if moments is None:
        return [1.0] + [0.0] * 8
    m = moments
    return [0.0, m.product, m.pairs, m.scatter, m.freedom, m.square, m.weight, m.share, m.examples]
