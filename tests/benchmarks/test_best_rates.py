"""Cells of the sweeps, against their ladders."""

from __future__ import annotations

import numpy as np
import pytest
from best_rates import cells_of
from truth.decayed import decayed_sweep_of


def test_the_best_rate_of_a_cell_costs_nothing_and_lies_inside() -> None:
    cells = cells_of("quadratic")
    assert cells
    for cell in cells:
        best = int(np.argmin(cell.excess))
        assert cell.excess[best] == 0.0
        assert 0 < best < len(cell.rates) - 1


def test_costs_are_differences_of_log_losses_over_how_fast_the_best_falls() -> None:
    ladders = decayed_sweep_of("quadratic").ladders
    cell = cells_of("quadratic")[5]
    size, horizon = cell.batch_size, cell.horizon
    best = {
        n: min(ends[n] for (own, _), ends in ladders.items() if own == size and n in ends)
        for n in (horizon // 2, horizon, 2 * horizon)
    }
    fall = (best[horizon // 2] - best[2 * horizon]) / np.log(4.0)
    rate = cell.rates[0]
    assert cell.excess[0] == pytest.approx((ladders[size, rate][horizon] - best[horizon]) / fall)
