"""The rivals on held-back decays, beside our law for the same runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from truth.curves import Run
from truth.decaying import COOLDOWN, multiplier

from rivals.multi_power import Schedule, fit_multi_power, schedule
from rivals.three_term import fit_three_term

DECAY_PIECES, WARMUP_PIECES = 24, 8
EARLIEST = 0.4
"""The Multi-Power Law is fitted to points after the warm-up and after this share of the shortest fitted cooldown's
steps, since its power law does not describe the start; and it is asked for no shorter cooldown."""
LEAST_ENDS = 4
"""Best ends of decays, by batch size and horizon, to which the three-term law is fitted."""


def schedule_of(run: Run, steps: float, warmup: float) -> Schedule:
    """What the Multi-Power Law reads of a run after so many steps; the warm-up is in steps."""
    grids = [[0.0, steps]]
    if run.shape == "wsd":
        grids.append(np.linspace(0.0, min(warmup, steps), WARMUP_PIECES + 1))
    begin = (1.0 - COOLDOWN) * run.horizon / run.batch_size
    if run.horizon and steps > begin:
        grids.append(np.linspace(begin, steps, DECAY_PIECES + 1))
    edges = np.unique(np.concatenate(grids))
    middles = 0.5 * (edges[1:] + edges[:-1])
    rates = np.ones(len(middles))
    if run.shape == "wsd":
        size = run.batch_size
        rates = np.array([multiplier("wsd", n * size, run.horizon, warmup * size) for n in middles])
    return schedule(np.diff(edges), rates)


def multi_power_errors(
    fitted: Sequence[tuple[Run, float, float]], held: Sequence[tuple[Run, float]], warmup: Callable[[int], float]
) -> dict[Any, float]:
    """Errors of held-back final losses, by key, where a cooldown of the same batch size and rate was fitted.

    Args:
        fitted: run, steps and log loss of each point.
        held: runs and their final log losses.
        warmup: steps of it by batch size.
    """
    points: dict[tuple[int, float], list[tuple[Run, float, float]]] = defaultdict(list)
    for run, steps, loss in fitted:
        points[run.batch_size, run.learning_rate].append((run, steps, loss))
    errors: dict[Any, float] = {}
    for setting, own in points.items():
        horizons = [run.horizon for run, _, _ in own if run.horizon]
        wanted = [
            (run, loss) for run, loss in held
            if (run.batch_size, run.learning_rate) == setting and horizons and run.horizon >= min(horizons)
        ]  # fmt: skip
        if not wanted:
            continue
        begin = warmup(setting[0])
        first = max(begin, EARLIEST * min(horizons) / setting[0])
        late = [point for point in own if point[1] > first]
        law = fit_multi_power([schedule_of(run, n, begin) for run, n, _ in late], np.array([y for _, _, y in late]))
        found = law.log_losses([schedule_of(run, run.horizon / run.batch_size, begin) for run, _ in wanted])
        errors |= {run.key: float(value - loss) for (run, loss), value in zip(wanted, found, strict=True)}
    return errors


def three_term_errors(
    fitted: Mapping[tuple[int, int], float], held: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    """Errors of the best decayed log loss by batch size and horizon; none where too few are fitted."""
    if len(fitted) < LEAST_ENDS:
        return {}
    sizes, horizons = np.array(list(fitted), float).T
    law = fit_three_term(sizes, horizons / sizes, np.array(list(fitted.values())))
    sizes, horizons = np.array(list(held), float).T
    found = law.log_losses(sizes, horizons / sizes) - np.array(list(held.values()))
    return {cell: float(error) for cell, error in zip(held, found, strict=True)}
