"""The loss of a run under any schedule of batch size and learning rate.

Notation
    eta, B    learning rate and batch size of a step
    b         batch size at which noise and signal of the gradient are equal, b_0 (1 + tau / tau_0)^g
    eps       what the optimizer makes of the rate: eta for SGD, eta (1 + b / B)^(-1/2) where it divides by the size of
              a noisy gradient
    tau       intrinsic time, the sum of eps / (1 + (eps / eps_s) (1 + b / B)) over steps
    eps_s     rate beyond which, without noise, a higher one makes little more progress
    v         log(1 + tau / tau_0)
    F         signal, the loss that there would be without noise: L_inf + (L_0 - L_inf) exp(-D(v)), D rising and
              piecewise linear between knots
    q         noise that a unit of intrinsic time adds to the loss, A (L / L_0)^kappa eps (1 / B + 1 / B_o + h)
    B_o       batch size beyond which the loss oscillates no less: part of it is not from sampling
    h         the shock of a rate beyond the edge of stability, (eps / eps_e)^m (1 + tau / tau_0)^(-1) / B_mid
    K         what is left of noise after u of intrinsic time, (1 + u / u_0)^(-beta)

    L(n) = F(tau_n) + integral of q(s) K(tau_n - s) ds from 0 to tau_n

Noise acts in two ways. It adds to the loss and is forgotten, as in functional scaling laws (Li et al. 2025, arXiv
2509.19189) and in noisy quadratics with a power-law spectrum (Zhang et al. 2019, arXiv 1907.04164): curvature forgets
noise as fast as it lets the signal fall. And it slows progress, as McCandlish et al. have it (arXiv 1812.06162): a step
makes at most a share 1 / (1 + b / B) of the most that a step makes without noise, whatever its rate. Without the
second, the law let small batches fall too fast and large ones too slowly late in training, on all networks.

A constant rate, warm-up, any decay, restarts and batch-size schedules are special cases. K is a sum of exponentials, so
that a run is simulated piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]
    DType = np.dtype[np.float64]

SHAPE = (
    "log_noise", "log_memory", "forgetting", "kappa", "log_oscillation", "log_edge", "log_gradient_noise",
    "gradient_noise_growth", "floor", "log_saturation",
)  # fmt: skip
"""Names of the leading parameters: logs of A and u_0, beta, kappa, logs of B_o, eps_e and b_0, g, the logit of
L_inf over the lowest observed loss, and the log of eps_s. The log slopes of D between knots follow."""
EDGE_POWER = 4
"""m: how sharp the edge of stability is. Set by hand: free, it came out between 2 and 4 on softmax regression."""
MODES = 8
MODE_RATIO = 4.0
FASTEST_MODE = 3.0
"""K as a sum of exponentials with rates 3 / u_0, a quarter of that, and so on: within 0.03 of the power law, which is 1
at first, for beta from 0.6 to 2."""
MODE_RATES = FASTEST_MODE * MODE_RATIO ** -np.arange(float(MODES))[:, None]
LOG_LARGEST_SHARE = math.log(10.0)
"""The loss counts in q up to the exponential of this times L_0: what is beyond has diverged."""
LARGEST_SHOCK, LARGEST_LOG_SLOPE, LARGEST_LOG_GROWTH, LEAST_FORGETTING = math.exp(20.0), 4.0, 20.0, 0.05
"""Bounds far beyond what is believed of parameters, so that a search that goes astray does not overflow."""
COLUMNS = 8192
"""Pairs of a row and a run that are taken through their pieces together: what they need fits the cache."""
DIVERGED = 20.0
"""A loss is cut off at this multiple of L_0."""


@dataclass(frozen=True, slots=True)
class Course:
    """The steps of a run in pieces of one batch size and nearly one learning rate.

    Attributes:
        steps: of each piece; need not be whole, (k,).
        batch_sizes: (k,).
        learning_rates: mean over the piece, (k,).
    """

    steps: Floats
    batch_sizes: Floats
    learning_rates: Floats


def course(
    batch_size: float,
    learning_rate: float,
    edges: Sequence[float] | Floats,
    multiplier: Callable[[Floats], Floats] | None = None,
    *,
    delay: float = 0.0,
) -> Course:
    """A run at one batch size, in pieces between given numbers of steps.

    Args:
        batch_size: examples per step.
        learning_rate: its peak.
        edges: numbers of steps, rising from 0, (k + 1,).
        multiplier: of the rate, by steps so far; None for a constant rate.
        delay: steps that momentum lags behind once it has built up.
    """
    edges = np.asarray(edges, float)
    lagged = edges - delay * -np.expm1(-edges / delay) if delay else edges
    rates = np.full(len(edges) - 1, float(learning_rate))
    if multiplier is not None:
        inside = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(8) + 0.5) / 8
        rates = rates * multiplier(inside).mean(axis=1)
    return Course(np.diff(lagged), np.full(len(rates), float(batch_size)), rates)


class Courses:
    """Courses of different lengths side by side: pieces of no steps fill the shorter ones up, each (runs, pieces)."""

    def __init__(self, courses: Sequence[Course]) -> None:
        shape = (len(courses), max(len(each.steps) for each in courses))
        self.steps, self.batch_sizes, self.learning_rates = np.zeros(shape), np.ones(shape), np.ones(shape)
        for i, each in enumerate(courses):
            own = slice(len(each.steps))
            self.steps[i, own], self.batch_sizes[i, own] = each.steps, each.batch_sizes
            self.learning_rates[i, own] = each.learning_rates

    @classmethod
    def even(cls, steps: Floats, batch_sizes: Floats, learning_rates: Floats) -> Courses:
        """Courses with as many pieces each: steps and learning rates (runs, pieces), batch sizes (runs,)."""
        every = cls.__new__(cls)
        every.steps, every.learning_rates = steps, learning_rates
        every.batch_sizes = np.broadcast_to(batch_sizes[:, None], steps.shape)
        return every

    @property
    def pieces(self) -> Indices:
        """Of each run, (runs,)."""
        any_steps = self.steps > 0
        return np.asarray(any_steps.shape[1] - np.argmax(any_steps[:, ::-1], axis=1))

    @property
    def peaks(self) -> Floats:
        """The highest learning rate of each run, (runs,)."""
        return np.asarray(self.learning_rates.max(axis=1, where=self.steps > 0, initial=0.0))

    @property
    def longest(self) -> float:
        """The largest sum of learning rates over the steps of a run."""
        return float(np.sum(self.steps * self.learning_rates, axis=1).max())


@dataclass(frozen=True, slots=True)
class Frame:
    """What the parameters are relative to.

    Attributes:
        initial_loss: L_0.
        lowest_loss: that was observed; L_inf is below.
        scale: tau_0.
        knots: of D, evenly spaced in v from 0, (k,).
        batch_size: B_mid.
        is_adaptive: whether the optimizer divides by the size of the gradient.
    """

    initial_loss: float
    lowest_loss: float
    scale: float
    knots: Floats
    batch_size: float
    is_adaptive: bool


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # of a search that goes astray
def losses(
    rows: Floats, frame: Frame, courses: Courses, *, single: bool = False, stretch: Floats | None = None
) -> Floats:
    """The loss at initialisation and after every piece of every course, by every row of parameters.

    Args:
        rows: (n, parameters), in the order of `SHAPE` and then the log slopes of D.
        frame: what they are relative to.
        courses: of the runs.
        single: compute in single precision: half the time, and off by some parts in a million.
        stretch: what the steps of each run count for by each row, (n, runs); None for 1.

    Returns:
        (n, runs, pieces + 1).
    """
    rows = np.asarray(rows, np.float32 if single else np.float64)
    found = np.full((len(rows), len(courses.steps), courses.steps.shape[1] + 1), frame.initial_loss, rows.dtype)
    for row, run, pieces in columns_of(len(rows), courses, COLUMNS):
        law = Law(rows, frame, row)
        state = law.start()
        own = None if stretch is None else stretch[row, run]
        for k, setting in enumerate(settings_of(courses, run, pieces, rows.dtype, own)):
            state = law.after(state, *setting)
            found[row, run, k + 1] = state.loss
        found[row, run, pieces + 1 :] = state.loss[:, None]
    return found


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def log_noise_scales(rows: Floats, frame: Frame, courses: Courses) -> Floats:
    """Logs of b at the end of courses, by every row of parameters, (n, runs)."""
    found = np.empty((len(rows), len(courses.steps)))
    for row, run, pieces in columns_of(len(rows), courses, COLUMNS):
        law = Law(rows, frame, row)
        state = law.start()
        for setting in settings_of(courses, run, pieces, rows.dtype):
            state = law.after(state, *setting)
        found[row, run] = law.log_noise_scale(state.v)
    return found


def columns_of(rows: int, courses: Courses, most: int) -> Iterator[tuple[Indices, Indices, int]]:
    """All pairs of a row and a run, some at a time: row and run of each, (columns,), and pieces of the longest."""
    lengths = courses.pieces
    order = np.argsort(lengths, kind="stable")
    run, row = np.repeat(order, rows), np.tile(np.arange(rows), len(order))
    for begin in range(0, len(run), most):
        part = slice(begin, begin + most)
        yield row[part], run[part], int(lengths[run[part]].max())


def settings_of(
    courses: Courses, run: Indices, pieces: int, dtype: DType, stretch: Floats | None = None
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Steps, batch size and learning rate of each of the first pieces, each by column; steps times `stretch`."""
    tables = (courses.steps, courses.batch_sizes, courses.learning_rates)
    steps, sizes, rates = (table.T[:pieces].astype(dtype).take(run, axis=1) for table in tables)
    if stretch is not None:
        steps = steps * stretch.astype(dtype)
    return zip(steps, sizes, rates, strict=True)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a piece did, by column: beside what the notation has, parts of it that derivatives need.

    Attributes:
        noisy: share of noise in the squared gradient of a batch, b / (b + B).
        rate: eps.
        slowed: share of a step's progress that is lost to noise and to its length.
        time: intrinsic, that passed.
        fall: exp(-D) at its end.
        knot: of D that is the last before its end.
        slope: of D there.
        log_middle: log of the loss in its middle over L_0.
        shock: h.
        source: 1 / B + 1 / B_o + h.
        injected: q.
        faded: what noise loses over it, as exp(-time * rate) - 1, (modes, columns).
    """

    noisy: Floats
    rate: Floats
    slowed: Floats
    time: Floats
    fall: Floats
    knot: Indices
    slope: Floats
    log_middle: Floats
    shock: Floats
    source: Floats
    injected: Floats
    faded: Floats


@dataclass(frozen=True, slots=True)
class State:
    """Runs in the middle: intrinsic time, v, signal, loss and their logs by column; noise by mode, (modes, columns)."""

    tau: Floats
    v: Floats
    signal: Floats
    log_signal: Floats
    loss: Floats
    log_loss: Floats
    noise: Floats
    piece: Piece | None = None


class Law:
    """Parameters of columns, ready to take a run each through pieces.

    Args:
        rows: of parameters, (n, parameters).
        frame: what they are relative to.
        row: of each column, (columns,).
    """

    def __init__(self, rows: Floats, frame: Frame, row: Indices) -> None:
        self.frame, self.row = frame, row
        self.named = dict(zip(SHAPE, rows.T[: len(SHAPE), row], strict=True))
        named = self.named
        self.noise, self.kappa = np.exp(named["log_noise"]), named["kappa"]
        self.oscillation, self.edge = np.exp(-named["log_oscillation"]), np.exp(named["log_edge"])
        self.log_gradient_noise, self.growth = named["log_gradient_noise"], named["gradient_noise_growth"]
        self.saturation = np.exp(named["log_saturation"])
        self.floor = frame.lowest_loss / (1.0 + np.exp(-named["floor"]))
        # (1 + x)^(-beta) is the Laplace transform of a Gamma density of shape beta, here on a grid of log rates.
        grid = MODE_RATES.astype(rows.dtype)
        weights = grid ** np.maximum(named["forgetting"], LEAST_FORGETTING) * np.exp(-grid)
        self.rates = grid / np.exp(named["log_memory"])
        self.shares = weights / weights.sum(axis=0) / self.rates
        self._set_signal(rows, row)

    def _set_signal(self, rows: Floats, row: Indices) -> None:
        self.spacing = float(self.frame.knots[1])
        self.slopes = np.exp(np.minimum(rows[:, len(SHAPE) :], LARGEST_LOG_SLOPE))
        before = np.cumsum(self.slopes, axis=1) - self.slopes
        self._flat_slopes = self.slopes.ravel()
        self._offsets = ((before - self.slopes * np.arange(before.shape[1], dtype=rows.dtype)) * self.spacing).ravel()
        self._first = row * self.slopes.shape[1]

    def log_noise_scale(self, v: Floats) -> Floats:
        """Of b, (columns,)."""
        return np.asarray(self.log_gradient_noise + np.minimum(self.growth * v, LARGEST_LOG_GROWTH))

    def start(self) -> State:
        """Runs at initialisation."""
        zero = np.zeros_like(self.noise)
        first = zero + self.frame.initial_loss
        log_first = np.log(first)
        return State(zero, zero, first, log_first, first, log_first, np.zeros_like(self.shares))

    def after(self, state: State, steps: Floats, batch_sizes: Floats, learning_rates: Floats) -> State:
        """The runs after a piece each: steps, batch size and learning rate, each (columns,)."""
        frame = self.frame
        clean = batch_sizes / (batch_sizes + np.exp(self.log_noise_scale(state.v)))
        noisy = 1.0 - clean
        rate = learning_rates * np.sqrt(clean) if frame.is_adaptive else learning_rates
        left = 1.0 / (1.0 + rate / (self.saturation * clean))
        time = rate * left * steps
        tau = state.tau + time
        longer = 1.0 + tau / frame.scale
        v = np.log(longer)
        knot = np.fmin(v / self.spacing, self.slopes.shape[1] - 1).astype(np.intp)  # also where v is not finite
        at = self._first + knot
        slope = self._flat_slopes[at]  # beyond the knots, the last one
        fall = np.exp(-(self._offsets[at] + slope * v))
        signal = self.floor + (frame.initial_loss - self.floor) * fall
        log_signal = np.log(signal)
        # The loss in the middle of the piece, from the fall of the signal alone.
        log_middle = state.log_loss - math.log(frame.initial_loss) + 0.5 * (log_signal - state.log_signal)
        log_middle = np.minimum(log_middle, LOG_LARGEST_SHARE)
        squared = (rate / self.edge) ** 2
        shock = np.minimum(squared * squared, LARGEST_SHOCK) / (longer * frame.batch_size)
        source = 1.0 / batch_sizes + self.oscillation + shock
        injected = self.noise * rate * source * np.exp(self.kappa * log_middle)
        faded = self._faded(time)
        noise = injected * self.shares
        np.subtract(state.noise, noise, out=noise)
        noise *= faded
        noise += state.noise
        loss = np.minimum(signal + noise.sum(axis=0), DIVERGED * frame.initial_loss)
        piece = Piece(noisy, rate, 1.0 - left, time, fall, knot, slope, log_middle, shock, source, injected, faded)
        return State(tau, v, signal, log_signal, loss, np.log(loss), noise, piece)

    def _faded(self, time: Floats) -> Floats:
        """exp(-time * rate) - 1 by mode: each mode is four times as fast as the next, (1 + x)^2 - 1 = x (2 + x)."""
        faded: Floats = np.empty_like(self.shares)
        faded[-1] = np.expm1(-time * self.rates[-1])
        for mode in range(MODES - 1, 0, -1):
            half = faded[mode] + 2.0
            half *= faded[mode]
            np.add(half, 2.0, out=faded[mode - 1])
            faded[mode - 1] *= half
        return faded


def frame_of(
    courses: Courses, *, initial_loss: float, lowest_loss: float, is_adaptive: bool, spacing: float = 0.5
) -> Frame:
    """What the parameters of a law of these runs are relative to.

    tau_0 is the mean over runs of the first piece's steps times its rate; the last knot is where the longest run would
    be by its rates alone, which noise keeps it from.
    """
    first = float(np.exp(np.mean(np.log(courses.steps[:, 0] * courses.learning_rates[:, 0]))))
    end = math.log1p(courses.longest / first)
    knots = np.linspace(0.0, end, max(3, math.ceil(end / spacing) + 1))
    size = float(np.exp(np.mean(np.log(courses.batch_sizes[:, 0]))))
    return Frame(initial_loss, lowest_loss, first, knots, size, is_adaptive)
