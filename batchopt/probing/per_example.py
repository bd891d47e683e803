"""Gradients of single examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.gradient_norms.branches import BranchesDivergeError
from batchopt.probing.gradient_norms.examples import CannotVectoriseError
from batchopt.probing.gradient_norms.one_pass import ExampleGradients, joined, read_examples, writes_into_shared
from batchopt.probing.gradient_norms.uses import squares, wide
from batchopt.probing.losses import Batch, check_mean, is_mean, tolerance_in
from batchopt.probing.moments import GradientSums, check_finite_gradients
from batchopt.probing.reading import Reading, is_batched, rows
from batchopt.probing.task import whole_parameters

CHUNK_BYTES = 2**28
"""A pass over many examples takes at most about this much memory on a CPU."""
FIRST_CHUNK, LARGEST_CHUNK = 32, 4096
"""Examples of the first pass, which shows what one takes, and of any."""
COMPARED = 4
"""Examples whose losses are computed alone and in a batch, to see that they are the same."""


class PerExampleGradients:
    """One unit per example: one pass over many examples at once, or one backward pass each where that fails.

    Where control flow depends on data, as on whether a mask has any padding, examples that take the same branches are
    read in one pass. What cannot be followed for many examples at once are recurrent layers with packed sequences,
    branches that depend on random numbers, and those that nearly every example takes in a way of its own; the first
    failure decides for the rest. Dropout is drawn anew for every example.
    """

    group_size = drawn = cost = 1

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parameters = whole_parameters(reading.model)
        self._failure: str | None = None
        self._ways: dict[str, str] = {}
        self._passes = 1
        self._own_buffers = False
        self._compared = False
        gradient_bytes = sum(p.numel() * p.element_size() for p in self._parameters.values())
        self._largest = LARGEST_CHUNK
        # Until the first pass has shown what an example takes, the worst is assumed: every gradient formed.
        self._chunk = max(1, min(FIRST_CHUNK, CHUNK_BYTES // gradient_bytes))

    @property
    def method(self) -> str:
        """How gradients are taken, in words."""
        if self._failure is None and self._passes == 1:
            return "per-example gradients, all examples in one pass"
        if self._failure is None:
            return (
                "per-example gradients, one pass for the examples that take the same branches "
                f"({self._passes} passes at most)"
            )
        return f"per-example gradients, one backward pass each ({self._failure})"

    @property
    def ways(self) -> dict[str, str]:
        """Parameter -> how its squared norms were taken; settled once a batch has been read."""
        return self._ways

    def read(self, batch: Batch, count: int) -> GradientSums:
        """Sums over the examples of a batch."""
        return reduce(add, (self._sums(part) for part in self._parts(batch, count, weighted=True, sums=True)))

    def squared_norms(self, batch: Batch, count: int) -> Tensor:
        """Squared norms of the gradients of the examples' own losses, (count,)."""
        return torch.cat([part.squares for part in self._parts(batch, count, weighted=False, sums=False)])

    def _parts(self, batch: Batch, count: int, *, weighted: bool, sums: bool) -> Iterator[ExampleGradients]:
        # Read off the whole batch: in a chunk, another tensor may happen to have as many rows.
        batched = [k for k, leaf in enumerate(pytree.tree_leaves(batch)) if is_batched(leaf, count)]
        if not self._compared:
            self._compare(batch, count)
            self._compared = True
        begin = 0
        while begin < count:
            passes = math.ceil((count - begin) / self._chunk) if self._failure is None else count - begin
            end = begin + math.ceil((count - begin) / passes)  # of about the same size each
            part = self._part(rows(batch, count, begin, end), end - begin, batched, weighted=weighted, sums=sums)
            if part is not None:
                yield part
                begin = end

    def _part(
        self, batch: Batch, count: int, batched: list[int], *, weighted: bool, sums: bool
    ) -> ExampleGradients | None:
        """Gradients of a few examples; None where they have to be tried again, fewer at a time."""
        if self._failure is not None:
            return self._one(batch, weighted=weighted, sums=sums)
        try:
            part = self._in_few_passes(batch, count, batched, weighted=weighted, sums=sums)
        except (TaskError, NonFiniteLossError):
            raise
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            self._chunk = self._largest = count // 2
            torch.cuda.empty_cache()
            return None
        except Exception as error:  # whatever can't be followed; an error of the loss itself comes again below
            if writes_into_shared(error) and not self._own_buffers:
                self._own_buffers = True
                return None
            self._failure = _why(error)
            self._ways = dict.fromkeys(self._parameters, f"one backward pass for every example ({self._failure})")
            return None
        self._ways = part.ways
        self._chunk = max(1, min(self._largest, self._memory() // max(1, part.bytes_each)))
        return part

    def _in_few_passes(
        self, batch: Batch, count: int, batched: list[int], *, weighted: bool, sums: bool
    ) -> ExampleGradients:
        """One pass, or one for all examples that take the same branches.

        Raises:
            CannotVectoriseError: there are so many ways that passes would hold next to no examples.
        """
        leaves, structure = pytree.tree_flatten(batch)
        waiting = [list(range(count))]
        done: list[tuple[list[int], ExampleGradients]] = []
        while waiting:
            chosen = waiting.pop()
            some = list(leaves)
            for k in batched if len(chosen) < count else ():
                some[k] = leaves[k][chosen]
            try:
                part = read_examples(
                    self._reading.losses,
                    self._parameters,
                    pytree.tree_unflatten(some, structure),
                    count=len(chosen),
                    batched=batched,
                    factors=self._reading.factors,
                    weighted=weighted,
                    sums=sums,
                    own_buffers=self._own_buffers,
                )
            except BranchesDivergeError as error:
                waiting += [[chosen[i] for i in group] for group in error.groups]
                if len(waiting) + len(done) > max(2, count // 2):
                    raise CannotVectoriseError(f"{error} in a batch of {len(chosen)}") from None
            else:
                done.append((chosen, part))
        self._passes = max(self._passes, len(done))
        return joined(done) if len(done) > 1 else done[0][1]

    def _one(self, batch: Batch, *, weighted: bool, sums: bool) -> ExampleGradients:
        """The gradient of a batch of one example."""
        losses, weights = self._reading.losses(batch)
        gradients = self._reading.gradients(losses[0])
        check_finite_gradients(gradients)
        weight = torch.ones_like(losses) if weights is None or not weighted else weights
        in_metric = self._reading.in_metric({name: gradient[None] for name, gradient in gradients.items()})
        square = torch.stack([squares(g.reshape(1, -1), dims=(1,)) for g in in_metric.values()]).sum(0)
        total = tuple(gradient * weight for gradient in gradients.values()) if sums else ()
        return ExampleGradients(
            squares=square * weight.detach().square(),
            weights=weights,
            total=total,
            total_squared=None if weights is None else tuple(gradient * weight for gradient in total),
            ways=self._ways,
            bytes_each=0,
        )

    def _sums(self, part: ExampleGradients) -> GradientSums:
        weights = None if part.weights is None else part.weights.double()
        units = float(len(part.squares))
        return GradientSums(
            units=len(part.squares),
            weights=units if weights is None else weights.sum().item(),
            weights_squared=units if weights is None else weights.square().sum().item(),
            total=self._flat(part.total),
            total_squared=None if part.total_squared is None else self._flat(part.total_squared),
            squares=part.squares.double().sum().item(),
        )

    def _flat(self, gradients: tuple[Tensor, ...]) -> Tensor:
        in_metric = self._reading.in_metric(dict(zip(self._parameters, gradients, strict=True)))
        return torch.cat([wide(gradient).flatten() for gradient in in_metric.values()])

    def _memory(self) -> int:
        """Bytes that a pass may take."""
        if self._reading.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._reading.device)[0]) // 2
        return CHUNK_BYTES

    def _compare(self, batch: Batch, count: int) -> None:
        """Raise where an example's loss depends on the batch that it is in.

        Raises:
            TaskError: as where a loss is divided by the size of the batch.
        """
        few = min(count, COMPARED)
        if few < 2:
            return
        with torch.no_grad():
            together, again = (self._reading.losses(rows(batch, count, 0, few))[0] for _ in range(2))
            if not torch.equal(together, again):  # random: dropout, a sampled latent variable
                return
            singles = [self._reading.losses(rows(batch, count, i, i + 1)) for i in range(few)]
        tolerance = tolerance_in(self._reading.autocast)
        if is_mean(together):
            check_mean(together, singles, tolerance=tolerance)
            return
        alone = torch.cat([losses for losses, _ in singles])
        difference = (together - alone).abs()
        if bool((difference > tolerance * together.abs().max()).any()):
            i = int(difference.argmax())
            raise TaskError(
                "an example's loss must not depend on the batch it is in, and the same example's is "
                f"{float(together[i]):.6g} in a batch of {few} and {float(alone[i]):.6g} alone: return each example's "
                "own loss (reduction='none', not divided by the size of the batch), and look for layers that mix the "
                "examples of a batch; if they do so by design, measure with group_size"
            )


def _why(error: Exception) -> str:
    """Type and first line of an error, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if isinstance(error, CannotVectoriseError) else f"{type(error).__name__}: {text}".removesuffix(": ")
