"""The noise scale of a training under way: what steps said about it, pooled over the latest of them.

Signal and noise are pooled apart, each as a sum of what the steps measured over the sum of what it weighs, and divided
only once. The noise is from the steps that are taken in parts. The signal is from two sources: products of different
parts of a step, and the squared norms of whole gradients less the noise in them, which are cheap enough for nearly
every step; the two are averaged such that the variance is least. Products of gradients of *different* steps would be
cheap also, and are wrong: a step moves the weights against the noise of its own gradient, so that the next gradient's
product with it is lower than |G|^2 by lr (G'HG + tr(H Sigma)/B), which at the step that lowers the loss most is all
of |G|^2.

Notation (one step; a unit is an example, a micro-batch, a half of the batch, or what one rank holds)
    d_u      what unit u adds to the step's gradient, c_u times its mean gradient; A = sum d_u
    product  |A|^2 - sum |d_u|^2, the sum over pairs of different units of d_u . d_v; E = |G|^2 pairs
    pairs    (sum c_u)^2 - sum c_u^2
    scatter  sum |d_u|^2 less its share of the signal, (sum c_u^2) product / pairs;   E = tr(Sigma) freedom
    freedom  sum c_u^2 / (examples of unit u)
    square   |A|^2;                                               E = |G|^2 weight + tr(Sigma) share
    weight   (sum c_u)^2
    share    `freedom` of the whole step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchopt._codec import Record
from batchopt.noise_scale import NoiseScale
from batchopt.uncertainty import Estimate, ratio_interval, t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_BLOCKS = 64
"""More jackknife blocks than this are merged, neighbour with neighbour."""
LEAST_PAIRS = 1e-6
"""With less than this share of its weight outside one unit, a step is that unit."""
NARROW = 0.5
"""(high - low) / value at which fewer steps, nearer to the present weights, are preferred to a narrower interval."""
SHARES = (4, 2)
"""One in so many of the blocks is tried first, then one in the next."""
FEWEST_PREFERRED = 8
"""Fewer blocks are taken only where there are no more."""
FEWEST_BLOCKS = 4
"""Fewer say too little about their own spread for an interval."""


@dataclass(frozen=True, slots=True)
class StepMoments(Record):
    """What one step, or several, say about signal and noise: see the notation above.

    Attributes:
        product: sum over pairs of different units of their gradients' products.
        pairs: what `product` is |G|^2 times of.
        scatter: sum of the units' squared gradients without the signal in them.
        freedom: what `scatter` is tr(Sigma) times of; 0 where no step was taken in units.
        square: sum of the squared norms of whole gradients.
        weight: what `square` is |G|^2 times of, and in addition
        share: tr(Sigma) times of.
        examples: examples of the steps that were taken in units.
        group_size: examples per unit, the largest where they differ.
    """

    SCHEMA: ClassVar[str] = "batchopt.step_moments/1"

    product: float
    pairs: float
    scatter: float
    freedom: float
    square: float
    weight: float
    share: float
    examples: int
    group_size: int

    @classmethod
    def of_units(
        cls,
        *,
        square: float,
        unit_squares: float,
        coefficients: float,
        coefficients_squared: float,
        freedom: float,
        examples: int,
        group_size: int,
    ) -> StepMoments:
        """From the sums over a step's units.

        Args:
            square: |A|^2.
            unit_squares: sum of |d_u|^2.
            coefficients: sum of c_u.
            coefficients_squared: sum of c_u^2.
            freedom: sum of c_u^2 / (examples of unit u).
            examples: examples of all units.
            group_size: examples per unit.
        """
        product, pairs = square - unit_squares, coefficients**2 - coefficients_squared
        if pairs <= LEAST_PAIRS * coefficients**2:
            return cls.of_whole(square=square, weight=coefficients**2, share=freedom)
        scatter = unit_squares - coefficients_squared * product / pairs
        return cls(product, pairs, scatter, freedom, square, coefficients**2, freedom, examples, group_size)

    @classmethod
    def of_whole(cls, *, square: float, weight: float, share: float) -> StepMoments:
        """From the gradient of a step that was not taken in units."""
        return cls(0.0, 0.0, 0.0, 0.0, square, weight, share, 0, 1)

    @property
    def is_finite(self) -> bool:
        """Whether no gradient was NaN or infinite."""
        return math.isfinite(self.square) and math.isfinite(self.scatter)

    def __add__(self, other: StepMoments) -> StepMoments:
        return StepMoments(
            product=self.product + other.product,
            pairs=self.pairs + other.pairs,
            scatter=self.scatter + other.scatter,
            freedom=self.freedom + other.freedom,
            square=self.square + other.square,
            weight=self.weight + other.weight,
            share=self.share + other.share,
            examples=self.examples + other.examples,
            group_size=max(self.group_size, other.group_size),
        )


@dataclass(frozen=True, slots=True)
class Block(Record):
    """Consecutive steps.

    Attributes:
        first_step: the earliest of them that said something.
        last_step: the latest.
        readings: how many of them were taken in units.
        moments: their sum.
    """

    SCHEMA: ClassVar[str] = "batchopt.noise_block/1"

    first_step: int
    last_step: int
    readings: int
    moments: StepMoments

    def __add__(self, later: Block) -> Block:
        return Block(self.first_step, later.last_step, self.readings + later.readings, self.moments + later.moments)


@dataclass(frozen=True, slots=True)
class RunningNoise(Record):
    """Readings of the steps inside a window, in blocks of consecutive ones.

    Between 32 and 64 blocks are kept once there are as many readings. The interval comes from their spread, so what
    the readings of a block have in common is in it, and so is a drift of the noise scale over the window.

    Attributes:
        window: steps that count; None counts the latest half of all, or fewer of them where these say enough.
        blocks: oldest first; the last is being filled.
    """

    SCHEMA: ClassVar[str] = "batchopt.running_noise/1"

    window: int | None = None
    blocks: tuple[Block, ...] = ()

    @property
    def readings(self) -> int:
        """Steps inside the window that were taken in units."""
        return sum(block.readings for block in self.blocks)

    def add(self, step: int, moments: StepMoments) -> RunningNoise:
        """The state with what a later step says, and without blocks that have left the window."""
        start = step - (self.window or (step + 1) // 2)
        kept = [block for block in self.blocks if block.last_step > start]
        new = Block(step, step, int(moments.freedom > 0), moments)
        quota = max(1, sum(block.readings for block in kept) // MOST_BLOCKS)
        # Whole gradients join a block that has a reading already: every block but the first begins with one.
        if kept and (kept[-1].readings < quota or new.readings == 0):
            kept[-1] += new
        else:
            kept.append(new)
        if len(kept) > MOST_BLOCKS:
            pairs = [first + second for first, second in zip(kept[:-1:2], kept[1::2], strict=False)]
            kept = pairs + kept[2 * len(pairs) :]
        return RunningNoise(self.window, tuple(kept))

    def reading(self, *, method: str, population: int | None) -> NoiseScale | None:
        """The noise scale over the window; None before the first reading.

        Args:
            method: how gradients were taken, in words.
            population: examples of the data set that batches are drawn from without replacement; None for infinite.
        """
        if self.readings == 0:
            return None
        blocks, pooled = self._latest(population)
        return NoiseScale(
            kind="simple",
            signal=pooled.signal,
            noise=pooled.noise,
            batch_size=pooled.ratio(),
            examples=max(2, sum(block.moments.examples for block in blocks)),
            group_size=self.blocks[-1].moments.group_size,
            population=population,
            method=f"{method}, steps {blocks[0].first_step} to {blocks[-1].last_step}",
            stopped="budget",
        )

    def shortfall(self, relative_width: float, *, population: int | None) -> float:
        """How many times the present readings an interval of (high - low) / value = `relative_width` takes.

        Where the signal is not distinguished from zero it is taken for as large as its standard error: then this many
        are too few. Infinite before there are readings enough to tell.
        """
        if self.readings < FEWEST_BLOCKS or len(self.blocks) < FEWEST_BLOCKS:
            return math.inf
        pooled = _pool(self.blocks, population)
        blocks = len(self.blocks)
        spread = np.cov(pooled.signals, pooled.noises, bias=True) * (blocks - 1)
        # Delta method; high / low = exp(2 t se), and (high - low) / value = 2 sinh(t se).
        least_signal = max(pooled.signal, math.sqrt(spread[0, 0]))
        gradient = np.array([-1.0 / least_signal, 1.0 / pooled.noise])
        wanted = math.asinh(relative_width / 2.0) / t_quantile(blocks - 1)
        return float(gradient @ spread @ gradient) / wanted**2

    def _latest(self, population: int | None) -> tuple[Sequence[Block], _Pooled]:
        """The blocks that the reading is from, and what they say."""
        for share in SHARES if self.window is None else ():
            blocks = self.blocks[-(len(self.blocks) // share) :]
            if len(blocks) < FEWEST_PREFERRED:
                continue
            pooled = _pool(blocks, population)
            ratio = pooled.ratio()
            if ratio.resolved and ratio.high - ratio.low <= NARROW * ratio.value:
                return blocks, pooled
        return self.blocks, _pool(self.blocks, population)


def _pool(blocks: Sequence[Block], population: int | None) -> _Pooled:
    """Signal and noise of all blocks together, and of all but one each."""
    columns = np.array([astuple(block.moments)[:7] for block in blocks if block.readings]).T
    sums = columns.sum(1, keepdims=True)
    within, across, noise = _signals_and_noise(sums, population)
    if columns.shape[1] < FEWEST_BLOCKS:
        return _Pooled(float(within[0]), float(noise[0]), np.empty(0), np.empty(0))
    deleted_within, deleted_across, deleted_noise = _signals_and_noise(sums - columns, population)
    share = _best_share(deleted_within, deleted_across)
    signals = deleted_within + share * (deleted_across - deleted_within)
    signal = within + share * (across - within)
    return _Pooled(float(signal[0]), float(noise[0]), signals, deleted_noise)


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Signal and noise of all blocks, and of all but one each, (blocks,); empty where there are too few of them."""

    signal: float
    noise: float
    signals: Floats
    noises: Floats

    def ratio(self) -> Estimate:
        """The noise scale with its interval."""
        if len(self.signals) == 0:
            guess = self.noise / self.signal if self.signal > 0 and self.noise > 0 else 0.0
            return Estimate(guess, 0.0, math.inf, False)
        return ratio_interval(self.noise, self.signal, self.noises, self.signals)


def _signals_and_noise(sums: Floats, population: int | None) -> tuple[Floats, Floats, Floats]:
    """|G|^2 from products of units, |G|^2 from whole gradients, and tr(Sigma), of summed moments (7, ...).

    Different examples of a finite population have E[g_i . g_j] = |G|^2 - tr(Sigma)/N: they are drawn without
    replacement.
    """
    product, pairs, scatter, freedom, square, weight, share = sums
    noise = scatter / freedom
    left = 0.0 if population is None else 1.0 / population
    return product / pairs + noise * left, (square - noise * (share - weight * left)) / weight, noise


def _best_share(within: Floats, across: Floats) -> float:
    """Share of the second of two estimates in their mean of least variance, from the jackknife values of both."""
    difference = across - within
    variance = float(np.var(difference))
    if variance == 0:
        return 0.0
    covariance = float(np.mean((within - within.mean()) * (difference - difference.mean())))
    return min(1.0, max(0.0, -covariance / variance))
