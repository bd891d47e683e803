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
        self.examples = 0
        self._step, self._outer, self._group, self._watch = step, outer, group, watch
        self._is_added_up = is_added_up
        self._is_reduced = group is not None and not is_added_up
        self._failure: Exception | None = None
        self._begun: Mark | None = None
        self.plain: Span | None = None
        self.begin()

    def begin(self) -> None:
        """A new step."""
        self.examples = 0
        self._failure = None
        self._sizes: list[int] = []
        self._squares: list[Tensor] = []
        self._accumulated: Tensor | None = None
        self._before: Sequence[Tensor | None] = []
        self._spans: list[Span] = []

    def add(self, examples: int) -> None:
        """Look at what a micro-batch has added. What goes wrong is kept for `finish`, where ranks wait."""
        begin = self._watch.mark()
        # Set by the wrapper's forward pass: whether the backward pass after it reduces, and was not under no_sync().
        if self._is_reduced and getattr(self._outer, "require_forward_param_sync", True):
            return
        try:
            self._look(examples)
        except Exception as error:
            self._failure = error
        self._spans.append((begin, self._watch.mark()))

    def finish(self) -> Pending:
        """What the micro-batches say.

        Raises:
            TaskError: fewer than two micro-batches, or, when the numbers are asked for, a gradient that is no longer
                what they have added up.
        """
        begin = self._watch.mark()
        if self._group is None:
            pending = self._own()
        else:
            pending = self._added_up(self._group) if self._is_added_up else self._together(self._group)
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

    def _look(self, examples: int) -> None:
        now = self.gradients()
        before = self._before or [None] * len(now)
        pairs = zip(now, before, strict=True)
        self._squares.append(square([g if g is None or b is None else g - b for g, b in pairs]))
        self._sizes.append(examples)
        self._accumulated = square(now)
        self._before = [None if gradient is None else gradient.clone() for gradient in now]

    def _own(self) -> Pending:
        if self._failure is not None:
            raise self._failure
        if len(self._sizes) < 2 or self._accumulated is None:
            raise TaskError(
                f"a step must have at least two micro-batches to be read, got {len(self._sizes)} (with "
                "DistributedDataParallel, under no_sync()): call backward(batch) in place of loss.backward()"
            )
        last = self._accumulated if self._is_reduced else square(self.gradients())
        unit_squares = torch.stack(self._squares).sum()
        sizes = list(self._sizes)

        def finish(numbers: list[float]) -> StepMoments:
            accumulated, last, unit_squares, scale = numbers
            if abs(last - accumulated) > CHANGED * accumulated:
                raise TaskError(
                    "step() must come before gradients are unscaled or clipped, and after the last micro_batch(): "
                    f"their squared norm was {accumulated:.6g} and is {last:.6g}"
                )
            examples = sum(sizes)
            factor = (examples / scale) ** 2
            return StepMoments.of_units(
                square=accumulated * factor,
                unit_squares=unit_squares * factor,
                coefficients=examples,
                coefficients_squared=sum(size**2 for size in sizes),
                freedom=examples,
                examples=examples,
                group_size=max(sizes),
            )

        return Pending.of([self._accumulated, last, unit_squares, self._step.scale()], finish)

    def _together(self, group: DefaultGroup) -> Pending:
        """The same, added up over the ranks: all of them say the same."""
        failure: Exception | None = None
        moments: StepMoments | None = None
        try:
            moments = self._own().moments()
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

    def _added_up(self, group: DefaultGroup) -> Pending:
        """What the micro-batches of all ranks say, of whose gradients `.grad` is the sum."""
        numbers = [1.0, 0.0, 0.0, 0.0]
        if self._failure is None and self._sizes:
            squares = float(torch.stack(self._squares).sum())
            numbers = [0.0, squares, sum(self._sizes), sum(size**2 for size in self._sizes)]
        failures, unit_squares, examples, coefficients_squared = group.add_up(
            torch.tensor(numbers, dtype=torch.float64)
        ).tolist()
        if failures:
            raise self._failure or TaskError("the micro-batches could not be read, since another rank failed")
        factor = (examples / float(self._step.scale())) ** 2
        return Pending.known(
            StepMoments.of_units(
                square=float(square(self.gradients())) * factor,
                unit_squares=unit_squares * factor,
                coefficients=examples,
                coefficients_squared=coefficients_squared,
                freedom=examples,
                examples=round(examples),
                group_size=round(coefficients_squared / examples),
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
