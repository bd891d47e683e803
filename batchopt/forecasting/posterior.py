"""What is believed about one training problem after a fit of the schedule law.

The law's own parameters are drawn by the fit. What the law misses is a Gaussian process, of which every draw holds one
function: a random one of the prior, as a sum of random Fourier features (Rahimi and Recht 2007), bent through what the
draw's own parameters miss at the fitted points (Matheron's rule; Wilson et al. 2020, arXiv 2002.09309). So a draw says
one consistent thing of all settings, near to the points and far from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import special

from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.schedule_fit import MISSED, OWN, Points, ScheduleLaw, check_points, fit_schedule_law
from batchopt.forecasting.schedule_law import Course, Courses, Frame, frame_of, losses
from batchopt.forecasting.schedule_points import Evidence, courses_to_ends, evidence_of, readings_of
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.noise_scale import NoiseScale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEATURES = 128
"""Random Fourier features of a draw: the kernel is met within 0.09, the error of a mean of so many cosines."""
UNTRIED = 2.0
"""Rates are used up to this multiple of the highest with which a run did well: the next of a grid of octaves. Set by
hand; at 4 and 16 few settings more of the sweeps came within reach."""
SMALLER = 0.75
"""Power of the batch size with which a rate that is fine for a larger one is carried to a smaller one: between the
root, by which best rates differ, and proportion, by which noise alone makes them differ."""
SHORT_OF = 1.1
"""Stability ends by this factor or more below a rate that failed, whatever did well at other batch sizes."""
DIGITS = 5
"""Significant digits of what the law misses."""
SCATTER = 0.15
"""Standard deviation of one run about the mean of runs that differ in their seed only, as a share of the examples to a
loss: 0.11, 0.11, 0.17, 0.17 and 0.19 between the two seeds of five decaying sweeps of `benchmarks/truth`."""


def usable_evidence(runs: Sequence[Branch], *, initial_loss: float | None, delay: float) -> Evidence:
    """What runs say, where that is enough to fit the law to.

    Raises:
        EvidenceError: too few losses below the initial one.
    """
    evidence = evidence_of(runs, initial_loss=initial_loss, delay=delay)
    if len(set(evidence.points.run.tolist())) < 2:
        raise EvidenceError("a forecast needs two runs whose loss fell at least, and there is one: probe for longer")
    check_points(evidence.points)
    return evidence


@dataclass(frozen=True)
class LossPosterior(Record):
    """The loss of any run: the best guess and draws of the posterior, in this order wherever there are rows.

    Attributes:
        initial_loss: L_0 of the law.
        lowest_loss: lowest loss that was observed; what is below is extrapolated.
        scale: tau_0.
        knots: of D.
        middle_batch_size: B_mid.
        is_adaptive: whether the optimizer divides by the size of the gradient.
        delay: steps that momentum lags behind.
        rows: parameters, (1 + draws, parameters).
        places: of the points that were fitted, (m, 4).
        weights: that take nearness to places to what the law misses, (1 + draws, m).
        frequencies: of the Fourier features, (features, 4).
        phases: (features,).
        amplitudes: (1 + draws, features); those of the best guess are 0.
        steepness: how much log loss falls over log examples.
        unstable: (batch size, rate that was fine, rate with which a run diverged): stability ends between, in each draw
            at another rate.
        stable: (batch size, rate) of runs that did well and were as long as those that did not.
        batch_sizes: smallest and largest that was run.
        learning_rates: lowest and highest rate over the root of the batch size that was run.
        highest_rate: highest rate that a run which did well has reached.
        longest: examples of the longest run.
    """

    SCHEMA: ClassVar[str] = "batchopt.loss_posterior/4"

    initial_loss: float
    lowest_loss: float
    scale: float
    knots: tuple[float, ...]
    middle_batch_size: float
    is_adaptive: bool
    delay: float
    rows: tuple[tuple[float, ...], ...]
    places: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    frequencies: tuple[tuple[float, ...], ...]
    phases: tuple[float, ...]
    amplitudes: tuple[tuple[float, ...], ...]
    steepness: float
    unstable: tuple[tuple[int, float, float], ...]
    stable: tuple[tuple[int, float], ...]
    batch_sizes: tuple[int, int]
    learning_rates: tuple[float, float]
    highest_rate: float
    longest: float

    @classmethod
    def fit(
        cls,
        runs: Sequence[Branch],
        *,
        initial_loss: float | None = None,
        adaptive: bool | None = None,
        delay: float = 0.0,
        noise_scales: Sequence[NoiseScale] = (),
        seed: int = 0,
    ) -> LossPosterior:
        """Fit the law to the runs of one task.

        Args:
            runs: of one model, data set and optimizer, at any batch sizes, rates and schedules.
            initial_loss: mean loss at initialisation; taken from the runs if None.
            adaptive: whether the optimizer divides by the size of the gradient, as Adam does.
            delay: steps that momentum lags behind; left out for an adaptive optimizer, where it fits worse.
            noise_scales: readings along these runs; those that are resolved count as evidence, of kind "simple"
                or, where none is of that kind, "preconditioned".
            seed: of the draws.

        Raises:
            EvidenceError: too few losses below the initial one.
        """
        delay = 0.0 if adaptive else delay
        evidence = usable_evidence(runs, initial_loss=initial_loss, delay=delay)
        points = evidence.points
        lowest = float(np.exp(points.log_losses.min()))
        frame = frame_of(
            points.courses, initial_loss=evidence.initial_loss, lowest_loss=lowest, is_adaptive=bool(adaptive)
        )
        readings = readings_of(noise_scales, runs, delay=delay)
        law = fit_schedule_law(points, frame, readings=readings, seed=seed)
        features, weights = _what_is_missed(law, evidence.settings, np.random.default_rng(seed))
        return cls(
            initial_loss=evidence.initial_loss,
            lowest_loss=lowest,
            scale=frame.scale,
            knots=tuple(frame.knots.tolist()),
            middle_batch_size=frame.batch_size,
            is_adaptive=frame.is_adaptive,
            delay=delay,
            rows=_as_tuples(law.rows),
            places=_rounded(points.places),
            weights=_rounded(weights),
            frequencies=_rounded(features.frequencies),
            phases=_rounded(features.phases[None])[0],
            amplitudes=_rounded(features.amplitudes),
            steepness=law.steepness,
            unstable=evidence.unstable,
            stable=evidence.stable,
            batch_sizes=evidence.batch_sizes,
            learning_rates=evidence.learning_rates,
            highest_rate=evidence.highest_rate,
            longest=evidence.longest,
        )

    @property
    def alone(self) -> LossPosterior:
        """The law without what it misses, in so few digits that a study can keep it."""
        none = ((),) * len(self.rows)
        still = ((0.0,),) * len(self.rows)
        return replace(
            self,
            rows=_rounded(self._rows),
            places=(),
            weights=none,
            frequencies=((0.0,) * len(self.frequencies[0]),),
            phases=(0.0,),
            amplitudes=still,
        )

    @property
    def draws(self) -> int:
        """Number of draws beside the best guess."""
        return len(self.rows) - 1

    def losses_at_end(
        self,
        batch_sizes: Sequence[float] | Floats,
        learning_rates: Sequence[float] | Floats,
        schedules: Sequence[LearningRateSchedule],
        examples: Sequence[float] | Floats,
    ) -> Floats:
        """Log losses at the end of k runs.

        Args:
            batch_sizes: (k,).
            learning_rates: peak rates, (k,).
            schedules: k of them.
            examples: at the end of each, (k,).

        Returns:
            (1 + draws, k); inf where the run is expected to diverge.
        """
        courses = courses_to_ends(batch_sizes, learning_rates, schedules, examples, delay=self.delay)
        last = np.array([len(course.steps) - 1 for course in courses])
        found = self._log_losses(Courses(courses), np.arange(len(courses)), last)
        return np.where(self.is_unstable(batch_sizes, learning_rates), np.inf, found)

    def losses_along(self, courses: Sequence[Course]) -> list[Floats]:
        """Log losses after every piece of courses, each (1 + draws, pieces)."""
        lengths = [len(course.steps) for course in courses]
        run = np.repeat(np.arange(len(courses)), lengths)
        piece = np.concatenate([np.arange(length) for length in lengths])
        found = self._log_losses(Courses(courses), run, piece)
        return np.split(found, np.cumsum(lengths)[:-1], axis=1)

    def _log_losses(self, courses: Courses, run: NDArray[np.int_], piece: NDArray[np.int_]) -> Floats:
        empty = np.zeros(len(run))
        wanted = Points(courses, run, piece, empty, empty)
        by_law = wanted.of(losses(self._rows, self.frame, courses))
        places = wanted.places
        known = np.array(self.places).reshape(-1, places.shape[1])  # a law that is given has none
        near = _nearness(places, known) * (MISSED * self.steepness) ** 2
        missed = np.array(self.weights) @ near.T + self._features(places)
        return np.asarray(by_law + missed)

    def largest_stable(self, batch_sizes: Sequence[float] | Floats) -> Floats:
        """The learning rate from which on runs diverge, (1 + draws, k).

        Small batches bear no higher rate than large ones; a rate that is too high for a batch size is taken to be too
        high for larger ones up to the root of their ratio. A rate that is fine for a batch size is fine for larger
        ones, and for smaller ones less than in proportion to the root. A rate more than an octave above all that did
        well is not trusted either: where stability ends, the law can't know.
        """
        sizes = np.asarray(batch_sizes, dtype=np.float64)
        limits = np.full((1 + self.draws, len(sizes)), UNTRIED * self.highest_rate)
        # Where between the two rates stability ends is even over draws, and a half in the best guess.
        parts = (np.random.default_rng(1).permutation(self.draws) + 0.5) / max(1, self.draws)
        parts = np.concatenate([[0.5], parts])[:, None]
        borne = np.zeros(len(sizes))
        for size, rate in self.stable:
            borne = np.maximum(borne, rate * np.minimum(1.0, (sizes / size) ** SMALLER))
        for size, fine, broken in self.unstable:
            scale = np.sqrt(np.maximum(1.0, sizes / size))
            low = np.clip(borne, fine * scale, broken * scale / SHORT_OF)
            limits = np.minimum(limits, low * (broken * scale / low) ** parts)
        return np.asarray(limits)

    def is_unstable(
        self, batch_sizes: Sequence[float] | Floats, learning_rates: Sequence[float] | Floats
    ) -> NDArray[np.bool_]:
        """Whether runs are expected to diverge, (1 + draws, k)."""
        return np.asarray(np.asarray(learning_rates) > 1.001 * self.largest_stable(batch_sizes))

    def scattered_losses(self, log_losses: Floats) -> Floats:
        """Log losses, (1 + draws, ...), as single runs have them."""
        return np.asarray(log_losses + self.scatter().reshape(-1, *[1] * (log_losses.ndim - 1)))

    def scatter(self, *, seed: int = 0) -> Floats:
        """What single runs are above the mean over seeds in log loss, (1 + draws,); nothing for the best guess.

        Normal scores in a random order, as a quantile of few random draws would jump about.
        """
        scores = special.ndtri((np.arange(self.draws) + 0.5) / max(1, self.draws))
        return SCATTER * self.steepness * np.concatenate([[0.0], np.random.default_rng(seed).permutation(scores)])

    @cached_property
    def frame(self) -> Frame:
        """What the parameters are relative to."""
        return Frame(
            initial_loss=self.initial_loss,
            lowest_loss=self.lowest_loss,
            scale=self.scale,
            knots=np.array(self.knots),
            batch_size=self.middle_batch_size,
            is_adaptive=self.is_adaptive,
        )

    @cached_property
    def _rows(self) -> Floats:
        return np.array(self.rows)

    @cached_property
    def _features(self) -> _Features:
        return _Features(np.array(self.frequencies), np.array(self.phases), np.array(self.amplitudes))


@dataclass(frozen=True, slots=True)
class _Features:
    """Random functions with the kernel's correlation."""

    frequencies: Floats
    phases: Floats
    amplitudes: Floats

    @classmethod
    def drawn(cls, dimensions: int, draws: int, sd: float, rng: np.random.Generator) -> _Features:
        amplitudes = sd * rng.standard_normal((1 + draws, FEATURES))
        amplitudes[0] = 0.0
        return cls(rng.standard_normal((FEATURES, dimensions)), rng.uniform(0.0, 2.0 * math.pi, FEATURES), amplitudes)

    def __call__(self, places: Floats) -> Floats:
        """(1 + draws, k) at k places."""
        waves = np.cos(places @ self.frequencies.T + self.phases) * math.sqrt(2.0 / len(self.phases))
        return np.asarray(self.amplitudes @ waves.T)


