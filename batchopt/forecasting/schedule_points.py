"""The runs of a probe as points that the schedule law is fitted to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.loss_points import TrainingOffset, loss_points
from batchopt.forecasting.schedule_fit import NoiseReadings, Points
from batchopt.forecasting.schedule_law import Course, Courses
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.noise_scale import MeasuredAt, NoiseScale, evidence_among
from batchopt.schedules.schedule import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PIECES = 14
"""A course has so many pieces, evenly over the logarithm of its steps, beside those that its points ask for."""
PIECES_OF_RAMP = 8
"""Pieces of each stretch over which the rate rises or falls: with 6 the loss at the end of a decay was off by up to 2 %
of what many pieces give, with 12 by 0.7 %."""
PIECES_OF_CURVE = 16
"""Pieces of a schedule that changes all the time."""
WELL = 0.25
"""A run that fell by less than this share of what the best of its batch size did by then, in logs, is no evidence that
its rate can be used, and stability may end below it. Set by hand, between noisy runs that decay to low losses (a third
and more) and runs that died (a tenth): without it 2 of 20 plans of the demo took a rate that kills its network."""
UNKNOWN = 4.0
"""Where no lower rate of the batch size did well, one this factor below is taken to. Set by hand."""
STUCK, BROKEN = 0.05, 0.35
"""A run whose loss ends no further than the first below the initial one, in logs, and further than the second above
that of a run of its batch size at a lower rate and no more examples, is broken: its rate is too high in a way that the
law does not describe (dead units), so it is left out and bounds the rates. Softmax regression and perceptrons of
`benchmarks/truth` have such runs. One that fell and is far behind is none: it is noisy, and decays to a low loss.
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What runs say.

    Attributes:
        points: of the runs that count.
        settings: number of the batch size, rate and seed that each point is of, (m,).
        initial_loss: mean loss at initialisation.
        unstable: (batch size, rate that did well, rate with which a run did not, or diverged): stability ends between.
        stable: (batch size, rate) of runs that did well and were as long as all that did not.
        batch_sizes: smallest and largest that was run.
        learning_rates: lowest and highest rate over the root of the batch size, of the runs that count.
        highest_rate: that a run which did well has reached.
        longest: examples of the longest run.
    """

    points: Points
    settings: NDArray[np.int_]
    initial_loss: float
    unstable: tuple[tuple[int, float, float], ...]
    stable: tuple[tuple[int, float], ...]
    batch_sizes: tuple[int, int]
    learning_rates: tuple[float, float]
    highest_rate: float
    longest: float


def evidence_of(runs: Sequence[Branch], *, initial_loss: float | None, delay: float = 0.0) -> Evidence:
    """Points of the runs of one task.

    Args:
        runs: stable ones, cooldowns, and any others.
        initial_loss: mean training loss at initialisation; None takes it from the runs.
        delay: steps that momentum lags behind.

    Raises:
        EvidenceError: no run fell.
    """
    first = initial_loss or _initial_loss(runs)
    offset = TrainingOffset(runs, first)
    broken = {id(run) for run in runs if run.outcome != "diverged" and _is_broken(run, runs, first)}
    unstable = {(run.batch_size, run.learning_rate) for run in runs if run.outcome == "diverged" or id(run) in broken}
    courses, chosen, used = [], [], []
    for run in runs:
        setting = (run.batch_size, run.learning_rate)
        if setting in unstable or not run.examples:
            continue
        points = loss_points(run, offset).after_transient(math.log(first))
        if not len(points.steps):
            continue
        edges = edges_of(run.batch_size, run.learning_rate_schedule, points.steps)
        courses.append(course_of(run.batch_size, run.learning_rate, run.learning_rate_schedule, edges, delay=delay))
        chosen.append((np.searchsorted(edges, points.steps) - 1, points.log_losses, points.errors))
        used.append(run)
    if not used:
        raise EvidenceError(
            "no run has a loss below that at initialisation: probe at lower learning rates, or with more examples"
        )
    well = [_did_well(run, used, first) for run in used]
    if not any(well):
        raise EvidenceError(
            "every run ends above the loss at initialisation: probe at lower learning rates, or with more examples"
        )
    index = np.repeat(np.arange(len(used)), [len(pieces) for pieces, _, _ in chosen])
    pieces, log_losses, errors = (np.concatenate([each[k] for each in chosen]) for k in range(3))
    keys = [(run.batch_size, run.learning_rate, run.seed) for run in used]
    numbers = np.array([sorted(set(keys)).index(key) for key in keys])
    scaled = [run.learning_rate / math.sqrt(run.batch_size) for run in used]
    return Evidence(
        points=Points(Courses(courses), index, pieces, log_losses, errors),
        settings=numbers[index],
        initial_loss=first,
        unstable=_edges(unstable, used, well),
        stable=_stable(unstable, runs, used, well),
        batch_sizes=(min(run.batch_size for run in used), max(run.batch_size for run in used)),
        learning_rates=(min(scaled), max(scaled)),
        highest_rate=max(_rate_reached(run) for run in itertools.compress(used, well)),
        longest=max(run.examples for run in used),
    )


def readings_of(
    noise_scales: Sequence[NoiseScale], runs: Sequence[Branch], *, delay: float = 0.0
) -> NoiseReadings | None:
    """The noise scales that are evidence and were resolved along runs; None if there are none."""
    courses, logs = [], []
    for scale in evidence_among(noise_scales):
        at = scale.at
        if not scale.resolved or at is None or not at.examples:
            continue
        schedule = _schedule_at(at, runs)
        edges = edges_of(at.batch_size, schedule, np.array([at.examples / at.batch_size]))
        courses.append(course_of(at.batch_size, at.learning_rate, schedule, edges, delay=delay))
        logs.append(math.log(scale.batch_size.value))
    return NoiseReadings(Courses(courses), np.array(logs)) if courses else None


def _schedule_at(at: MeasuredAt, runs: Sequence[Branch]) -> LearningRateSchedule | None:
    """Of the run that a reading was taken along: one that had not decayed by then, if there is one."""
    own = [run for run in runs if (run.batch_size, run.learning_rate) == (at.batch_size, at.learning_rate)]
    schedules = [run.learning_rate_schedule for run in own]
    stable = (each for each in schedules if each is None or each(at.examples) >= 0.5 * max(each.multipliers))
    return next(stable, schedules[0] if schedules else None)


def _edges(
    unstable: set[tuple[int, float]], used: Sequence[Branch], well: Sequence[bool]
) -> tuple[tuple[int, float, float], ...]:
    """Where stability ends: between the highest rate that did well, and one above it that did not, or diverged."""
    fine = {(run.batch_size, run.learning_rate) for run in itertools.compress(used, well)}
    edges = []
    for size, rate in unstable | ({(run.batch_size, run.learning_rate) for run in used} - fine):
        below = [other for own, other in fine if own == size and other < rate]
        above = [other for own, other in fine if own == size and other > rate]
        if not above:
            edges.append((size, max(below, default=rate / UNKNOWN), rate))
    return tuple(sorted(edges))


def _stable(
    unstable: set[tuple[int, float]], runs: Sequence[Branch], used: Sequence[Branch], well: Sequence[bool]
) -> tuple[tuple[int, float], ...]:
    """Rates of runs that did well and are no shorter than any that did not."""
    poor = [run.examples for run, did_well in zip(used, well, strict=True) if not did_well]
    poor += [run.examples for run in runs if (run.batch_size, run.learning_rate) in unstable]
    long = [run for run in itertools.compress(used, well) if run.examples >= max(poor, default=0)]
    return tuple(sorted({(run.batch_size, _rate_reached(run)) for run in long}))


def _rate_reached(run: Branch) -> float:
    """The highest learning rate that a run took: it may have ended within its warm-up."""
    schedule = run.learning_rate_schedule
    if schedule is None:
        return run.learning_rate
    seen = [m for n, m in zip(schedule.examples, schedule.multipliers, strict=True) if n <= run.examples]
    return run.learning_rate * max(*seen, schedule(run.examples))


def _did_well(run: Branch, used: Sequence[Branch], initial_loss: float) -> bool:
    """Whether a run's log loss fell by the share `WELL` of what the best of its batch size did by the same examples."""
    losses = [
        loss
        for other in used
        if other.batch_size == run.batch_size and _is_decayed(run) >= _is_decayed(other)
        if (loss := _loss_by(other, run.examples)) is not None
    ]
    best = math.log(initial_loss / max(min(losses), 1e-300))  # a run is one of these itself
    own = math.log(initial_loss / max(run.last_loss, 1e-300))
    return own > 0.0 and own >= WELL * best


