"""The noise scale of a training under way, read off some of its own steps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchopt._checks import check_count, check_one_of, check_positive
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.noise_scale import NoiseScale
from batchopt.probing.distributed import process_group
from batchopt.probing.losses import Batch, Loss, rows_of
from batchopt.probing.task import check_autocast, unwrapped, whole_parameters
from batchopt.training.micro_batches import MicroBatches
from batchopt.training.pace import Pace, interval
from batchopt.training.running_noise import RunningNoise
from batchopt.training.stopwatch import Mark, Stopwatch
from batchopt.training.unit_gradients import Pending, Step, read_whole
from batchopt.training.ways import GIVEN_UP_AFTER, Way, choose, ways_of

Units = Literal["auto", "examples", "halves"]
SHARE_OF_NORMS = 0.25
"""Of the overhead, what squared norms of whole gradients may take."""


class NoiseScaleMonitor:
    """Keeps a running noise scale, with its interval, inside a training loop of one's own.

    Every k-th step is taken in parts, which tell signal from noise; k is chosen so that this takes no more than a share
    `overhead` of the time of training. Other steps give the squared norm of their gradient, where `.grad` was None
    before. Afterwards `.grad` is what it would have been, but for rounding. The parts are:

    - With `backward(batch)` in place of `loss(model, batch).mean().backward()`: the two halves of the batch, or its
      examples; both are tried and timed, and the one that says more for its time is kept.
    - The same with a model inside `DistributedDataParallel`: what each rank holds. Such a step is reduced here, not by
      the model's communication hook.
    - With `micro_batch(examples)` after each backward pass of a loop that accumulates gradients, and `step()` once
      before the optimizer's: the micro-batches.

    Call them before gradients are unscaled or clipped: what is measured is the gradient as the data give it. Steps with
    a NaN or infinite gradient are left out, and counted in `skipped`. A monitor that fails says so in one warning, and
    leaves the training alone.

    The reading is of the latest half of the steps, or of the latest quarter or eighth where that gives an interval of
    25 % to both sides (or of `window`); signal and noise are averaged apart. The weights move meanwhile: it is the
    noise scale of that stretch, not of the present weights. Its interval holds what changed from one part of the
    stretch to the next, but not where a drift is going. BatchNorm in training mode normalises the halves apart on the
    steps that are read. Hooks that run after a gradient has been accumulated are not called on them.

    Args:
        model: what is trained.
        loss: (model, batch) -> losses of shape (batch,), or (losses, weights), as for `TrainingTask`; needed by
            `backward` only.
        overhead: share of the time of training that readings may take.
        every: read every so many steps, whatever it takes; None keeps to `overhead`.
        window: steps that the reading is taken from; None decides as above.
        population: examples of the data set that batches are drawn from without replacement; None where it is endless,
            or augmented at random.
        units: how `backward` reads a step: "halves", "examples", or "auto" for whichever says more for its time.
        autocast: dtype of mixed precision in `backward`; None takes that around the call.
        scaler: of a training in float16; `backward` scales the loss with it.
        across_processes: whether every step is shared by the processes of torch's default group, which add `.grad` up
            themselves, before `step(examples)`: what each of them had is then read. `DistributedDataParallel` does not
            need it.

    Raises:
        TaskError: the model has no trainable parameter, or complex or scattered ones.

    Example:
        >>> x = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> y = x.sum(1) + torch.randn(512, generator=torch.Generator().manual_seed(1))
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> monitor = NoiseScaleMonitor(model, lambda model, batch: (model(batch[0])[:, 0] - batch[1]) ** 2, every=2)
        >>> for step in range(200):
        ...     optimizer.zero_grad()
        ...     loss = monitor.backward((x[step % 16 :: 16], y[step % 16 :: 16]))
        ...     optimizer.step()
        >>> reading = monitor.reading
        >>> reading.examples, reading.kind
        (1632, 'simple')
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        *,
        overhead: float = 0.01,
        every: int | None = None,
        window: int | None = None,
        population: int | None = None,
        units: Units = "auto",
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        across_processes: bool = False,
    ) -> None:
        _check(overhead=overhead, every=every, window=window, population=population, units=units)
        check_autocast(autocast)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        inner = unwrapped(model)
        device = next(iter(whole_parameters(inner).values())).device
        self._outer = model
        is_shared = across_processes or isinstance(model, DistributedDataParallel)
        self._group = process_group(device) if is_shared else None
        self._is_added_up = across_processes and self._group is not None
        self._how = Step(inner, loss or _no_loss, device, autocast, scaler)
        self._overhead, self._every, self._population = overhead, every, population
        self._noise = RunningNoise(window)
        self._watch = Stopwatch(device)
        self._ways = ways_of(units, self._group)
        self._micro = MicroBatches(self._how, model, self._group, self._watch, is_added_up=self._is_added_up)
        self._norms = Pace()
        self._latest: Way | MicroBatches | None = None
        self._steps, self._next, self._next_norm = 0, 2, 1
        self._plain: tuple[Mark, Mark] | None = None
        self._pending: deque[tuple[int, Pending]] = deque()
        self._skipped, self._micro_failures = 0, 0
        self._failure: str | None = None
        self._trouble: Exception | None = None  # that the other processes do not know of yet
        self._norm_interval = 1

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._steps

    @property
    def skipped(self) -> int:
        """Steps that were left out, since a gradient was NaN or infinite; of those that were looked at."""
        self._arrive(wait=True)
        return self._skipped

    @property
    def every(self) -> int:
        """Steps from one that is taken in parts to the next, as things are."""
        if self._every is not None:
            return self._every
        cost = math.inf if self._latest is None else self._latest.pace.cost
        norms = 0.0 if math.isinf(self._norms.cost) else self._norms.cost / self.every_norm
        return interval(cost, max(self._overhead / 2, self._overhead - norms), least=2)

    @property
    def every_norm(self) -> int:
        """Steps from one whose gradient's norm is taken to the next, as things are."""
        if self._every is not None or not self._norms.costs:
            return 1
        return interval(self._norms.cost, SHARE_OF_NORMS * self._overhead, least=1)

    @property
    def failure(self) -> str | None:
        """Why nothing is read any more; None where all is well."""
        return self._failure

    @property
    def reading(self) -> NoiseScale | None:
        """The running noise scale; None before the first, and unresolved until there are readings enough."""
        self._arrive(wait=True)
        method = "" if self._latest is None else self._latest.method
        return self._noise.reading(method=method, population=self._population)

    def steps_needed(self, relative_width: float) -> float:
        """How many more steps it takes until the interval has (high - low) / value = `relative_width` or less.

        A guess from the scatter so far: 0 where it is narrow enough; too few where the reading is unresolved; infinite
        where there are too few readings to tell. With a `window` it says how much wider that would have to be.
        """
        check_positive("relative_width", relative_width)
        self._arrive(wait=True)
        times = self._noise.shortfall(relative_width, population=self._population)
        held = self._steps if self._noise.window is None else min(self._steps, self._noise.window)
        return math.inf if math.isinf(times) else float(math.ceil(max(0.0, times - 1.0) * held))

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient of the batch's loss to `.grad`, and read it if this step is one to be read.

        Returns:
            The loss of the batch (sum(w l) / sum(w) where it has weights), detached.

        Raises:
            TaskError: the monitor was made without a loss, or the loss does not return one value per example.
        """
        if self._is_added_up:
            raise TaskError("backward() is not for processes that add up their gradients: micro_batch() and step() are")
        self._steps += 1
        way = choose(self._ways, self._how) if self._failure is None and self._steps >= self._next else None
        value = None if way is None else self._in_parts(way, batch)
        return self._whole(batch) if value is None else value

    def micro_batch(self, examples: int, *, weight: float | None = None) -> None:
        """Say that a micro-batch of so many examples has just added its gradient to `.grad`.

        The losses of a step's micro-batches must count by their examples, or by the sum of these examples' weights, as
        they do where all are divided by one number; a scaled gradient must not be unscaled yet.

        Args:
            examples: of the micro-batch.
            weight: sum of their weights; their number if None.
        """
        check_count("examples", examples, least=0)
        weight = float(examples) if weight is None else weight
        self._micro.seen(examples, weight)
        if self._failure is None and self._steps + 1 >= self._next:
            self._micro.add(examples, weight)

    def step(self, examples: int | None = None, *, weight: float | None = None, divisor: float | None = None) -> None:
        """Say that all micro-batches of a step have been, before its gradient is unscaled, clipped or applied.

        Args:
            examples: of all of them; needed where processes have added their gradients up by themselves.
            weight: sum of their weights; what the micro-batches' add up to if None, the examples where these are given.
            divisor: what the step's weighted losses were divided by; their weight if None.

        Raises:
            ValueError: the monitor is one of several processes, and `examples` is not given.
        """
        if self._is_added_up and examples is None:
            raise ValueError("examples of all processes are needed where they add up their gradients: step(examples)")
        weight = (self._micro.weight if examples is None else float(examples)) if weight is None else weight
        examples = self._micro.examples if examples is None else examples
        self._steps += 1
        is_due = self._failure is None and self._steps >= self._next
        if is_due:
            self._read_micro_batches(divisor)
        elif self._failure is None and self._is_norm_due() and examples > 0:
            self._read_norm(weight, examples, weight if divisor is None else divisor)
        self._micro.end(was_read=is_due)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text to go on from with `load_state_dict`."""
        self._arrive(wait=True)
        paces = {name: {"costs": list(pace.costs), "seen": pace.seen} for name, pace in self._paces().items()}
        return {
            "noise": self._noise.to_json(),
            "steps": self._steps,
            "next": self._next,
            "skipped": self._skipped,
            "way": None if self._latest is None else self._latest.name,
            "paces": paces,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. The window is this monitor's own.

        Raises:
            RecordError: the readings cannot be read.
        """
        self._noise = RunningNoise(self._noise.window, RunningNoise.from_json(state["noise"]).blocks)
        self._steps, self._skipped = int(state["steps"]), int(state["skipped"])
        self._next, self._next_norm = int(state["next"]), self._steps + 1
        self._pending.clear()
        self._latest = next((way for way in self._sources() if way.name == state["way"]), None)
        for name, pace in self._paces().items():
            if name in state["paces"]:
                saved = state["paces"][name]
                pace.costs.clear()
                pace.costs.extend(saved["costs"])
                pace.seen = int(saved["seen"])

    def _sources(self) -> list[Way | MicroBatches]:
        return [*self._ways, self._micro]

    def _paces(self) -> dict[str, Pace]:
        return {"norms": self._norms, **{way.name: way.pace for way in self._sources()}}

    def _in_parts(self, way: Way, batch: Batch) -> Tensor | None:
        """The loss of a step that is read; None where that failed, and the gradient is still to be taken."""
        begin = self._watch.mark()
        try:
            value, pending = way.read(self._how, batch)
        except NonFiniteLossError:
            # The plain pass that follows finds it out by the norm, and counts the step.
            self._next, self._next_norm = self._steps + 1, self._steps
            return None
        except Exception as error:
            way.failures += 1
            self._next = self._steps + 1
            if choose(self._ways, self._how) is None:
                self._fail(error)
            return None
        way.failures = 0
        span = begin, self._watch.mark()
        if self._plain is not None:
            self._watch.submit(
                lambda seconds: way.pace.took(extra=seconds[0] - seconds[1], plain=seconds[1]), [span, self._plain]
            )
        self._plan(way, pending)
        return value

    def _whole(self, batch: Batch) -> Tensor:
        """The loss of a plain step, whose gradient may tell its norm."""
        is_fresh = all(parameter.grad is None for parameter in self._how.model.parameters())
        begin = self._watch.mark()
        value, weight = self._how.backward(batch, self._outer)
        self._plain = begin, self._watch.mark()
        if self._steps == self._next - 1 and is_fresh:
            for way in self._ways:
                way.saw_plain(self._how)
        if is_fresh and self._is_norm_due():
            self._read_norm(weight, rows_of(batch), weight)
        return value

    def _is_norm_due(self) -> bool:
        # What a rank holds after a wrapper's reduction does not say of how many examples it is.
        is_known = self._group is None or self._is_added_up
        return self._failure is None and is_known and self._steps >= self._next_norm

    def _read_norm(self, weight: Tensor | float, examples: int, divisor: Tensor | float) -> None:
        begin = self._watch.mark()
        try:
            pending = read_whole(self._how, self._micro.gradients(), weight=weight, examples=examples, divisor=divisor)
            self._pending.append((self._steps, pending))
            self._arrive(wait=False)
        except Exception as error:
            # One of several processes must not stop while the others go on: they are told at the next reading.
            self._trouble = error
            if self._group is None:
                self._fail(error)
            return
        plain = self._plain or self._micro.plain
        if plain is not None:
            self._watch.submit(
                lambda seconds: self._norms.took(extra=seconds[0], plain=seconds[1]),
                [(begin, self._watch.mark()), plain],
            )
        self._next_norm = self._steps + (self.every_norm if self._group is None else self._norm_interval)

    def _read_micro_batches(self, divisor: float | None) -> None:
        try:
            self._plan(self._micro, self._micro.finish(divisor, self._trouble))
            self._micro_failures = 0
        except Exception as error:
            self._micro_failures += 1
            if self._micro_failures == GIVEN_UP_AFTER:
                self._fail(error)

    def _plan(self, way: Way | MicroBatches, pending: Pending) -> None:
        """Keep a reading and set the step of the next; all ranks take the longest wait that any of them needs."""
        self._pending.append((self._steps, pending))
        self._latest = way
        self._watch.arrive()
        is_trial = self._every is None and not way.pace.is_known
        self._next = self._steps + self._agreed(2 if is_trial else self.every)
        if self._is_added_up:
            self._norm_interval = self._agreed(self.every_norm)
        self._arrive(wait=False)

    def _agreed(self, steps: int) -> int:
        """All processes must read the same steps."""
        return steps if self._group is None or self._every is not None else self._group.largest(steps)

    def _arrive(self, *, wait: bool) -> None:
        """Take in the readings whose numbers are there."""
        while self._pending and (wait or self._pending[0][1].is_ready):
            step, pending = self._pending.popleft()
            try:
                moments = pending.moments()
            except Exception as error:
                self._fail(error)
                return
            if moments.is_finite:
                self._noise = self._noise.add(step, moments)
            else:
                self._skipped += 1

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the noise scale is no longer read; the training is not affected ({self._failure})",
                RuntimeWarning,
                stacklevel=4,
            )


def _no_loss(model: nn.Module, batch: Batch) -> Tensor:
    del model, batch
    raise TaskError("backward() needs the monitor's loss: NoiseScaleMonitor(model, loss)")


def _check(*, overhead: float, every: int | None, window: int | None, population: int | None, units: str) -> None:
    check_positive("overhead", overhead)
    if overhead > 1:
        raise ValueError(f"overhead must be a share of the training's time, 1 at most, got {overhead:g}")
    if every is not None:
        check_count("every", every)
    if window is not None:
        check_count("window", window, least=2)
    if population is not None:
        check_count("population", population, least=2)
    check_one_of("units", units, ("auto", "examples", "halves"))
