"""How a running trial will go on, by the shared law at the trial's own pace.

Notation
    n_i     steps after which the trial reported loss L_i
    m_i     steps that a draw of the law needs to L_i at the trial's batch size and learning rate
    pace    n_i / m_i: what the law does not know about this trial (another weight decay, say), taken as constant
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.search.observations import Observation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.law import LawPosterior

    Floats = NDArray[np.float64]

MOST_POINTS = 8
PACE_SD = 0.25
"""Standard deviation of log pace along a run that a draw is allowed."""
INDEPENDENT_POINTS = 4.0
RECENT_POINTS = 3
"""The pace is the mean over this many last points, because a single loss is noisy."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Steps taken and steps in total to a loss; the total is infinite where the law sees no end."""

    steps: float
    total_steps: float


def outlook(law: LawPosterior, run: Observation, loss: float) -> Outlook | None:
    """The steps that a run will need to a loss; None where its reports say nothing yet (no progress, or too few).

    Every draw of the law is carried on at the pace that the run showed under it, and counts by how constant that pace
    was.
    """
    points = [(n, value) for n, value in zip(run.curve.examples, run.curve.smoothed(), strict=True) if n > 0]
    kept = (
        [points[i] for i in sorted({round(i) for i in np.linspace(0, len(points) - 1, MOST_POINTS)})] if points else []
    )
    if len(kept) < 2:
        return None
    steps = np.array([n / run.batch_size for n, _ in kept])
    modelled = _model_steps(law, run, [*(value for _, value in kept), loss])
    model, to_goal = modelled[:, :-1], modelled[:, -1]
    usable = np.isfinite(model[:, -1]) & (model[:, -1] > 0)
    if not np.any(usable):
        return None
    log_pace = _log_pace(steps, model[usable])
    pace = np.exp(np.nanmean(log_pace[:, -RECENT_POINTS:], axis=1))
    total = np.maximum(pace * to_goal[usable], steps[-1])
    return Outlook(float(steps[-1]), _weighted_median(total, _weights(log_pace)))


def _log_pace(steps: Floats, model: Floats) -> Floats:
    """log(n_i / m_i), (n_draws, k); NaN where a draw says that the loss is never reached, or was there at the start."""
    known = np.isfinite(model) & (model > 0)
    return np.where(known, np.log(steps) - np.log(np.where(known, model, 1.0)), np.nan)


def _model_steps(law: LawPosterior, run: Observation, losses: Sequence[float]) -> Floats:
    """Steps to k losses at the run's setting, (1 + n_draws, k), as `law.steps_to` gives one by one."""
    table = law.table()
    cumulative = table.cumulative_steps(np.array([float(run.batch_size)]), np.array([run.learning_rate]))[:, 0]
    v = np.stack([table.v_of_loss(loss) for loss in losses], axis=1)
    steps = np.stack([np.interp(row, table.grid, own) for row, own in zip(v, cumulative, strict=True)])
    return np.where(np.isfinite(v), steps, np.inf)


def _weights(log_pace: Floats) -> Floats:
    """How well every draw explains the run, (n_draws,): by the spread of its log pace."""
    counts = np.sum(np.isfinite(log_pace), axis=1)
    squares = np.nansum((log_pace - np.nanmean(log_pace, axis=1)[:, None]) ** 2, axis=1)
    misfit = squares / PACE_SD**2 * np.minimum(1.0, INDEPENDENT_POINTS / counts)
    return np.asarray(np.exp(-0.5 * (misfit - misfit.min())))


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    value = float(values[order][int(np.searchsorted(share, 0.5))])
    return value if not math.isnan(value) else math.inf