def _loss_by(run: Branch, examples: float) -> float | None:
    """A run's loss after so many examples, or at its end if it is shorter; None where none is known of that time."""
    if run.examples <= 1.01 * examples:
        return run.last_loss
    for curve in (run.training, run.curve):
        if curve is not None:
            pairs = zip(curve.examples, curve.losses, strict=True)
            late = [loss for n, loss in pairs if 0.8 * examples <= n <= examples]
            if late:
                return float(np.mean(late))
    return None


def _initial_loss(runs: Sequence[Branch]) -> float:
    firsts = [run.curve.losses[0] for run in runs if run.curve.examples and run.curve.examples[0] == 0]
    firsts += [
        run.training.losses[0] for run in runs
        if run.training is not None and run.training.examples and run.training.examples[0] < run.batch_size
    ]  # fmt: skip
    if not firsts:
        raise EvidenceError("no run has a loss at initialisation: give one that is evaluated at 0 examples")
    return float(np.median(firsts))


def _is_broken(run: Branch, runs: Sequence[Branch], initial_loss: float) -> bool:
    own = math.log(max(run.last_loss, 1e-300))
    return own > math.log(initial_loss) - STUCK and any(
        other.batch_size == run.batch_size
        and other.learning_rate < run.learning_rate
        and other.outcome != "diverged"
        and other.examples
        and other.examples <= 1.01 * run.examples
        and own > math.log(max(other.last_loss, 1e-300)) + BROKEN
        and _is_decayed(run) >= _is_decayed(other)
        for other in runs
    )


