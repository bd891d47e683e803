"""A run of constant batch size and learning rate, as the law sees it: progress by pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.law import LawPosterior
from batchopt.planning.staging import Path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PIECES = 40


def path_of(
    law: LawPosterior,
    batch_size: int,
    learning_rate: float,
    *,
    first: float,
    last: float,
    batch_sizes: Sequence[int],
) -> tuple[Path, Floats]:
    """The run between two of its steps, by the best guess, and what other batch sizes make of its learning rate.

    Args:
        law: of the training.
        batch_size: of the run.
        learning_rate: of the run.
        first: steps of the run before the path begins.
        last: steps of the run at its end.
        batch_sizes: other sizes, the run's own among them.

    Returns:
        The path in `PIECES` pieces, and the best learning rate of each size over that of the run's size, (n_sizes, m).
    """
    table = law.table(best_guess_only=True)
    edges = np.linspace(first, last, PIECES + 1)
    v = np.interp(edges, steps_along(law, batch_size, learning_rate), table.grid)
    middle = 0.5 * (v[1:] + v[:-1])[None]
    path = Path(steps=np.diff(edges), noise=np.exp(table.log_b(middle))[0], batch_size=batch_size)
    log_rates = np.array([table.log_learning_rate(middle, np.array([[float(size)]]))[0] for size in batch_sizes])
    return path, np.exp(log_rates - log_rates[list(batch_sizes).index(batch_size)])


def steps_along(law: LawPosterior, batch_size: int, learning_rate: float) -> Floats:
    """Steps of the run to every point of the law's grid, by the best guess, (n_grid,)."""
    table = law.table(best_guess_only=True)
    return np.asarray(table.cumulative_steps(np.array([float(batch_size)]), np.array([learning_rate]))[0, 0])


def steps_to_loss(law: LawPosterior, batch_size: int, learning_rate: float, loss: float) -> float:
    """Steps of the run to a loss, by the best guess; those to the end of the law's grid where it is beyond."""
    table = law.table(best_guess_only=True)
    v = min(float(table.v_of_loss(loss)[0]), float(table.grid[-1]))
    return float(np.interp(v, table.grid, steps_along(law, batch_size, learning_rate)))
