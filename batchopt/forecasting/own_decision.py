"""What a run takes that decides by itself when its rate decays (`AdaptiveSchedule`).

Each draw of the posterior is taken for the truth once: its run sees its own losses, corrects all draws by what it is
above them, begins its decay when enough of these end at the loss, and goes back where that was too soon.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_points import course_of
from batchopt.learning_rate_schedule import COOLDOWN, LearningRateSchedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CHANCE = 0.9
"""Chance of ending at the loss: with which a decay begins, unless told otherwise, and for which a horizon is chosen."""
OWN_SHARE = 0.5
"""Of the scatter of single runs, what the losses before a decay do not tell of its end. Set by hand."""
LATER = 1.1
"""After a decay that missed, the next one begins later by this factor at least, set by hand."""
RATIO, BEFORE, AFTER = 1.08, 20, 24
"""Beginnings that are looked at: so far apart, and so many below and above the middle one."""
INSIDE = 6
"""Points of a decay at which its loss is read."""


def examples_by_own_decision(
    posterior: LossPosterior,
    batch_size: float,
    learning_rate: float,
    loss: float,
    *,
    near: float,
    warmup_examples: int,
    chance: float = CHANCE,
) -> Floats:
    """Examples with which runs reach a loss, (1 + draws,); inf where none of the beginnings leads there.

    Those of decays that missed, and that the run went back on, are counted.

    Args:
        posterior: what is believed.
        batch_size: examples per step.
        learning_rate: peak rate.
        loss: to reach.
        near: horizon with which an even share of runs does.
        warmup_examples: over which the rate rises.
        chance: with which a decay is to end at the loss, before it begins.
    """
    begins = (1.0 - COOLDOWN) * near * RATIO ** np.arange(-BEFORE, AFTER + 1.0)
    begins = begins[begins > max(warmup_examples, batch_size)]
    stable, inside, at = _paths(posterior, batch_size, learning_rate, begins, warmup_examples)
    target, hidden = math.log(loss), posterior.scatter(seed=1)[:, None] * OWN_SHARE
    seen = posterior.scatter(seed=0)[:, None] * math.sqrt(1.0 - OWN_SHARE**2)
    drops = inside[:, :, -1] - stable + hidden
    own, inside = stable + seen, inside + (seen + hidden)[:, :, None]
    chances = np.mean(own[:, None] + drops[None, 1:] <= target, axis=1)
    found = np.array([
        _crossing(begins, own[d], inside[d], at, chances[d] >= chance, target) for d in range(len(own))
    ])  # fmt: skip
    return np.where(posterior.is_unstable([batch_size], [learning_rate])[:, 0], np.inf, found)


def _paths(
    posterior: LossPosterior, batch_size: float, learning_rate: float, begins: Floats, warmup: int
) -> tuple[Floats, Floats, Floats]:
    """Log losses where decays begin, (1 + draws, k), and in them, (1 + draws, k, `INSIDE`), at examples (k, ...)."""
    courses, at = [], begins[:, None] * (1.0 + COOLDOWN / (1.0 - COOLDOWN) * np.arange(1, INSIDE + 1) / INSIDE)
    for begin, points in zip(begins, at, strict=True):
        first = max(1, min(warmup, round(begin) - 1))
        ramp = {0: 0.0, first: 1.0} if warmup else {0: 1.0}
        falls = {**ramp, max(first + 1, round(begin)): 1.0, max(first + 2, round(points[-1])): 0.0}
        schedule = LearningRateSchedule(tuple(falls), tuple(falls.values()))
        edges = np.concatenate([[0.0], np.geomspace(min(1.0, 0.5 * begin), begin, 14), points]) / batch_size
        courses.append(course_of(batch_size, learning_rate, schedule, edges, delay=posterior.delay))
    found = np.stack(posterior.losses_along(courses), axis=1)
    return found[:, :, -INSIDE - 1], found[:, :, -INSIDE:], at


def _crossing(
    begins: Floats, stable: Floats, inside: Floats, at: Floats, likely: NDArray[np.bool_], target: float
) -> float:
    """Examples with which one run reaches the loss."""
    earliest, gone_back = begins[0], 0.0
    while True:
        ready = np.flatnonzero(likely & (begins >= earliest))
        k = int(ready[0]) if len(ready) else len(begins) - 1
        before = np.flatnonzero(stable[: k + 1] <= target)
        if len(before):
            return float(gone_back + begins[before[0]])
        if inside[k, -1] <= target:
            j = int(np.argmax(inside[k] <= target))
            high, left = (stable[k], begins[k]) if j == 0 else (inside[k, j - 1], at[k, j - 1])
            part = (high - target) / max(high - inside[k, j], 1e-12)
            return float(gone_back + left + part * (at[k, j] - left))
        if k == len(begins) - 1:
            return math.inf
        gone_back += at[k, -1] - begins[k]
        earliest = LATER * begins[k]