def _is_decayed(run: Branch) -> bool:
    schedule = run.learning_rate_schedule
    return schedule is not None and schedule(run.examples) < 0.5 * max(schedule.multipliers)


def edges_of(
    batch_size: float,
    schedule: LearningRateSchedule | None,
    points: Floats,
    *,
    pieces: int = PIECES,
    pieces_of_ramp: int = PIECES_OF_RAMP,
) -> Floats:
    """Steps at which the pieces of a course begin and end, from 0 to its last point, (k + 1,)."""
    last = float(points[-1])
    grids = [np.zeros(1), points, np.geomspace(min(1.0, 0.5 * last), last, pieces)]
    if schedule is not None:
        knees = np.minimum(np.array(schedule.examples, dtype=np.float64) / batch_size, last)
        changes = np.flatnonzero(np.diff(schedule.multipliers))
        if len(changes) <= 2:
            grids += [np.linspace(knees[i], knees[i + 1], pieces_of_ramp + 1) for i in changes]
            grids.append(knees)
        else:  # a curve: pieces take its mean, so they need not meet its points
            grids.append(
                np.linspace(
                    knees[changes[0]], knees[changes[-1] + 1], PIECES_OF_CURVE * pieces_of_ramp // PIECES_OF_RAMP + 1
                )
            )
    edges = np.unique(np.concatenate(grids))
    # An edge next to one that is needed only makes a piece of no length.
    keep = np.concatenate([[True], np.diff(edges) > 1e-3 * edges[1:]]) | np.isin(edges, points)
    return np.asarray(edges[keep])


def course_of(
    batch_size: float,
    learning_rate: float,
    schedule: LearningRateSchedule | None,
    edges: Floats,
    *,
    delay: float = 0.0,
) -> Course:
    """The course of a run at one batch size between given numbers of steps."""
    lagged = edges - delay * -np.expm1(-edges / delay) if delay else edges
    rates = np.full(len(edges) - 1, float(learning_rate))
    if schedule is not None:
        rates = rates * schedule.means(edges * batch_size)
    return Course(np.diff(lagged), np.full(len(rates), float(batch_size)), np.maximum(rates, 1e-12 * learning_rate))


def courses_to_ends(
    batch_sizes: Sequence[float] | Floats,
    learning_rates: Sequence[float] | Floats,
    schedules: Sequence[LearningRateSchedule],
    examples: Sequence[float] | Floats,
    *,
    delay: float = 0.0,
) -> list[Course]:
    """The courses of k runs to their ends, as `edges_of` and `course_of` give them.

    A plan asks for many runs that differ in their peak rate only, whose pieces are worked out once.
    """
    at_rate_1: dict[tuple[float, LearningRateSchedule, float], Course] = {}
    courses = []
    for size, rate, schedule, end in zip(batch_sizes, learning_rates, schedules, examples, strict=True):
        key = (float(size), schedule, float(end))
        if key not in at_rate_1:
            edges = edges_of(size, schedule, np.array([end / size]))
            at_rate_1[key] = course_of(size, 1.0, schedule, edges, delay=delay)
        pieces = at_rate_1[key]
        courses.append(Course(pieces.steps, pieces.batch_sizes, rate * pieces.learning_rates))
    return courses


def course_along(schedule: Schedule, learning_rate: float, edges: Floats, *, delay: float = 0.0) -> Course:
    """The course of a schedule of batch size and learning rate between given numbers of examples.

    Args:
        schedule: with or without warm-up and decay.
        learning_rate: the peak rate.
        edges: examples, rising from 0, (k + 1,).
        delay: steps that momentum lags behind.
    """
    middles = 0.5 * (edges[1:] + edges[:-1])
    segments = [schedule.segment_at(int(middle)) for middle in middles]
    sizes = np.array([float(segment.batch_size) for segment in segments])
    rates = learning_rate * np.array([segment.learning_rate_multiplier for segment in segments])
    if schedule.learning_rate_schedule is not None:
        rates = rates * schedule.learning_rate_schedule.means(edges)
    steps = np.concatenate([[0.0], np.cumsum(np.diff(edges) / sizes)])
    lagged = steps - delay * -np.expm1(-steps / delay) if delay else steps
    return Course(np.diff(lagged), sizes, np.maximum(rates, 1e-12 * learning_rate))
