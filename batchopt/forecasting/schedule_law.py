"""The loss of a run under any schedule of batch size and learning rate.

Notation
    eta, B    learning rate and batch size of a step
    psi       what an optimizer that divides by the size of a noisy gradient leaves of the rate, (1 + b / B)^(-1/2)
    b         batch size at which noise and signal of that gradient are equal, b_0 (1 + tau / tau_0)^g; 0 for SGD
    tau       intrinsic time, the sum of eta psi over steps
    v         log(1 + tau / tau_0)
    F         signal, the loss that there would be without noise: L_inf + (L_0 - L_inf) exp(-D(v)), D rising and
              piecewise linear between knots
    q         noise that a unit of intrinsic time adds to the loss, A (L / L_0)^kappa eta psi (1 / B + 1 / B_o + e)
    B_o       batch size beyond which the loss oscillates no less: part of it is not from sampling
    e         the shock of a rate beyond the edge of stability, (eta psi / eta_e)^m (1 + tau / tau_0)^(-1) / B_mid
    K         what is left of noise after u of intrinsic time, (1 + u / u_0)^(-beta)

    L(n) = F(tau_n) + integral of q(s) K(tau_n - s) ds from 0 to tau_n

A functional scaling law (Li et al. 2025, arXiv 2509.19189), which is what noisy quadratics with a power-law spectrum do
(Zhang et al. 2019, arXiv 1907.04164): curvature forgets noise as fast as it lets the signal fall. A constant rate,
warm-up, any decay, restarts and batch-size schedules are special cases, and so are McCandlish's trade-off (arXiv
1812.06162) and the rate that is best for a batch size. K is a sum of exponentials, so that a run is simulated piece by
piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHAPE = (
    "log_noise", "log_memory", "forgetting", "kappa", "log_oscillation", "log_edge", "log_gradient_noise",
    "gradient_noise_growth", "floor",
)  # fmt: skip
"""Names of the leading parameters: logs of A and u_0, beta, kappa, logs of B_o, eta_e and b_0, g, and the logit of
L_inf over the lowest observed loss. The log slopes of D between knots follow."""
EDGE_POWER = 4.0
"""m: how sharp the edge of stability is. Set by hand: free, it came out between 2 and 4 on softmax regression."""
MODES = 8
MODE_RATIO = 4.0
FASTEST_MODE = 3.0
"""K as a sum of exponentials with rates 3 / u_0, a quarter of that, and so on: within 0.03 of the power law, which is 1
at first, for beta from 0.6 to 2."""
LARGEST_SHARE = 10.0
"""The loss counts in q up to this multiple of L_0: what is beyond has diverged."""
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


def losses(rows: Floats, frame: Frame, courses: Courses) -> Floats:
    """The loss at initialisation and after every piece of every course, by every row of parameters.

    Args:
        rows: (n, parameters), in the order of `SHAPE` and then the log slopes of D.
        frame: what they are relative to.
        courses: of the runs.

    Returns:
        (n, runs, pieces + 1).
    """
    law = _Law(rows, frame)
    found = np.empty((len(rows), *courses.steps.shape))
    state = law.start(len(courses.steps))
    for k in range(courses.steps.shape[1]):
        piece = (courses.steps[:, k], courses.batch_sizes[:, k], courses.learning_rates[:, k])
        state = law.after(state, *piece)
        found[:, :, k] = state.loss
    first = np.full((*found.shape[:2], 1), frame.initial_loss)
    return np.concatenate([first, found], axis=2)


@dataclass(frozen=True, slots=True)
class _State:
    """Runs in the middle: intrinsic time, v, signal and loss, each (n, runs), and noise by mode, (n, runs, modes)."""

    tau: Floats
    v: Floats
    signal: Floats
    loss: Floats
    noise: Floats


class _Law:
    """Rows of parameters, ready to take runs through pieces."""

    def __init__(self, rows: Floats, frame: Frame) -> None:
        self.frame = frame
        named = dict(zip(SHAPE, rows.T[:, :, None], strict=False))  # each (n, 1)
        self.noise, self.kappa = np.exp(named["log_noise"]), named["kappa"]
        self.oscillation, self.log_edge = np.exp(-named["log_oscillation"]), named["log_edge"]
        self.gradient_noise, self.growth = np.exp(named["log_gradient_noise"]), named["gradient_noise_growth"]
        self.floor = frame.lowest_loss / (1.0 + np.exp(-named["floor"]))
        self._set_memory(np.exp(named["log_memory"]), np.maximum(named["forgetting"], 0.05))
        self.spacing = frame.knots[1]
        self.slopes = np.exp(np.minimum(rows[:, len(SHAPE) :], 4.0))
        self.drops = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(self.slopes * self.spacing, axis=1)], axis=1)

    def _set_memory(self, memory: Floats, forgetting: Floats) -> None:
        # (1 + x)^(-beta) is the Laplace transform of a Gamma density of shape beta, here on a grid of log rates.
        rates = FASTEST_MODE * MODE_RATIO ** -np.arange(float(MODES))
        weights = rates**forgetting * np.exp(-rates)
        self.rates = rates / memory
        self.shares = weights / weights.sum(axis=1, keepdims=True) / self.rates

    def start(self, runs: int) -> _State:
        """Runs at initialisation."""
        n = len(self.slopes)
        zero, first = np.zeros((n, runs)), np.full((n, runs), self.frame.initial_loss)
        return _State(zero, zero, first, first, np.zeros((n, runs, MODES)))

    def signal(self, v: Floats) -> Floats:
        """F at v, (n, runs); carried on with the last slope beyond the knots."""
        piece = np.clip((v / self.spacing).astype(int), 0, self.slopes.shape[1] - 1)
        slopes, drops = (np.take_along_axis(table, piece, axis=1) for table in (self.slopes, self.drops))
        drop = drops + slopes * (v - piece * self.spacing)
        return np.asarray(self.floor + (self.frame.initial_loss - self.floor) * np.exp(-drop))

    def after(self, state: _State, steps: Floats, batch_sizes: Floats, learning_rates: Floats) -> _State:
        """The runs after a piece each: steps, batch size and learning rate, each (runs,)."""
        frame = self.frame
        rate = np.broadcast_to(learning_rates, state.v.shape)
        if frame.is_adaptive:
            log_growth = np.minimum(self.growth * state.v, 20.0)
            rate = rate / np.sqrt(1.0 + self.gradient_noise * np.exp(log_growth) / batch_sizes)
        time = rate * steps
        tau = state.tau + time
        v = np.log1p(tau / frame.scale)
        signal = self.signal(v)
        # The loss in the middle of the piece, from the fall of the signal alone.
        middle = np.minimum(state.loss / frame.initial_loss * np.sqrt(signal / state.signal), LARGEST_SHARE)
        shock = np.exp(np.minimum(EDGE_POWER * (np.log(rate) - self.log_edge), 20.0) - v) / frame.batch_size
        injected = self.noise * rate * (1.0 / batch_sizes + self.oscillation + shock) * middle**self.kappa
        kept = np.exp(-time[:, :, None] * self.rates[:, None, :])
        noise = state.noise * kept + injected[:, :, None] * self.shares[:, None, :] * (1.0 - kept)
        loss = np.minimum(signal + noise.sum(axis=2), DIVERGED * frame.initial_loss)
        return _State(tau, v, signal, loss, noise)


def frame_of(
    courses: Courses, *, initial_loss: float, lowest_loss: float, is_adaptive: bool, spacing: float = 0.5
) -> Frame:
    """What the parameters of a law of these runs are relative to: tau_0 is the time of a median run's first piece."""
    first = float(np.exp(np.mean(np.log(courses.steps[:, 0] * courses.learning_rates[:, 0]))))
    end = math.log1p(courses.longest / first)
    knots = np.linspace(0.0, end, max(3, math.ceil(end / spacing) + 1))
    size = float(np.exp(np.mean(np.log(courses.batch_sizes[:, 0]))))
    return Frame(initial_loss, lowest_loss, first, knots, size, is_adaptive)
