"""Derivatives of the schedule law by its parameters, carried along a run with it.

Notation of `schedule_law`; d is a derivative by every parameter. Only three of them move time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.schedule_law import (
    DIVERGED,
    EDGE_POWER,
    LARGEST_LOG_GROWTH,
    LARGEST_LOG_SLOPE,
    LARGEST_SHOCK,
    LEAST_FORGETTING,
    LOG_LARGEST_SHARE,
    MODE_RATES,
    MODES,
    SHAPE,
    Courses,
    Frame,
    Law,
    Piece,
    State,
    columns_of,
    settings_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

_AT = {name: i for i, name in enumerate(SHAPE)}
_KEPT = 65_536
"""Numbers of one table of derivatives, by parameter, mode and column, that fit the cache."""


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # of a search that goes astray
def log_loss_slopes(
    rows: Floats, frame: Frame, courses: Courses, run: Indices, piece: Indices, *, stretch: Floats | None = None
) -> tuple[Floats, Floats]:
    """Log losses after some pieces of some courses, and their derivatives by the parameters.

    Args:
        rows: (n, parameters), as for `losses`.
        frame: what they are relative to.
        courses: of the runs.
        run: of each place, (m,).
        piece: after which the loss is meant, (m,).
        stretch: as for `losses`.

    Returns:
        (n, m) and (n, m, parameters); not finite where the parameters are far beyond what a law is.
    """
    places, place = np.unique(run * courses.steps.shape[1] + piece, return_inverse=True)
    table = np.full(courses.steps.shape, -1)
    table.ravel()[places] = np.arange(len(places))
    values, slopes = np.empty((len(rows), len(places))), np.empty((len(rows), len(places), rows.shape[1]))
    for row, own, k, state, slope in _followed(rows, frame, courses, stretch):
        at = table[own, k]
        here = np.flatnonzero(at >= 0)
        values[row[here], at[here]] = state.log_loss[here]
        slopes[row[here], at[here]] = (slope.loss[:, here] / state.loss[here]).T
    return values[:, place], slopes[:, place]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def log_noise_scale_slopes(rows: Floats, frame: Frame, courses: Courses) -> tuple[Floats, Floats]:
    """Logs of the noise scale b at the end of courses, (n, runs), and their derivatives, (n, runs, parameters)."""
    values, slopes = np.empty((len(rows), len(courses.steps))), np.zeros((len(rows), len(courses.steps), rows.shape[1]))
    for row, own, _, state, slope in _followed(rows, frame, courses):
        values[row, own] = slope.law.log_noise_scale(state.v)
        slopes[row[:, None], own[:, None], slope.moves] = slope.of_log_noise_scale(state.v).T
    return values, slopes


def _followed(
    rows: Floats, frame: Frame, courses: Courses, stretch: Floats | None = None
) -> Iterator[tuple[Indices, Indices, int, State, _Slopes]]:
    """Row and run of columns, number of a piece, and the state and its derivatives after it."""
    for row, own, pieces in columns_of(len(rows), courses, max(1, _KEPT // (rows.shape[1] * MODES))):
        law = Law(rows, frame, row)
        state, slope = law.start(), _Slopes(law, rows.shape[1])
        longer = None if stretch is None else stretch[row, own]
        for k, setting in enumerate(settings_of(courses, own, pieces, rows.dtype, longer)):
            before, state = state, law.after(state, *setting)
            slope.follow(before, state)
            yield row, own, k, state, slope


class _Slopes:
    """d of time and v by the parameters that move them, (3, columns), of signal and loss by all, and of noise.

    Knots that no run has come to have no derivatives yet: only the first rows of tables are live.
    """

    def __init__(self, law: Law, parameters: int) -> None:
        columns = len(law.floor)
        self.law, self.moves = law, [_AT["log_gradient_noise"], _AT["gradient_noise_growth"], _AT["log_saturation"]]
        self.tau = self.v = np.zeros((3, columns))
        self.signal, self.loss = np.zeros((2, parameters, columns))
        self.noise, self._new = np.zeros((2, parameters, MODES, columns))
        self._live = 0
        forgetting = law.named["forgetting"]
        weights = law.shares * law.rates
        mean = np.sum(weights * np.log(MODE_RATES), axis=0)
        self._by_forgetting = (forgetting > LEAST_FORGETTING) * law.shares * (np.log(MODE_RATES) - mean)
        self._floor = law.floor * (1.0 - law.floor / law.frame.lowest_loss)
        self._knots = law.frame.knots[:-1, None]
        widths = np.full(len(self._knots), law.spacing)
        widths[-1] = np.inf
        self._widths = widths[:, None]
        own = law.slopes[law.row].T
        self._log_slopes = own * (own < np.exp(LARGEST_LOG_SLOPE))

    def follow(self, before: State, after: State) -> None:
        """Derivatives after a piece that took the runs from one state to the next."""
        law, piece = self.law, after.piece
        assert piece is not None  # only a start has none
        log_rate, log_time = self._of_logs(before, piece)
        time = piece.time * log_time
        self.tau = self.tau + time
        self.v = self.tau / (law.frame.scale * np.exp(after.v))
        live = self._live = len(SHAPE) + 1 + int(piece.knot.max())
        middle = self.loss[:live] / before.loss - self.signal[:live] * (0.5 / before.signal)
        self._take_signal(after, piece)
        middle += self.signal[:live] * (0.5 / after.signal)
        middle *= piece.log_middle < LOG_LARGEST_SHARE
        injected = self._of_log_injected(piece, log_rate, middle)
        injected *= piece.injected
        self._carry(before, piece, injected, time)
        np.add(self.signal[:live], self.noise[:live].sum(axis=1), out=self.loss[:live])
        self.loss[:live] *= after.loss < DIVERGED * law.frame.initial_loss

    def _of_logs(self, before: State, piece: Piece) -> tuple[Floats, Floats]:
        """d of the logs of eps and of the time that passed, by what moves time, each (3, columns)."""
        law = self.law
        noisy = piece.noisy * self.of_log_noise_scale(before.v)
        log_rate = -0.5 * noisy if law.frame.is_adaptive else np.zeros_like(noisy)
        load = log_rate + noisy
        load[2] -= 1.0
        return log_rate, log_rate - piece.slowed * load

    def of_log_noise_scale(self, v: Floats) -> Floats:
        """d of the log of b at v, by what moves time, (3, columns)."""
        grows = self.law.growth * v < LARGEST_LOG_GROWTH
        found = self.law.growth * self.v * grows
        found[0] += 1.0
        found[1] += v * grows
        return np.asarray(found)

    def _take_signal(self, after: State, piece: Piece) -> None:
        law, live = self.law, self._live
        first, knots = len(SHAPE), live - len(SHAPE)
        falls = -(law.frame.initial_loss - law.floor) * piece.fall
        passed = np.subtract(after.v, self._knots[:knots], out=self.signal[first:live])
        np.clip(passed, 0.0, self._widths[:knots], out=passed)
        passed *= falls
        passed *= self._log_slopes[:knots]
        self.signal[_AT["floor"]] = self._floor * (1.0 - piece.fall)
        self.signal[self.moves] = falls * piece.slope * self.v

    def _of_log_injected(self, piece: Piece, log_rate: Floats, middle: Floats) -> Floats:
        law = self.law
        share = piece.shock / piece.source
        rises = EDGE_POWER * ((piece.rate / law.edge) ** EDGE_POWER < LARGEST_SHOCK)
        found = law.kappa * middle
        found[self.moves] += log_rate * (1.0 + rises * share) - share * self.v
        found[_AT["log_noise"]] += 1.0
        found[_AT["kappa"]] += piece.log_middle
        found[_AT["log_oscillation"]] -= law.oscillation / piece.source
        found[_AT["log_edge"]] -= rises * share
        return np.asarray(found)

    def _carry(self, before: State, piece: Piece, injected: Floats, time: Floats) -> None:
        law = self.law
        noise, new = self.noise[: self._live], self._new[: self._live]
        np.multiply(-piece.faded * law.shares, injected[:, None], out=new)
        noise *= 1.0 + piece.faded
        noise += new
        # What a mode keeps is exp(-time * rate), of which the memory sets the rate and, over it, the share.
        added = piece.injected * law.shares
        falls = (1.0 + piece.faded) * law.rates * (before.noise - added)
        self.noise[_AT["log_memory"]] += falls * piece.time - piece.faded * added
        self.noise[_AT["forgetting"]] -= piece.faded * piece.injected * self._by_forgetting
        self.noise[self.moves] -= falls * time[:, None]
