"""Where draws of the posterior take stability to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import drawn_law

LAW = replace(drawn_law(200), unstable=((16, 0.4, 1.6),), stable=(), highest_rate=10.0)


def test_stability_ends_evenly_between_the_rates_and_higher_for_larger_batches() -> None:
    limits = LAW.largest_stable([4, 16, 64])
    assert limits[0] == pytest.approx([0.8, 0.8, 1.6])
    parts = np.log(limits[1:, 1] / 0.4) / np.log(4.0)
    assert np.sort(parts) == pytest.approx((np.arange(200) + 0.5) / 200)
    assert limits[:, 2] == pytest.approx(2.0 * limits[:, 1]), "the root of the ratio of batch sizes"
    assert limits[:, 0] == pytest.approx(limits[:, 1])


def test_a_stable_run_at_another_batch_size_narrows_it() -> None:
    smaller = replace(LAW, stable=((4, 0.8),)).largest_stable([2, 4, 16, 64])
    assert smaller[1:].min(axis=0) == pytest.approx([0.8 * 0.5**0.75, 0.8, 0.8, 0.8], rel=0.01)
    assert smaller[1:].max(axis=0) == pytest.approx([1.6, 1.6, 1.6, 3.2], rel=0.01)
    larger = replace(LAW, stable=((64, 2.5),)).largest_stable([16, 64])
    assert larger[1:].min(axis=0) == pytest.approx([2.5 / 4.0**0.75, 2.5], rel=0.01)


def test_a_rate_that_failed_stays_beyond_the_edge() -> None:
    contradicting = replace(drawn_law(32), unstable=LAW.unstable, stable=((4, 5.0),), highest_rate=10.0)
    assert contradicting.largest_stable([16])[1:].min() == pytest.approx(1.6 / 1.1, rel=0.01)
    assert contradicting.is_unstable([16, 64], [1.6, 3.2]).all()
