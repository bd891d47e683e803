"""The schedule law as a search of trials whose learning rate decays uses it: draws of its parameters and a schedule.

A loss is reached at the end of a decay, so a setting has a curve of the losses at the ends of runs with longer and
longer horizons, and what is asked of it is read off there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from batchopt.forecasting.horizons import LEAST_STEPS, first_crossing, schedule_of
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_law import Courses, Frame, losses
from batchopt.forecasting.schedule_points import edges_of
from batchopt.learning_rate_schedule import Shape, function_of
from batchopt.tradeoff import hyperbolas_through

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PIECES, PIECES_OF_RAMP = 5, 4
"""Pieces of a course: half of what a forecast takes, for speed. Losses at the end are within 4 % of what that gives."""
RATE_STEP = 0.5
"""Octaves between the learning rates among which the best one is looked for."""
WIDER = 2.0
"""Octaves beyond the rates that were run, over which it is."""
BATCH_OCTAVES = 4
"""And octaves beyond the batch sizes that were run, over which a trade-off is read."""
DRAWS = 24
"""As many as the law of constant rates has in a search: a proposal looks at 1,500 candidates in each."""

STABLE_OCTAVES, STABLE_OCTAVES_SD = 0.5, 1.0
"""Rates are stable up to so many octaves beyond all that did well: where stability ends the law can't know. On sweeps
at constant rates, 1.5 and 1 octaves found worse settings."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of runs that are considered.

    Attributes:
        schedule: of the learning rate: the name of a shape, or multipliers at even progress.
        warmup_examples: of every run; None for a share of its horizon.
        horizons: shortest and longest, in examples.
    """

    schedule: str | tuple[float, ...]
    warmup_examples: int | None
    horizons: tuple[float, float]

    @property
    def shape(self) -> Shape:
        """The schedule as a shape."""
        return self.schedule if isinstance(self.schedule, str) else function_of(self.schedule)  # type: ignore[return-value]

    @property
    def grid(self) -> Floats:
        """Horizons a factor of two apart or less, (h,)."""
        low, high = self.horizons
        return np.geomspace(low, high, 2 + math.ceil(math.log2(high / low)))


@dataclass(frozen=True, slots=True, eq=False)
class DecayedLaw:
    """The best guess and draws of the law's parameters, in this order wherever there are rows.

    Attributes:
        frame: what they are relative to.
        rows: (1 + draws, parameters).
        delay: steps that momentum lags behind.
        unstable: (batch size, learning rate) of runs that diverged: at most that batch size, no such rate is used.
        batch_sizes: smallest and largest that was run.
        learning_rates: lowest and highest peak rate that was run.
        lowest_loss: lowest loss that was observed.
        ends: of the runs that are considered.
        proven: (batch size, learning rate) of runs that did well.
        stable_beyond: factor beyond proven rates from which on runs are taken to diverge, (1 + draws,).
    """

    frame: Frame
    rows: Floats
    delay: float
    unstable: tuple[tuple[int, float], ...]
    batch_sizes: tuple[int, int]
    learning_rates: tuple[float, float]
    lowest_loss: float
    ends: Ends
    proven: tuple[tuple[int, float], ...] = ()
    stable_beyond: Floats | None = None

    @classmethod
    def of_forecast(cls, law: LossPosterior, ends: Ends) -> DecayedLaw:
        """The law of a forecast, without what it misses."""
        low, high = law.learning_rates
        return cls(
            frame=law.frame,
            rows=np.array(law.rows)[: 1 + DRAWS],
            delay=law.delay,
            unstable=tuple((size, broken) for size, _, broken in law.unstable),
            batch_sizes=law.batch_sizes,
            learning_rates=(low * math.sqrt(law.batch_sizes[0]), high * math.sqrt(law.batch_sizes[1])),
            lowest_loss=law.lowest_loss,
            ends=ends,
            proven=_proven_by(law),
            stable_beyond=stable_factors(min(1 + DRAWS, len(law.rows))),
        )

    @property
    def initial_loss(self) -> float:
        """L_0 of the law."""
        return self.frame.initial_loss

    @property
    def draws(self) -> Floats:
        """Rows without the best guess, (draws, parameters)."""
        return self.rows[1:]

    @property
    def middle_rate(self) -> float:
        """In the middle of the rates that were run."""
        return math.sqrt(math.prod(self.learning_rates))

    def row(self, index: int) -> DecayedLaw:
        """One row as the best guess, without draws: 0 the best guess itself, then the draws."""
        return _row_of(self, index)

    def steps_to(
        self,
        batch_sizes: Sequence[float] | Floats,
        learning_rates: Sequence[float] | Floats,
        loss: float,
        *,
        beyond: float | None = None,
    ) -> Floats:
        """Steps of the shortest horizon at whose end a loss is reached, at k pairs of batch size and peak rate.

        Args:
            batch_sizes: (k,).
            learning_rates: (k,).
            loss: to be reached.
            beyond: has no meaning here, where horizons are given: the loss is always the goal's.

        Returns:
            (1 + draws, k); inf where no horizon is long enough, or the run diverges.
        """
        sizes = np.asarray(batch_sizes, float)
        found = first_crossing(self._curves(sizes, learning_rates), np.log(self.ends.grid), math.log(loss))
        return np.asarray(found / sizes)

    def losses_after(self, batch_sizes: Floats, learning_rates: Floats, steps: Floats) -> Floats:
        """Losses at the ends of horizons of (k,) or (1 + draws, k) steps, at k pairs: (1 + draws, k)."""
        curves, grid = self._curves(batch_sizes, learning_rates), np.log(self.ends.grid)
        logs = np.broadcast_to(np.log(steps * np.asarray(batch_sizes)), curves.shape[:2])
        at = np.clip((logs - grid[0]) / (grid[1] - grid[0]), 0.0, len(grid) - 1.0)
        left = np.minimum(at.astype(int), len(grid) - 2)[:, :, None]
        low, high = (np.take_along_axis(curves, left + i, axis=2)[:, :, 0] for i in (0, 1))
        part = at - left[:, :, 0]
        with np.errstate(invalid="ignore"):
            found = np.where(part > 0, low + part * (high - low), low)
        return np.exp(np.where(np.isnan(found), np.inf, found))

    def best_rates(self, batch_sizes: Floats) -> Floats:
        """The best guess of the peak rate that ends lowest at the middle horizon, (k,).

        Batch sizes of which it holds too few steps take the rate of the largest that is not, by the root of the ratio.
        """
        horizons, rates = self.ends.grid, self._rates()
        middle = len(horizons) // 2
        asked, back = np.unique(batch_sizes, return_inverse=True)
        sizes = np.minimum(asked, horizons[middle] / LEAST_STEPS)
        grid = [axis.ravel() for axis in np.meshgrid(sizes, rates, indexing="ij")]
        curves = self.row(0)._curves(grid[0], grid[1])[0].reshape(len(sizes), len(rates), -1)
        best = rates[curves[:, :, middle].argmin(axis=1)] * np.sqrt(asked / sizes)
        return np.asarray(best[back])

    def hyperbola(self, loss: float) -> tuple[Floats, Floats]:
        """S_min and E_min of the trade-off to a loss by the best guess, (1,) each; inf where it is not reached."""
        low, high = self.batch_sizes
        octaves = range(max(0, round(math.log2(low)) - BATCH_OCTAVES), round(math.log2(high)) + BATCH_OCTAVES + 1)
        sizes, rates = np.exp2(np.array(octaves, float)), self._rates()
        grid = [axis.ravel() for axis in np.meshgrid(sizes, rates, indexing="ij")]
        steps = self.row(0).steps_to(grid[0], grid[1], loss)[0].reshape(len(sizes), -1).min(axis=1)
        return hyperbolas_through(sizes, steps[None])

    def _rates(self) -> Floats:
        low, high = (math.log2(rate) for rate in self.learning_rates)
        return np.asarray(np.exp2(np.arange(low - WIDER, high + WIDER + RATE_STEP, RATE_STEP)))

    def _curves(self, batch_sizes: Floats, learning_rates: Floats | Sequence[float]) -> Floats:
        """Log losses at the ends of horizons, (1 + draws, k, h)."""
        return _curves(self, tuple(map(float, batch_sizes)), tuple(map(float, learning_rates)))

    def is_unstable(self, batch_sizes: Floats, learning_rates: Floats) -> NDArray[np.bool_]:
        """Whether runs are taken to diverge, (1 + draws, k)."""
        limits = np.full(len(batch_sizes), np.inf)
        for size, rate in self.unstable:
            limits = np.minimum(limits, np.where(batch_sizes <= size, rate, np.inf))
        beyond = np.broadcast_to(learning_rates >= limits, (len(self.rows), len(batch_sizes)))
        if not self.proven or self.stable_beyond is None:
            return beyond
        # Small batches bear no higher rate than large ones.
        sizes, rates = np.array(self.proven).T
        fine = (rates * np.minimum(1.0, np.sqrt(batch_sizes[:, None] / sizes))).max(axis=1)
        return np.asarray(beyond | (learning_rates > fine * self.stable_beyond[:, None]))


def _proven_by(law: LossPosterior) -> tuple[tuple[int, float], ...]:
    """(batch size, learning rate) of runs that did well.

    Where the law names none, the highest rate of any is taken to be of the largest batch, which bears most.
    """
    edges = tuple((size, fine) for size, fine, _ in law.unstable)
    return tuple(sorted({*law.stable, *edges})) or ((law.batch_sizes[1], law.highest_rate),)


def stable_factors(rows: int) -> Floats:
    """How far beyond proven rates runs are stable, (n,): even over draws, and the middle for the best guess."""
    count = max(1, rows - 1)
    scores = special.ndtri((np.random.default_rng(1).permutation(count) + 0.5) / count)
    return np.asarray(np.exp2(STABLE_OCTAVES + STABLE_OCTAVES_SD * np.concatenate([[0.0], scores])[:rows]))


@lru_cache(maxsize=8)
def _curves(law: DecayedLaw, sizes: tuple[float, ...], rates: tuple[float, ...]) -> Floats:
    """Remembered, because several questions about one trial share a grid."""
    pairs, back = np.unique(np.array([sizes, rates]), axis=1, return_inverse=True)
    size, rate = pairs
    horizons = law.ends.grid
    steps, peaks = _pieces(law, size, rate, horizons)
    courses = Courses.even(steps, np.repeat(size, len(horizons)), peaks)
    found = losses(law.rows, law.frame, courses, single=True)[:, :, -1].reshape(-1, len(size), len(horizons))
    found = np.log(np.nan_to_num(found, nan=math.inf)).astype(np.float64)
    found[:, horizons < (1.0 - 1e-9) * LEAST_STEPS * size[:, None]] = np.inf
    found[law.is_unstable(size, rate)] = np.inf
    return np.asarray(found[:, back])


def _pieces(law: DecayedLaw, sizes: Floats, rates: Floats, horizons: Floats) -> tuple[Floats, Floats]:
    """Steps and learning rates of the pieces of every pair at every horizon, (k * h, pieces)."""
    edges, means = [], []
    for horizon in horizons:
        schedule = schedule_of(law.ends.shape, horizon, law.ends.warmup_examples)
        at = edges_of(1.0, schedule, np.array([horizon]), pieces=PIECES, pieces_of_ramp=PIECES_OF_RAMP)
        edges.append(at)
        means.append(schedule.means(at))
    most = max(map(len, edges))
    # Shorter ones are filled up at the end with pieces of no steps.
    examples = np.array([np.pad(each, (0, most - len(each)), mode="edge") for each in edges])
    shares = np.array([np.pad(each, (0, most - 1 - len(each)), mode="edge") for each in means])
    steps = examples[None] / sizes[:, None, None]
    if law.delay:
        steps = steps - law.delay * -np.expm1(-steps / law.delay)
    peaks = np.maximum(shares[None] * rates[:, None, None], 1e-12 * rates[:, None, None])
    shape = (len(sizes) * len(horizons), most - 1)
    return np.diff(steps, axis=2).reshape(shape), peaks.reshape(shape)


@lru_cache(maxsize=8)
def _row_of(law: DecayedLaw, index: int) -> DecayedLaw:
    beyond = None if law.stable_beyond is None else law.stable_beyond[[index]]
    return replace(law, rows=law.rows[[index]], stable_beyond=beyond)
