"""A schedule that is corrected while training.

The forecast's critical batch size comes from a probe, which ended early. While the training goes on, two things show
how right it is: the loss, which says how far the run has come, and the noise scale, which moves with the critical batch
size. The rest of the run is planned again with what they say.

Notation
    c    what the critical batch size is, over what was forecast
    K    how much of what the measured noise scale says is believed: 1 where the forecast's is unknown, 0 where the
         measured one is
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from batchopt._checks import check_count, check_positive
from batchopt._codec import Record
from batchopt.errors import UnreachableGoalError
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.noise_trend import READING_SD, log_standard_error
from batchopt.forecasting.planner import is_doubling
from batchopt.forecasting.run_path import path_of, steps_to_loss
from batchopt.noise_scale import NoiseScale
from batchopt.planning.choice import candidate_batch_sizes
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Plan
from batchopt.planning.staging import Path, cheapest_rising, segments_of
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.schedules.shapes import ending_at

WIDEST = math.log(30.0)
"""A noise scale that is further from its forecast is not of the same quantity."""
LONGEST, LEAST_EXTENSION = 3.0, 0.05
"""A run that is to reach a loss goes on for at most this many times the examples that were planned, and is made longer
by this share of what was seen at least."""


@dataclass(frozen=True, slots=True)
class Move(Record):
    """A correction that was made.

    Attributes:
        examples: seen when it was made.
        loss: that was evaluated there.
        before: batch size until then.
        after: batch size from then on.
        gain: share of the predicted cost of the rest that it saves.
        correction: c.
    """

    SCHEMA: ClassVar[str] = "batchopt.move/1"

    examples: int
    loss: float
    before: int
    after: int
    gain: float
    correction: float


@dataclass(frozen=True, slots=True)
class Adapted(Record):
    """Where an adaptive schedule is.

    Attributes:
        schedule: what was done so far, and what is planned from there.
        log_correction: log c.
        moves: what was changed.
    """

    SCHEMA: ClassVar[str] = "batchopt.adapted/1"

    schedule: Schedule
    log_correction: float = 0.0
    moves: tuple[Move, ...] = ()


class AdaptiveSchedule:
    """The schedule of a plan, corrected while training.

    Give it to `train` in place of a schedule, or in a loop of your own call `update` now and then, and take the batches
    from `scheduled_loader(dataset, adaptive)` and the learning rate from `schedule.multiplier_of`. What workers have
    fetched ahead keeps its size.

    The batch size moves only where that is predicted to save a share `threshold` of the cost of what is left, by
    doublings of the plan's batch size, within bounds. Where the goal is a loss and the run is behind, it is made
    longer; it is never more than three times as long as planned. What was done is `schedule`, which can be saved and
    followed again.

    A learning rate that decays does so over the examples that the run is then to have: where it is made longer, the
    rate goes up a little.

    Do not trust it further than the noise scale: where that does not move with the critical batch size, neither should
    the batch.

    Args:
        plan: whose schedule it starts with, and whose goal it serves.
        forecast: that the plan was made from.
        threshold: least share of the predicted cost of the rest that a move must save.
        batch_sizes: smallest and largest batch size; up to the forecast's `batch_size_limit` if None.
        multiple_of: batch sizes are multiples of this.

    Raises:
        UnreachableGoalError: no doubling or halving of the plan's batch size lies within the bounds.
        ValueError: the plan was made from another forecast.

    Example:
        >>> adaptive = AdaptiveSchedule(plan, forecast)                                   # doctest: +SKIP
        >>> result = train(task, adaptive)                                                # doctest: +SKIP
        >>> result.schedule.save("realised.json")                                         # doctest: +SKIP
    """

    def __init__(
        self,
        plan: Plan,
        forecast: Forecast,
        *,
        threshold: float = 0.05,
        batch_sizes: tuple[int, int] | None = None,
        multiple_of: int = 1,
    ) -> None:
        if not isinstance(plan, Plan) or not isinstance(forecast, Forecast):
            raise TypeError(
                f"plan and forecast must be a batchopt.Plan and the batchopt.Forecast that it was made from, got "
                f"{type(plan).__name__} and {type(forecast).__name__}"
            )
        check_positive("threshold", threshold)
        self._plan, self._forecast, self._threshold = plan, forecast, threshold
        low, high = batch_sizes or (1, forecast.batch_size_limit)
        candidates = candidate_batch_sizes(low, high, multiple_of=multiple_of)
        limit = plan.price.largest_batch_size or math.inf
        self._sizes = [size for size in candidates if is_doubling(size, plan.batch_size) and size <= limit]
        if not self._sizes:
            raise UnreachableGoalError(
                f"a doubling or halving of the plan's batch size {plan.batch_size} must lie within {low} to {high} and "
                f"be a multiple of {multiple_of}, and none does: plan with these bounds"
            )
        _check_forecast(plan, forecast)
        self._first = _by_whole_batches(plan.schedule) if isinstance(plan.goal, ReachLoss) else plan.schedule
        self._state, self._handed_out = Adapted(self._first), 0

    @property
    def schedule(self) -> Schedule:
        """What was done so far, and what is planned from there."""
        return self._state.schedule

    @property
    def examples(self) -> int:
        """Examples of the whole run, as things are."""
        return self.schedule.examples

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of the schedule, as things are."""
        return self.schedule.segments

    @property
    def steps(self) -> int:
        """Steps of the whole run, as things are."""
        return self.schedule.steps

    @property
    def moves(self) -> tuple[Move, ...]:
        """The corrections so far."""
        return self._state.moves

    @property
    def correction(self) -> float:
        """The critical batch size over what was forecast, as things are."""
        return math.exp(self._state.log_correction)

    def __call__(self, examples_seen: int) -> int:
        """Batch size of the step that begins at `examples_seen`."""
        return self.schedule(examples_seen)

    def batches(self, start_examples: int = 0) -> Iterator[tuple[int, int]]:
        """(examples seen, batch size) of every step from `start_examples` on, each by the schedule as it is by then."""
        seen = start_examples
        while seen < self.examples:
            size = min(self(seen), self.examples - seen)
            yield seen, size
            seen += size

    def hand_out(self, examples: int) -> None:
        """Say that batches up to so many examples are drawn: they keep their sizes."""
        self._handed_out = max(self._handed_out, examples)

    def update(self, examples_seen: int, loss: float, noise: NoiseScale | None = None) -> bool:
        """Correct the rest of the schedule by what the training shows, and say whether it moved.

        Args:
            examples_seen: so far.
            loss: evaluated at that point.
            noise: the noise scale of a `NoiseScaleMonitor`; None, or unresolved, leaves the last correction.

        Raises:
            ValueError: the loss is not positive.
        """
        check_count("examples_seen", examples_seen, least=0)
        check_positive("loss", loss)
        if noise is not None and not isinstance(noise, NoiseScale):
            raise TypeError(f"noise must be a batchopt.NoiseScale, got {type(noise).__name__}: give monitor.reading")
        if noise is not None and noise.resolved:
            self._state = replace(self._state, log_correction=self._log_correction(loss, noise))
        now = max(examples_seen, self._handed_out)
        rest = self._rest(loss)
        if rest is None:
            return False
        path, multipliers, sizes = rest
        planned = self._planned(path, now)
        if isinstance(self._plan.goal, ReachLoss):
            self._extend(now, float(np.sum(path.steps_at(planned) * planned)))
        if now >= self.examples:
            return False
        chosen = cheapest_rising(path.costs_at(np.array(sizes, float), self._plan.price))
        as_planned = path.cost(planned, self._plan.price)
        gain = 1.0 - path.cost(np.array(sizes, float)[chosen], self._plan.price) / as_planned
        if gain < self._threshold:
            return False
        before = self.schedule(now)
        segments, end = segments_of(path, sizes, chosen, multipliers, start=now)
        self._adopt(now, segments, end)
        move = Move(now, loss, before, self.schedule(now), gain, self.correction)
        self._state = replace(self._state, moves=(*self._state.moves, move))
        return True

    def begin(self) -> Schedule:
        """Forget what was done, and begin a training: by the plan's schedule, which is given.

        Where the goal is a loss, the plan's end is moved to that of a whole batch.
        """
        self._state, self._handed_out = Adapted(self._first), 0
        return self._first

    def fingerprint(self) -> str:
        """Of what decides how it is corrected."""
        decides = (self._plan.to_json(), self._forecast.to_json(), self._threshold, self._sizes)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]

    def state(self) -> Adapted:
        """Where it is: a record to go on from with `load_state`."""
        return self._state

    def load_state(self, state: Adapted) -> None:
        """Go on from where another was."""
        self._state, self._handed_out = state, 0

    def _log_correction(self, loss: float, noise: NoiseScale) -> float:
        """log c, by the measured noise scale and the expected one, each as far as it is known."""
        expected = self._expected_noise(loss)
        if expected is None:
            return self._state.log_correction
        mean, sd = expected
        measured = math.log(noise.batch_size.value)
        believed = sd**2 / (sd**2 + log_standard_error(noise.batch_size) ** 2 + READING_SD**2)
        return believed * float(np.clip(measured - mean, -WIDEST, WIDEST))

    def _expected_noise(self, loss: float) -> tuple[float, float] | None:
        """Mean and standard deviation of the log noise scale at a loss, as the forecast has it; None without readings.

        Beyond the probe's readings it changes as the critical batch size does: what they differ by stays.
        """
        trend = self._forecast.noise_trend
        if trend is None:
            return None
        nearest = min(max(loss, trend.measured[0]), trend.measured[1])
        mean, sd = trend.log_moments(nearest)
        changes = self._log_critical(loss) - self._log_critical(nearest)
        return mean + float(changes[0]), math.hypot(sd, float(np.std(changes[1:])) if len(changes) > 1 else 0.0)

    def _log_critical(self, loss: float) -> np.ndarray:
        """log of the local critical batch size at a loss: the best guess, then the draws, (1 + n_draws,)."""
        table = self._forecast.law.table()
        v = np.minimum(table.v_of_loss(min(loss, self._forecast.initial_loss)), table.grid[-1])
        return np.asarray(table.log_b(v[:, None])[:, 0])

    def _rest(self, loss: float) -> tuple[Path, np.ndarray, list[int]] | None:
        """What is left at a loss, corrected; learning-rate multipliers; sizes. None where nothing is left."""
        plan, law = self._plan, self._forecast.law
        first = steps_to_loss(law, plan.batch_size, plan.learning_rate, min(loss, law.initial_loss))
        last = steps_to_loss(law, plan.batch_size, plan.learning_rate, plan.best.loss.value)
        if not last > first:
            return None
        sizes = sorted({*self._sizes, plan.batch_size})
        path, multipliers = path_of(
            law, plan.batch_size, plan.learning_rate, first=first, last=last, batch_sizes=sizes
        )  # fmt: skip
        own = [sizes.index(size) for size in self._sizes]
        return path.corrected(self.correction), multipliers[own], self._sizes

    def _planned(self, path: Path, now: int) -> np.ndarray:
        """The batch size that each piece of the rest would have by the schedule as it is, (m,)."""
        sizes, seen = np.empty(len(path.steps)), float(now)
        for i in range(len(sizes)):
            sizes[i] = self.schedule(round(seen))
            seen += float(path.steps_at(sizes[i])[i] * sizes[i])
        return sizes

    def _extend(self, now: int, left: float) -> None:
        """Let the run go on where it is to reach a loss, and will not by its end."""
        end = math.ceil(now + max(left, LEAST_EXTENSION * now))
        if now + left > self.examples and self._longest > self.examples > self._handed_out:
            self._state = replace(self._state, schedule=self._ending_near(self.schedule.segments, end))

    def _ending_near(self, segments: tuple[Segment, ...], end: int) -> Schedule:
        """A schedule to a loss: by whole batches, and no longer than a run may be."""
        schedule = _remade(self.schedule, segments, min(end, self._longest))
        return schedule if end >= self._longest else _by_whole_batches(schedule)

    def _adopt(self, now: int, segments: tuple[Segment, ...], end: int) -> None:
        """Keep what was done until now, and go on with other segments."""
        done = tuple(segment for segment in self.schedule.segments if segment.start_examples < now)
        schedule = _remade(self.schedule, (*done, *segments), end)
        if isinstance(self._plan.goal, LowestLoss):
            end = max(now + 1, self._examples_within(schedule, self._plan.goal.within))
        else:
            end = max(now + 1, min(end, self._longest))
        kept = tuple(segment for segment in schedule.segments if segment.start_examples < end)
        by_loss = isinstance(self._plan.goal, ReachLoss)
        schedule = self._ending_near(kept, end) if by_loss else _remade(schedule, kept, end)
        self._state = replace(self._state, schedule=schedule)

    @property
    def _longest(self) -> int:
        return round(LONGEST * self._plan.schedule.examples)

    def _examples_within(self, schedule: Schedule, budget: float) -> int:
        """Examples after which a schedule, its last batch size going on, has cost a budget."""
        starts = [segment.start_examples for segment in schedule.segments[1:]]
        seen, paid = 0, 0.0
        for segment, until in zip(schedule.segments, [*starts, math.inf], strict=True):
            price = self._plan.price(segment.batch_size)
            affordable = max(0, math.floor((budget - paid) / price))
            wanted = affordable if math.isinf(until) else max(0, math.ceil((until - seen) / segment.batch_size))
            steps = min(affordable, wanted)
            seen, paid = seen + steps * segment.batch_size, paid + steps * price
        return max(seen, 1)


def _by_whole_batches(schedule: Schedule) -> Schedule:
    """A schedule that ends with a whole batch: a run that may go on must not take a tiny one at its full rate."""
    begins = list(schedule.batches())[-1][0]
    return _remade(schedule, schedule.segments, begins + schedule(begins))


def _remade(schedule: Schedule, segments: tuple[Segment, ...], examples: int) -> Schedule:
    """A schedule with other segments and another end, to which its decay is stretched."""
    rates = schedule.learning_rate_schedule
    if rates is not None and examples != schedule.examples:
        rates = ending_at(rates, examples, before=schedule.examples)
    return Schedule(segments, examples, schedule.learning_rate, rates)


def _check_forecast(plan: Plan, forecast: Forecast) -> None:
    loss = min(plan.best.loss.value, 0.99 * forecast.initial_loss)
    try:
        critical = forecast.critical_batch_size(loss)
    except (UnreachableGoalError, ValueError):
        critical = None
    if critical is None or critical.value != plan.critical_batch_size.value:
        raise ValueError(
            f"forecast must be the one that the plan was made from, and has another critical batch size at loss "
            f"{loss:.4g}: {critical}, not {plan.critical_batch_size}"
        )
