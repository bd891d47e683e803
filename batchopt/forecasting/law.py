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
from batchopt.forecasting.law_paces import PacesOfSizes, interpolate_rising, trapezoid_weights
from batchopt.tradeoff import hyperbolas_through

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHAPE = ("log_b", "q", "log_lr", "d", "log_k", "g", "alpha", "log_a_steps", "log_a_examples")
"""Names of the leading parameters; the log slopes of F between its knots follow."""

GRID_POINTS = 128
_BLOCK = 16_384
"""Numbers that are worked out at a time: with what else they need they stay in a core's own cache."""
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
        rates = np.exp(centre[:, None] + _LEARNING_RATE_OCTAVES[:, None] * math.log(2.0))
        rates = np.minimum(rates, limits * (1.0 - 1e-9))  # (n, octaves, k)
        tried = np.tile(batch_sizes, len(_LEARNING_RATE_OCTAVES))
        steps = table.steps_at(v_loss, tried, rates.reshape(len(rates), -1)).reshape(rates.shape)
        chosen = np.argmin(steps, axis=1)[:, None]
        return np.take_along_axis(steps, chosen, 1)[:, 0], np.take_along_axis(rates, chosen, 1)[:, 0]

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


def _log_best_rate(past_mid: Floats, log_sizes: Floats, shape: Floats) -> Floats:
    """log lr*, from parameters (n, n_shape, ...) that broadcast against the others."""
    names = ("log_b", "log_lr", "d", "log_k", "g", "alpha")
    log_b, log_lr, d, log_k, g, alpha = (shape[:, SHAPE.index(name)] for name in names)
    of_steps = log_lr - d * past_mid
    of_examples = log_lr + log_k + alpha * (log_sizes - log_b) - g * past_mid
    return np.asarray(of_steps - np.logaddexp(0.0, of_steps - of_examples))


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
        log_loss, known = math.log(loss), self.knot_log_losses
        piece = np.clip(np.sum(known >= log_loss, axis=1) - 1, 0, len(self.knots) - 2)[:, None]
        start, slope = (np.take_along_axis(each, piece, axis=1)[:, 0] for each in (known, self._slopes))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            v = self.knots[piece[:, 0]] + np.maximum(0.0, start - log_loss) / slope
        return np.where(log_loss < known[:, -1], np.inf, v)

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

    def cumulative_steps(self, batch_sizes: Floats, learning_rates: Floats, *, n_grid: int | None = None) -> Floats:
        """Steps from initialisation to every grid point, (n, k, n_grid).

        Args:
            batch_sizes: (k,).
            learning_rates: (k,) or (n, k).
            n_grid: so many points of the grid; None for all.
        """
        grid = self.grid[:n_grid]
        steps = np.zeros((len(self.rows), len(batch_sizes), len(grid)))
        rates = np.broadcast_to(learning_rates, steps.shape[:2])
        many = max(1, _BLOCK // max(1, len(batch_sizes) * len(grid)))
        for block in (slice(start, start + many) for start in range(0, len(steps), many)):
            pace = self._paces(block, grid, batch_sizes).at(rates[block])
            areas = np.add(pace[..., 1:], pace[..., :-1], out=steps[block, :, 1:])
            areas *= 0.5 * (self.grid[1] - self.grid[0])
            np.cumsum(areas, axis=2, out=areas)
        return self._delayed(steps)

    def _paces(self, rows: slice, grid: Floats, batch_sizes: Floats) -> PacesOfSizes:
        named = dict(zip(SHAPE, self.rows[rows].T[:, :, None, None], strict=False))
        return PacesOfSizes(named, grid - self.frame.v_mid, self.frame.scale * np.exp(grid), batch_sizes)

    def _delayed(self, steps: Floats) -> Floats:
        delay = self.frame.delay
        return np.asarray(steps - delay * np.expm1(-steps / delay)) if delay else steps

    def steps_at(self, v: Floats, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """Steps from initialisation to v (n,), at settings: (n, k); inf where v is.

        Args:
            v: (n,).
            batch_sizes: (k,).
            learning_rates: (k,) or (n, k).
        """
        n, spacing = len(self.rows), self.grid[1] - self.grid[0]
        position = np.where(np.isfinite(v), np.minimum(v, self.grid[-1]), 0.0) / spacing
        left = np.minimum(position.astype(int), len(self.grid) - 2)
        grid = self.grid[: int(left.max(initial=0)) + 2]
        ends = np.stack([left, left + 1], axis=1)
        weights = spacing * trapezoid_weights(ends, len(grid))
        rates = np.broadcast_to(learning_rates, (n, len(batch_sizes)))
        found = np.empty((n, len(batch_sizes), 2))
        many = max(1, _BLOCK // (n * len(grid)))
        for size in np.unique(batch_sizes):  # of few sizes, each with many rates
            paces = self._paces(slice(None), grid, np.array([size]))
            own = np.flatnonzero(batch_sizes == size)
            for some in (own[start : start + many] for start in range(0, len(own), many)):
                found[:, some] = paces.at(rates[:, some]) @ weights
        low, high = np.moveaxis(self._delayed(found), 2, 0)
        part = (position - left)[:, None]
        return np.where(np.isfinite(v)[:, None], low + part * (high - low), np.inf)

    def v_at_steps(self, steps: Floats, batch_sizes: Floats, learning_rates: Floats) -> Floats:
        """v after steps (k,) or (n, k) from initialisation at (k,) settings: (n, k); held at the end of the grid."""
        return self.v_of_points(steps, batch_sizes, learning_rates, np.arange(len(batch_sizes)))

    def v_of_points(self, steps: Floats, batch_sizes: Floats, learning_rates: Floats, run: NDArray[np.int_]) -> Floats:
        """v of points of runs after steps, (n, m); held at the end of the grid.

        Args:
            steps: (m,) or (n, m).
            batch_sizes: of the runs, (k,).
            learning_rates: of the runs, (k,).
            run: which each point is of, (m,).
        """
        # No run makes more progress than it sees examples: beyond the most of them nothing need be tabulated.
        most = np.max(steps * batch_sizes[run], initial=0.0)
        last = np.log1p(most / self.frame.scale) / (self.grid[1] - self.grid[0])
        n_grid = int(min(last + 3.0, len(self.grid))) if np.isfinite(last) else len(self.grid)
        return interpolate_rising(
            self.cumulative_steps(batch_sizes, learning_rates, n_grid=n_grid), steps, self.grid, run
        )

    def _parameter(self, name: str) -> Floats:
        return self.rows[:, SHAPE.index(name), None]