def _what_is_missed(law: ScheduleLaw, settings: NDArray[np.int_], rng: np.random.Generator) -> tuple[_Features, Floats]:
    """Functions drawn from the prior of what the law misses, and the weights that bend them through the points.

    Args:
        law: with its draws.
        settings: number of the batch size, rate and seed that each point is of, (m,).
        rng: of the draws.
    """
    points, draws, sd = law.points, len(law.rows) - 1, MISSED * law.steepness
    features = _Features.drawn(points.places.shape[1], draws, sd, rng)
    missed = points.log_losses - points.of(losses(law.rows, law.frame, points.courses))
    errors = np.sqrt(points.errors**2 + (OWN * law.steepness) ** 2)
    # A run, with the cooldowns off it, is off by its seed all along, which says nothing of other runs.
    of_run = (settings[:, None] == np.unique(settings)).astype(float) * SCATTER * law.steepness
    noise = errors * rng.standard_normal((draws, len(errors)))
    noise += rng.standard_normal((draws, of_run.shape[1])) @ of_run.T
    noise = np.concatenate([np.zeros((1, len(errors))), noise])
    covariance = _nearness(points.places, points.places) * sd**2 + of_run @ of_run.T + np.diag(errors**2)
    weights = np.linalg.solve(covariance, (missed - features(points.places) - noise).T).T
    return features, np.asarray(weights)


def _nearness(first: Floats, second: Floats) -> Floats:
    """Correlation of what is missed at two lists of places."""
    squares = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1) - 2.0 * first @ second.T
    return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0)))


def _as_tuples(rows: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows.tolist())


def _rounded(rows: Floats) -> tuple[tuple[float, ...], ...]:
    """In so few digits that a file of a forecast stays small; what is missed is known to two at best."""
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in rows.tolist())
