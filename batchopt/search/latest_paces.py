"""The pace at which a trial would go on: by its last losses, beside the law that all trials share.

Neighbours learn from it up to a point, and the less the further the goal is: what goes wrong with one trial in the end
need not go wrong beside it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.law import LawPosterior
from batchopt.planning.goal import ReachLoss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.law import LawTable
    from batchopt.search.surrogate import Surrogate

    Floats = NDArray[np.float64]

LATEST_POINTS = 4
"""A single loss is noisy, and an early one says little of what is to come."""
STEADY = 0.1
"""How much it takes to believe that a pace changes: variance of a single log pace over that of its slope."""
TREND_ENDS = (-0.3, 0.8)
"""Ends of that slope, log pace by log steps."""
FALLEN = 0.05
"""Losses say something of a run's pace after this share of the way from the initial to the goal's, in logarithms."""
TREND_LASTS = 1.5
"""Log steps of the law over which a pace goes on to change."""
UNSEEN_SD = 0.06
"""How much the pace of a trial changes on its way to the goal, for every octave of examples."""
MOST_TAUGHT, MOST_TAUGHT_OF_OTHERS = 0.5, 1.5
"""A trial that has not arrived teaches its neighbours no more than this change of log pace, and what it has taken; the
latter where trials differ in more than batch size and learning rate."""


def with_latest_paces(surrogate: Surrogate) -> Surrogate:
    """Every trial at the pace of its last losses, which is how it would go on; completed ones as their value says."""
    if not isinstance(surrogate.law, LawPosterior):
        return _with_late_paces(surrogate)
    law, table = surrogate.law, surrogate.law.table()
    by_number = {o.number: o for o in surrogate.observations}
    runs = [by_number[number] for number in surrogate.fitted]
    ends, trends = surrogate.latest.copy(), surrogate.trends.copy()
    paces, own_sd = surrogate.paced.log_paces.copy(), surrogate.paced.own_sd.copy()
    if not runs:
        return surrogate
    sizes, rates = np.array([float(run.batch_size) for run in runs]), np.array([run.learning_rate for run in runs])
    curves = table.cumulative_steps(sizes, rates)
    v_goal, fallen = None, law.initial_loss
    if isinstance(surrogate.goal, ReachLoss):
        fallen *= (surrogate.goal.loss / law.initial_loss) ** FALLEN
        v_goal = np.minimum(table.v_of_loss(surrogate.goal.loss), table.grid[-1])
    most = MOST_TAUGHT if surrogate.places.n_dimensions == 2 else MOST_TAUGHT_OF_OTHERS
    for i, run in enumerate(runs):
        if run.values is not None and v_goal is not None:
            value = run.values[0] if surrogate.two_objectives else run.values[0] / surrogate.price(run.batch_size)
            latest, trend = math.log(value) - _log_steps_at(table, curves[:, i], v_goal), np.zeros(len(paces))
        else:
            # The lowest loss so far: a rate near the stability limit jumps, and is soon back.
            lowest = np.minimum.accumulate(run.curve.smoothed()) if run.curve.losses else ()
            points = [(n, x) for n, x in zip(run.curve.examples, lowest, strict=True) if n > 0 and x < fallen]
            if not points:
                continue
            log_steps = np.log([n / run.batch_size for n, _ in points[-LATEST_POINTS:]])
            of_law = [_log_steps_at(table, curves[:, i], table.v_of_loss(x)) for _, x in points[-LATEST_POINTS:]]
            to_goal = None if v_goal is None else _log_steps_at(table, curves[:, i], v_goal) - of_law[-1]
            latest, trend = _pace_in_the_end(log_steps, np.array(of_law), to_goal)
            if to_goal is not None:
                octaves = (
                    np.nanmedian(np.maximum(to_goal, 0.0)) / math.log(2.0) if np.any(np.isfinite(to_goal)) else 5.0
                )
                own_sd[i] = math.hypot(own_sd[i], UNSEEN_SD * float(octaves))
        known = np.isfinite(latest)
        ends[known, i], trends[known, i] = latest[known], trend[known]
        if run.values is not None:
            paces[known, i] = latest[known]
            continue
        taught = np.clip(latest, paces[:, i] - most, paces[:, i] + most)
        if v_goal is not None:  # it has not arrived, so it takes longer than it has taken
            taken = math.log(max(run.curve.examples) / run.batch_size) - _log_steps_at(table, curves[:, i], v_goal)
            taught = np.maximum(taught, np.where(np.isfinite(taken), taken, taught))
        paces[known, i] = taught[known]
    return replace(
        surrogate, latest=ends, trends=trends, paced=replace(surrogate.paced, log_paces=paces, own_sd=own_sd)
    )


def _with_late_paces(surrogate: Surrogate) -> Surrogate:
    """The same where the rate decays: the fit has found by the last losses of each run how it goes on."""
    late, paces = surrogate.paced.late, surrogate.paced.log_paces
    if late is None:
        return surrogate
    by_number, own_sd = {o.number: o for o in surrogate.observations}, surrogate.paced.own_sd.copy()
    for i, number in enumerate(surrogate.fitted):
        run = by_number[number]
        if run.values is None:
            octaves = max(0.0, math.log2(surrogate.horizon_of_run(run) / max(run.curve.examples, default=1.0)))
            own_sd[i] = math.hypot(own_sd[i], UNSEEN_SD * octaves)
    most = MOST_TAUGHT if surrogate.places.n_dimensions == 2 else MOST_TAUGHT_OF_OTHERS
    taught = np.clip(late, paces - most, paces + most)
    return replace(surrogate, latest=late, paced=replace(surrogate.paced, log_paces=taught, own_sd=own_sd))


def _pace_in_the_end(log_steps: Floats, of_law: Floats, to_goal: Floats | None) -> tuple[Floats, Floats]:
    """Log pace of a run when it gets to the goal, by the law's rows, (n,), and how much of that is yet to come.

    It is the latest pace, which goes on to change as it did.

    Args:
        log_steps: of the latest losses, (k,).
        of_law: log steps of the law to them, (k, n).
        to_goal: log ratio of the law's steps to the goal and to the last loss, (n,); None where there is no such goal.
    """
    paces = log_steps[:, None] - of_law
    along = log_steps - log_steps.mean()
    slope = (along @ paces) / (along @ along + STEADY)
    slope = np.clip(slope, *TREND_ENDS)
    last = paces.mean(axis=0) + slope * along[-1]
    # log T = log n + to_goal / (1 - slope): a run whose pace worsens as fast as it goes never gets there.
    trend = np.zeros_like(last) if to_goal is None else np.clip(to_goal, 0.0, TREND_LASTS) * slope / (1.0 - slope)
    return last + trend, trend


def _log_steps_at(table: LawTable, curves: Floats, v: Floats) -> Floats:
    """Log steps to v (n,) along a run's curves (n, n_grid); NaN where v is beyond them or at the start."""
    steps = np.array([np.interp(at, table.grid, curve) for at, curve in zip(v, curves, strict=True)])
    inside = np.isfinite(v) & (v <= table.grid[-1]) & (steps > 0)
    return np.where(inside, np.log(np.where(inside, steps, 1.0)), np.nan)
