"""What a training step takes: real steps of a throw-away run, timed at batch sizes that double."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field

import torch

from batchopt._checks import check_count, check_positive
from batchopt.errors import BudgetError, NonFiniteLossError, TaskError
from batchopt.evidence import Spending
from batchopt.probing.data import available
from batchopt.probing.evaluation import check_untrained
from batchopt.probing.gradients import coupling_module
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost, fit_step_cost

REPEATS, MOST_REPEATS = 3, 15
"""Timed steps at every batch size: at least, and where time and examples are left over."""
LARGEST_UNBOUNDED = 4096
"""Largest batch that is tried without a bound of the user's where the memory's is not sought: a CPU's is the whole
machine's."""
PRECISION = 1.1
"""The largest batch that fits is known to this factor."""


def measure_step_cost(
    task: TrainingTask,
    *,
    learning_rate: float,
    max_batch_size: int | None = None,
    seconds: float = 2.0,
    max_examples: int | None = None,
    per_step: float = 0.0,
    seed: int = 0,
) -> tuple[StepCost, Spending, float]:
    """Time optimizer steps at powers of two and fit the law of the step cost.

    Times are medians after a warm-up step at each batch size, data loading included. On CUDA the batch goes on doubling
    until memory runs out, and the largest that fits is then bracketed to 10 %; examples repeat where the data set is
    smaller. On a CPU memory is never exhausted: the only bound is the user's. Do not trust it on a machine that is busy
    with something else.

    Args:
        task: what to train; not a stream.
        learning_rate: of the throw-away run.
        max_batch_size: largest batch size to try; the data set's size if None.
        seconds: about how long to time.
        max_examples: examples that may get a gradient.
        per_step: examples that a step counts for beside its own.
        seed: of the throw-away run.

    Returns:
        The step cost in seconds, what was spent, and the mean training loss of all steps: that of the initialisation
        where the learning rate moves nothing. The largest batch size is the one found by trial, or else
        `max_batch_size`.

    Raises:
        BudgetError: `max_examples` does not allow two batch sizes.
        TaskError: not even two batch sizes fit in memory, or the task cannot be trained as written.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    check_positive("seconds", seconds)
    if max_batch_size is not None:
        check_count("max_batch_size", max_batch_size, least=2)
    began = time.perf_counter()
    run = TrainingRun(task, learning_rate=learning_rate, seed=seed)
    smallest = smallest_batch(run)
    clock = _Clock(run, left=float("inf") if max_examples is None else max_examples, per_step=per_step)
    least = math.ceil(smallest + per_step + (3 * smallest + 2 * per_step) * (REPEATS + 1))
    if clock.left < least:
        raise BudgetError(f"max_examples must be at least {least} to time two batch sizes, got {max_examples}")
    clock.step(smallest)  # the first step of a process loads what torch loads late: not on the clock
    clock.deadline = time.perf_counter() + seconds
    # A process that runs out of memory leaves the others waiting for its part of a sharded model.
    # Of roll-outs the environments may be too many for the host before the batch is for the device.
    is_limit_sought = task.torch_device.type == "cuda" and not run.is_sharded and not isinstance(task.data, Rollouts)
    too_large = _time_doubling(clock, smallest, _limit(task, max_batch_size, is_limit_sought))
    if is_limit_sought and too_large is None:
        too_large = _find_too_large(clock, max_batch_size)
    largest = max_batch_size if too_large is None else _largest_that_fits(clock, too_large)
    clock.repeat_all()
    medians = {size: statistics.median(times) for size, times in clock.times.items() if times}
    if len(medians) < 2:
        raise TaskError(
            f"two batch sizes must fit in memory to see what an example costs, and only {list(medians)} did"
        )
    cost = fit_step_cost(list(medians), list(medians.values()), largest_batch_size=largest)
    counted = clock.spent + per_step * clock.steps
    spending = Spending("step time", float(clock.spent), run.steps, time.perf_counter() - began, counted)
    return cost, spending, clock.summed_loss / run.examples_seen


def smallest_batch(run: TrainingRun) -> int:
    """The fewest examples that a run can take a step on: two in every process where BatchNorm couples them."""
    if coupling_module(run.model) is None:
        return 1
    return 2 * (1 if run.group is None else run.group.count)


@dataclass(slots=True)
class _Clock:
    """Takes steps of a run, times them, and counts what they cost.

    Attributes:
        run: the throw-away run.
        left: examples that may still be spent.
        per_step: examples that a step counts for beside its own.
        deadline: clock time at which to stop.
        spent: examples spent, those of steps that ran out of memory included.
        steps: likewise.
        times: batch size -> seconds of its timed steps.
        fits: largest batch size that has been seen to fit.
        summed_loss: of all examples of its steps.
    """

    run: TrainingRun
    left: float
    per_step: float = 0.0
    deadline: float = float("inf")
    spent: int = 0
    steps: int = 0
    times: dict[int, list[float]] = field(default_factory=dict)
    fits: int = 0
    summed_loss: float = 0.0

    def affords(self, batch_size: int, steps: int) -> bool:
        return (batch_size + self.per_step) * steps <= self.left

    def step(self, batch_size: int) -> float | None:
        """Seconds of one step; None where it ran out of memory."""
        self.left -= batch_size + self.per_step
        self.spent += batch_size
        self.steps += 1
        self._synchronise()
        began = time.perf_counter()
        try:
            loss = self.run.step(batch_size)
            self._synchronise()
        except torch.cuda.OutOfMemoryError:
            taken = None
        except NonFiniteLossError:
            if self.run.steps:  # at the first step it may be anything
                check_untrained(self.run, batch_size)
            raise
        else:
            taken = time.perf_counter() - began
            self.fits = max(self.fits, batch_size)
            self.summed_loss += batch_size * loss
        group = self.run.group
        if taken is not None and group is not None:  # the slowest process sets the pace
            taken = group.largest(round(1e9 * taken)) / 1e9
        if taken is None:
            # Only here is the exception gone, and with its traceback the last references to what did fit.
            self.run.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return taken

    def measure(self, batch_size: int) -> bool:
        """Time a batch size: a warm-up step and `REPEATS` more. False where it ran out of memory."""
        for k in range(REPEATS + 1):
            taken = self.step(batch_size)
            if taken is None:
                self.times.pop(batch_size, None)
                return False
            if k > 0:
                self.times.setdefault(batch_size, []).append(taken)
        return True

    def repeat_all(self) -> None:
        """Time all batch sizes again in turn while time and examples last."""
        for _ in range(MOST_REPEATS - REPEATS):
            for size, times in self.times.items():
                if self.is_late(statistics.median(times)) or not self.affords(size, 1):
                    return
                taken = self.step(size)
                if taken is not None:
                    times.append(taken)

    def is_late(self, seconds: float) -> bool:
        """Whether so many more would go beyond the deadline."""
        late = time.perf_counter() + seconds > self.deadline
        return late if self.run.group is None else self.run.group.any_says(late)

    def _synchronise(self) -> None:
        if self.run.task.torch_device.type == "cuda":
            torch.cuda.synchronize(self.run.task.torch_device)


def _limit(task: TrainingTask, max_batch_size: int | None, is_limit_sought: bool) -> int:
    """Largest batch size to time."""
    if max_batch_size is not None:
        return max_batch_size
    most = available(task.data)
    return most if is_limit_sought else min(most, LARGEST_UNBOUNDED)


def _time_doubling(clock: _Clock, smallest: int, limit: int) -> int | None:
    """Time batch sizes that double while time and examples last, two at least; the first that does not fit, or None."""
    size = smallest
    while size <= limit and clock.affords(size, REPEATS + 1):
        # A batch twice as large takes at most twice as long, as a rule.
        if len(clock.times) >= 2:
            next_seconds = 2 * (REPEATS + 1) * statistics.median(clock.times[size // 2])
            if clock.is_late(next_seconds):
                return None
        if not clock.measure(size):
            return size
        size *= 2
    return None


def _find_too_large(clock: _Clock, max_batch_size: int | None) -> int | None:
    """Double the batch, one step each, until it does not fit; None where the bound or the examples end first."""
    size = 2 * clock.fits
    while (max_batch_size is None or size <= max_batch_size) and clock.affords(size, 1):
        if clock.step(size) is None:
            return size
        size *= 2
    return None


def _largest_that_fits(clock: _Clock, too_large: int) -> int:
    """The largest batch size that fits, by bisection below one that does not, as far as the examples go."""
    while too_large > clock.fits + 1 and too_large > PRECISION * clock.fits:
        middle = (clock.fits + too_large) // 2
        if not clock.affords(middle, 1):
            break
        if clock.step(middle) is None:
            too_large = middle
    return max(1, clock.fits)
