"""When a measurement has seen enough."""

from __future__ import annotations

from collections.abc import Callable

from batchopt.noise_scale import estimate_noise_scale
from batchopt.probing.moments import GradientSums, MomentAccumulator
from batchopt.uncertainty import Estimate

FIRST_LOOK = 128
"""Examples after which the interval is looked at for the first time; then at every doubling."""
FEWEST_UNITS_LOOKED_AT = 16


def collect_until_narrow(
    read: Callable[[int], GradientSums | None],
    accumulator: MomentAccumulator,
    *,
    group_size: int,
    population: int | None,
    relative_width: float,
) -> bool:
    """Read until the interval is narrow enough, or there is no more to read.

    The interval is looked at when the examples have doubled, not at every batch: the fewer looks, the less often one
    finds an interval that is narrow by chance.

    Args:
        read: gives the sums of at most so many units; None where there are no more.
        accumulator: takes them.
        group_size: examples per unit.
        population: examples that are drawn from; None for infinite.
        relative_width: (high - low) / value that is narrow enough.

    Returns:
        Whether it became narrow enough.
    """
    look = max(FEWEST_UNITS_LOOKED_AT, FIRST_LOOK // group_size)
    while (sums := read(accumulator.missing)) is not None:
        accumulator.add(sums)
        if accumulator.units >= look:
            look = 2 * accumulator.units
            reading = estimate_noise_scale(accumulator.moments(population), kind="", method="", stopped="width")
            if is_narrow(reading.batch_size, relative_width):
                return True
    return False


def is_narrow(reading: Estimate, relative_width: float) -> bool:
    """Whether a reading is resolved and its interval no wider than `relative_width` times the value."""
    return reading.resolved and reading.high - reading.low <= relative_width * reading.value
