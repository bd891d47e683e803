"""A batch size that follows the critical batch size through the run.

With a cost per step of a + b B, the progress ds costs (a + b B)(1 + B_n(s)/B) ds, which is least at
B(s) = sqrt(a/b B_n(s)): McCandlish et al. 2018, appendix D, with the exchange rate r = a/b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchopt.schedules.schedule import Schedule, Segment
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_GAIN = 0.02
"""A schedule that is predicted to save less than this share of the cost is not worth its switches."""


@dataclass(frozen=True, slots=True)
class Path:
    """The run under the best constant plan, cut into m pieces of progress.

    Attributes:
        steps: steps that the constant plan spends in each piece, (m,).
        noise: local critical batch size in each piece, in examples, (m,).
        batch_size: the constant plan's batch size.
    """

    steps: Floats
    noise: Floats
    batch_size: int

    def steps_at(self, batch_sizes: Floats) -> Floats:
        """Steps in each piece if it were trained at these batch sizes, (m,): steps go as 1 + B_n / B."""
        return self.steps * (1.0 + self.noise / batch_sizes) / (1.0 + self.noise / self.batch_size)

    def cost(self, batch_sizes: Floats, price: StepCost) -> float:
        """What the run costs with a size for every piece, (m,)."""
        return float(np.sum(self.steps_at(batch_sizes) * [price(size) for size in batch_sizes]))

    def costs_at(self, batch_sizes: Floats, price: StepCost) -> Floats:
        """What every piece costs at every size, (n_sizes, m)."""
        return np.array([self.steps_at(np.full(len(self.steps), size)) * price(size) for size in batch_sizes])

    def corrected(self, factor: float) -> Path:
        """The same progress where the critical batch size is `factor` times what was believed."""
        noise = factor * self.noise
        steps = self.steps * (1.0 + noise / self.batch_size) / (1.0 + self.noise / self.batch_size)
        return Path(steps, noise, self.batch_size)


@dataclass(frozen=True, slots=True)
class Staging:
    """A schedule and its predicted cost in units of the best constant plan's."""

    schedule: Schedule
    relative_cost: float


def stage(
    path: Path,
    *,
    price: StepCost,
    batch_sizes: Sequence[int],
    learning_rate: float,
    multipliers: Floats,
) -> Staging:
    """The cheapest rising batch-size schedule, or the constant one where varying gains less than 2 %.

    Args:
        path: the constant plan's run.
        price: cost of a step.
        batch_sizes: sizes that may be used, rising.
        learning_rate: of the constant plan.
        multipliers: best learning rate of each size in each piece over that of the constant plan's size there,
            (n_sizes, m).
    """
    sizes = np.array(batch_sizes, float)
    chosen = cheapest_rising(path.costs_at(sizes, price))
    constant, varying = path.cost(np.full(len(chosen), float(path.batch_size)), price), path.cost(sizes[chosen], price)
    if varying > (1.0 - LEAST_GAIN) * constant or chosen[0] == chosen[-1]:
        total = max(1, round(float(np.sum(path.steps)) * path.batch_size))
        return Staging(Schedule.constant(path.batch_size, examples=total, learning_rate=learning_rate), 1.0)
    segments, end = segments_of(path, batch_sizes, chosen, multipliers)
    return Staging(Schedule(segments, end, learning_rate), varying / constant)


def segments_of(
    path: Path, batch_sizes: Sequence[int], chosen: NDArray[np.int_], multipliers: Floats, *, start: int = 0
) -> tuple[tuple[Segment, ...], int]:
    """The segments of a run by pieces, and the examples at its end.

    Args:
        path: of the run.
        batch_sizes: sizes that may be used.
        chosen: which of them each piece takes, (m,).
        multipliers: as for `stage`.
        start: examples that were seen before.
    """
    sizes = np.array(batch_sizes, float)[chosen]
    examples = start + np.concatenate([[0.0], np.cumsum(path.steps_at(sizes) * sizes)])
    first = np.flatnonzero(np.diff(chosen, prepend=-1))
    segments = tuple(
        Segment(round(examples[i]), batch_sizes[chosen[i]], float(multipliers[chosen[i], i])) for i in first
    )
    return segments, max(start + 1, round(examples[-1]))


def cheapest_rising(costs: Floats) -> NDArray[np.int_]:
    """Index of the size for every piece, never falling, with the least total of costs (n_sizes, m).

    Dynamic programming over pieces: the best cost of ending in size i is the best of ending in a size up to i before.
    """
    n_sizes, m = costs.shape
    total = costs[:, 0]
    came_from = np.zeros((n_sizes, m), dtype=int)
    for j in range(1, m):
        best_up_to = np.minimum.accumulate(total)
        for i in range(n_sizes):
            came_from[i, j] = int(np.argmin(total[: i + 1]))
        total = best_up_to + costs[:, j]
    chosen = np.empty(m, dtype=int)
    chosen[-1] = int(np.argmin(total))
    for j in range(m - 1, 0, -1):
        chosen[j - 1] = came_from[chosen[j], j]
    return chosen
