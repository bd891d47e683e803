"""The law that all runs of one training problem share, with its posterior.

Notation
    y       progress: examples that it takes tiny batches, each at its best learning rate
    v       log(1 + y / y0), the grid that everything is tabulated on
    L0      loss at initialisation
    F       loss over progress, L = F(y): log-linear in v between knots, falling
    b       local critical batch size, b_mid e^(q (v - v_mid))
    lr_S    best rate of huge batches, lr_mid e^(-d (v - v_mid))
    lr_E    best rate of tiny batches, k lr_mid (B / b_mid)^alpha e^(-g (v - v_mid))
    lr*     best rate, lr_S / (1 + lr_S / lr_E)
    c(x; a) what a rate that is x times the best makes a run longer by, (a + x^(1 + a)) / ((1 + a) x); c(1) = 1
    a       a_S of huge batches, a_E of tiny ones, between them by how the steps come about: B / (b + B) of a_S's log
    d steps / dy = (1 / b + 1 / B) c(lr / lr*; a)
    delay   steps that a run lags behind once its momentum has built up

The first factor is McCandlish et al. 2018 (arXiv 1812.06162) eq. 2.7, its integral their appendix D.1; lr* is their
eq. 2.6 and A.3 where alpha is 1 and both limits drift alike. Real runs take more liberty: noise limits the rate with an
exponent and a drift of its own, and a rate beside the best costs little (a small) or a lot (a large), as problem and
optimizer have it. Progress counts examples because losses are power laws of examples more than of steps, which makes F
easy to carry on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchopt._checks import check_non_negative, check_positive
from batchopt._codec import Record
from batchopt.tradeoff import hyperbolas_through

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHAPE = ("log_b", "q", "log_lr", "d", "log_k", "g", "alpha", "log_a_steps", "log_a_examples")
"""Names of the leading parameters; the log slopes of F between its knots follow."""

GRID_POINTS = 128
_BLOCK = 64
"""Settings that are tabulated at a time, which bounds the memory that they take."""
_LARGEST_LOG = 100.0
"""Beyond this a pace stands for never."""
_LEARNING_RATE_OCTAVES = np.arange(-3.0, 3.01, 0.25)
_BATCH_SIZE_OCTAVES = np.arange(-5.0, 5.01)


@dataclass(frozen=True, slots=True)
class LawPosterior(Record):
    """What is believed about one training problem: the best guess and draws of the law's parameters.

    Attributes:
        initial_loss: L0.
        scale: y0, in examples.
        delay: steps that momentum lags behind.
        knots: v of the knots of F, rising from 0.
        v_mid: middle of the observed v.
        best: parameters of the best guess, (n_parameters,) in the order of `SHAPE`, then the slopes of F.
        draws: posterior draws of the same, (n_draws, n_parameters).
        unstable: (batch size, learning rate) of runs that diverged: at most that batch size, no such rate is used.
        batch_sizes: smallest and largest batch size that was observed.
        lowest_loss: lowest loss that was observed; below it everything is extrapolation.
        grid_points: of the grid of v that predictions are tabulated on.
    """

    SCHEMA: ClassVar[str] = "batchopt.law/1"

    initial_loss: float
    scale: float
    delay: float
    knots: tuple[float, ...]
    v_mid: float
    best: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]
    unstable: tuple[tuple[int, float], ...]
    batch_sizes: tuple[int, int]
    lowest_loss: float
    grid_points: int = GRID_POINTS

    def __post_init__(self) -> None:
        check_positive("initial_loss", self.initial_loss)
        check_positive("scale", self.scale)
        check_non_negative("delay", self.delay)
        wanted = len(SHAPE) + len(self.knots) - 1
        for row in (self.best, *self.draws):
            if len(row) != wanted:
                raise ValueError(f"a law over {len(self.knots)} knots needs {wanted} parameters, got {len(row)}")

    def table(self, *, best_guess_only: bool = False) -> LawTable:
        """The law tabulated for the best guess and the draws, in that order."""
        rows = np.array([self.best] if best_guess_only else [self.best, *self.draws], dtype=np.float64)
        return self.frame.table(rows)

    @property
    def frame(self) -> Frame:
        """What the parameters are relative to."""
        return Frame(
            knots=np.array(self.knots),
            v_mid=self.v_mid,
            log_initial=math.log(self.initial_loss),
            scale=self.scale,
            delay=self.delay,
            grid_points=self.grid_points,
        )

    def steps_to(
        self,
        batch_sizes: Sequence[float] | Floats,
        learning_rates: Sequence[float] | Floats,
        loss: float,
        *,
        beyond: float | None = None,
    ) -> Floats:
        """Steps from initialisation to a loss, at k pairs of batch size and learning rate.

        Args:
            batch_sizes: (k,).
            learning_rates: (k,).
            loss: to be reached.
            beyond: stop this far in v beyond the lowest loss that was observed: too few steps to a loss that is further
                away, but steps that can be compared; None to go to the loss.

        Returns:
            (1 + n_draws, k): the best guess, then the draws; inf where the loss is not reached or the run diverges.
        """
        batch_sizes, learning_rates = np.asarray(batch_sizes, float), np.asarray(learning_rates, float)
        table = self.table()
        v = table.v_of_loss(loss)
        if beyond is not None:
            v = np.minimum(v, np.minimum(table.v_of_loss(self.lowest_loss) + beyond, table.grid[-1]))
        steps = table.steps_at(v, batch_sizes, learning_rates)
        return np.where(self._is_unstable(batch_sizes, learning_rates), np.inf, steps)

    def losses_at(
        self,
        batch_sizes: Sequence[float] | Floats,
        learning_rates: Sequence[float] | Floats,
        examples: Sequence[float] | Floats,
    ) -> Floats:
        """Losses after k numbers of examples from initialisation, at k pairs of batch size and learning rate.

        Returns:
            (1 + n_draws, k): the best guess, then the draws; inf where the run diverges.
        """
        batch_sizes = np.asarray(batch_sizes, float)
        return self.losses_after(
            batch_sizes, np.asarray(learning_rates, float), np.asarray(examples, float) / batch_sizes
        )

    def losses_after(self, batch_sizes: Floats, learning_rates: Floats, steps: Floats) -> Floats:
        """Losses after steps, (k,) or (1 + n_draws, k), at k pairs of batch size and learning rate: as `losses_at`."""
        table = self.table()
        losses = np.exp(table.log_loss(table.v_at_steps(steps, batch_sizes, learning_rates)))
        return np.where(self._is_unstable(batch_sizes, learning_rates), np.inf, losses)

    def best_steps(
        self, batch_sizes: Sequence[float] | Floats, loss: float, *, best_guess_only: bool = False
    ) -> tuple[Floats, Floats]:
        """Fewest steps to a loss over constant learning rates, re-tuned for every batch size, and that rate.

        Returns:
            steps and learning rates, each (1 + n_draws, k), or (1, k).
        """
        batch_sizes = np.asarray(batch_sizes, float)
        table = self.table(best_guess_only=best_guess_only)
        v_loss = table.v_of_loss(loss)
        centre = table.log_learning_rate(np.minimum(v_loss, table.grid[-1])[:, None], batch_sizes[None, :])
        limits = np.array([self._largest_stable(size) for size in batch_sizes])
        steps = np.full((len(_LEARNING_RATE_OCTAVES), *centre.shape), np.inf)
        rates = np.exp(centre[None] + _LEARNING_RATE_OCTAVES[:, None, None] * math.log(2.0))
        rates = np.minimum(rates, limits * (1.0 - 1e-9))
        for i, rate in enumerate(rates):
            steps[i] = table.steps_at(v_loss, batch_sizes, rate)
        chosen = np.argmin(steps, axis=0)[None]
        return np.take_along_axis(steps, chosen, 0)[0], np.take_along_axis(rates, chosen, 0)[0]

    def row(self, index: int) -> LawPosterior:
        """One row as the best guess, without draws: 0 the best guess itself, then the draws."""
        return replace(self, best=(self.best, *self.draws)[index], draws=())

    def best_rates(self, batch_sizes: Floats) -> Floats:
        """The best guess of the best learning rate, at the lowest loss that was observed, (k,)."""
        table = self.table(best_guess_only=True)
        v = np.minimum(table.v_of_loss(self.lowest_loss), table.grid[-1])
        return np.asarray(np.exp(table.log_learning_rate(v[:, None], batch_sizes[None, :])[0]))

    @property
    def middle_rate(self) -> float:
        """In the middle of the best rates."""
        return math.exp(self.best[SHAPE.index("log_lr")])

    def hyperbola(self, loss: float) -> tuple[Floats, Floats]:
        """S_min and E_min of the trade-off to a loss, each (1 + n_draws,); inf where the loss is not reached.

        The hyperbola S = S_min + E_min / B (eq. 2.11) is fitted, with relative errors, to the fewest steps over a
        factor of 1,024 in batch size around the critical batch size.
        """
        if loss >= self.initial_loss:
            never = np.full(1 + len(self.draws), np.inf)
            return never, never
        middle = float(np.median(self.table().mean_critical_batch_size(loss)))
        batch_sizes = middle * 2.0**_BATCH_SIZE_OCTAVES
        steps, _ = self.best_steps(batch_sizes, loss)
        return hyperbolas_through(batch_sizes, steps)

    def _largest_stable(self, batch_size: float) -> float:
        return min((rate for size, rate in self.unstable if size >= batch_size), default=math.inf)

    def _is_unstable(self, batch_sizes: Floats, learning_rates: Floats) -> NDArray[np.bool_]:
        return learning_rates >= np.array([self._largest_stable(size) for size in batch_sizes])


def interpolate_rising(curves: Floats, values: Floats, grid: Floats) -> Floats:
    """Where on an even grid curves have given values, (n, k); held at its ends.

    Args:
        curves: rising, (n, k, n_grid).
        values: (k,) or (n, k).
        grid: evenly spaced, (n_grid,).
    """
    values = np.broadcast_to(values, curves.shape[:2])
    left = np.clip(np.sum(curves <= values[:, :, None], axis=2) - 1, 0, len(grid) - 2)[:, :, None]
    low, high = (np.take_along_axis(curves, left + k, axis=2)[:, :, 0] for k in (0, 1))
    part = np.clip((values - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
    return np.asarray(grid[0] + (left[:, :, 0] + part) * (grid[1] - grid[0]))


def _log_best_rate(past_mid: Floats, log_sizes: Floats, shape: Floats) -> Floats:
    """log lr*, from parameters (n, n_shape, ...) that broadcast against the others."""
    names = ("log_b", "log_lr", "d", "log_k", "g", "alpha")
    log_b, log_lr, d, log_k, g, alpha = (shape[:, SHAPE.index(name)] for name in names)
    of_steps = log_lr - d * past_mid
    of_examples = log_lr + log_k + alpha * (log_sizes - log_b) - g * past_mid
    return np.asarray(of_steps - np.logaddexp(0.0, of_steps - of_examples))


def _log_cost(log_x: Floats, log_a: Floats) -> Floats:
    """log c(x; a)."""
    a = np.exp(log_a)
    return np.asarray(np.logaddexp(log_a, (1.0 + a) * log_x) - np.log1p(a) - log_x)


@dataclass(frozen=True, slots=True)
class Frame:
    """What parameters are relative to.

    Attributes:
        knots: v of the knots of F, (n_knots,).
        v_mid: middle of the observed v.
        log_initial: log L0.
        scale: y0.
        delay: steps that momentum lags behind.
        grid_points: of the grid of v that everything is tabulated on.
    """

    knots: Floats
    v_mid: float
    log_initial: float
    scale: float
    delay: float
    grid_points: int = GRID_POINTS

    def coarser(self, grid_points: int) -> Frame:
        """The same, tabulated on fewer points."""
        return replace(self, grid_points=grid_points)

    def table(self, rows: Floats) -> LawTable:
        """The law of parameter rows."""
        return LawTable(rows, self)


class LawTable:
    """The law of many parameter rows at once, tabulated over a common grid of v.

    Args:
        rows: parameters, (n, n_parameters).
        frame: what they are relative to.
    """

    def __init__(self, rows: Floats, frame: Frame) -> None:
        self.rows, self.frame, self.knots = rows, frame, frame.knots
        self.grid = np.linspace(0.0, frame.knots[-1], frame.grid_points)

    @cached_property
    def knot_log_losses(self) -> Floats:
        """log F at the knots, (n, n_knots)."""
        drops = self._slopes * np.diff(self.knots)
        return self.frame.log_initial - np.concatenate(
            [np.zeros((len(self.rows), 1)), np.cumsum(drops, axis=1)], axis=1
        )

    def log_loss(self, v: Floats) -> Floats:
        """log F at v, (n, k) for v of shape (n, k)."""
        pairs = zip(v, self.knot_log_losses, strict=True)
        return np.array([np.interp(row, self.knots, losses) for row, losses in pairs])

    def log_loss_slope(self, v: Floats) -> Floats:
        """d log F / dv at v, (n, k) for v of shape (n, k)."""
        piece = np.clip(np.searchsorted(self.knots, v, side="right") - 1, 0, len(self.knots) - 2)
        return np.asarray(-np.take_along_axis(self._slopes, piece, axis=1) * (v < self.knots[-1]))

    def log_loss_by_slopes(self, v: Floats) -> Floats:
        """Derivatives of log F at v by the log slopes between knots, (n, k, n_slopes) for v of shape (n, k)."""
        covered = np.clip(v[:, :, None] - self.knots[:-1], 0.0, np.diff(self.knots))
        return np.asarray(-covered * self._slopes[:, None, :])

    @cached_property
    def _slopes(self) -> Floats:
        return np.asarray(np.exp(np.minimum(self.rows[:, len(SHAPE) :], 5.0)))

    def v_of_loss(self, loss: float) -> Floats:
        """v at which F reaches a loss, (n,); inf where it does not."""
        target = -math.log(loss)
        return np.array([np.interp(target, -row, self.knots, right=np.inf) for row in self.knot_log_losses])

    def log_b(self, v: Floats) -> Floats:
        """log of the local critical batch size, (n, k)."""
        return self._parameter("log_b") + self._parameter("q") * (v - self.frame.v_mid)

    def mean_critical_batch_size(self, loss: float) -> Floats:
        """y over the integral of dy / b, at a loss (or at the end of the grid), (n,): E_min / S_min but for tuning."""
        v = np.minimum(self.v_of_loss(loss), self.grid[-1])
        part = np.linspace(0.0, 1.0, GRID_POINTS) * v[:, None]
        rate = np.exp(part - self.log_b(part))
        return np.asarray(np.expm1(v) / np.trapezoid(rate, part, axis=1))

    def log_learning_rate(self, v: Floats, batch_sizes: Floats) -> Floats:
        """log lr* at v and batch sizes, (n, k)."""
        return _log_best_rate(v - self.frame.v_mid, np.log(batch_sizes), self.rows[:, : len(SHAPE), None])

    def cumulative_steps(self, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """Steps from initialisation to every grid point, (n, k, n_grid).

        Args:
            batch_sizes: (k,) or (n, k).
            learning_rates: (k,) or (n, k).
        """
        shape = self.rows[:, : len(SHAPE), None, None]
        sizes = np.log(np.broadcast_to(batch_sizes, (len(self.rows), np.shape(batch_sizes)[-1])))[:, :, None]
        rates = np.log(np.broadcast_to(learning_rates, sizes.shape[:2]))[:, :, None]
        past_mid = (self.grid - self.frame.v_mid)[None, None, :]
        log_b = shape[:, SHAPE.index("log_b")] + shape[:, SHAPE.index("q")] * past_mid
        best = np.logaddexp(-log_b, -sizes)  # log steps per y, at the best rates
        of_steps = np.exp(-log_b - best)
        log_a_steps, log_a_examples = (shape[:, SHAPE.index(name)] for name in ("log_a_steps", "log_a_examples"))
        log_a = of_steps * log_a_steps + (1.0 - of_steps) * log_a_examples
        cost = _log_cost(rates - _log_best_rate(past_mid, sizes, shape), log_a)
        log_growth = math.log(self.frame.scale) + self.grid[None, None, :]  # log dy/dv
        pace = np.exp(np.minimum(log_growth + best + cost, _LARGEST_LOG))  # d steps / dv
        areas = 0.5 * (pace[..., 1:] + pace[..., :-1]) * (self.grid[1] - self.grid[0])
        steps = np.concatenate([np.zeros((*areas.shape[:2], 1)), np.cumsum(areas, axis=2)], axis=2)
        delay = self.frame.delay
        return steps - delay * np.expm1(-steps / delay) if delay else steps

    def steps_at(self, v: Floats, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """Steps from initialisation to v (n,), at (k,) or (n, k) settings: (n, k); inf where v is."""
        count = np.shape(batch_sizes)[-1]
        blocks = [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)] or [slice(0, 0)]
        return np.concatenate(
            [self._steps_at(v, batch_sizes[..., block], learning_rates[..., block]) for block in blocks], axis=1
        )

    def _steps_at(self, v: Floats, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        table = self.cumulative_steps(batch_sizes, learning_rates)
        position = np.minimum(v, self.grid[-1]) / (self.grid[1] - self.grid[0])
        left = np.minimum(position.astype(int), len(self.grid) - 2)
        part = (position - left)[:, None]
        low = np.take_along_axis(table, left[:, None, None], 2)[..., 0]
        high = np.take_along_axis(table, left[:, None, None] + 1, 2)[..., 0]
        return np.where(np.isfinite(v)[:, None], low + part * (high - low), np.inf)

    def v_at_steps(self, steps: Floats, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """v after steps (k,) or (n, k) from initialisation at (k,) settings: (n, k); held at the end of the grid."""
        return interpolate_rising(self.cumulative_steps(batch_sizes, learning_rates), steps, self.grid)

    def _parameter(self, name: str) -> Floats:
        return self.rows[:, SHAPE.index(name), None]
