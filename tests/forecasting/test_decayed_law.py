"""The law of a search whose trials decay, against the posterior that it is taken from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import known_law, losses_at

from batchopt.forecasting.decayed_law import DecayedLaw, Ends
from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.schedule_law import Course, Courses, losses
from batchopt.forecasting.schedule_slopes import log_loss_slopes

SIZES, RATES = np.array([16.0, 64.0, 256.0]), np.array([0.1, 0.4, 0.8])


def law_of(schedule: str | tuple[float, ...] = "wsd") -> DecayedLaw:
    return DecayedLaw.of_forecast(known_law(), Ends(schedule, None, (2_000.0, 256_000.0)))


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine", (1.0, 1.0, 0.25, 0.0)])
def test_losses_at_the_end_are_those_of_the_posterior(schedule: str | tuple[float, ...]) -> None:
    law = law_of(schedule)
    found = law.losses_after(SIZES, RATES, 16_000.0 / SIZES)
    run = schedule_of(law.ends.shape, 16_000.0, None)
    exact = [losses_at(known_law(), int(b), r, [16_000], run)[0] for b, r in zip(SIZES, RATES, strict=True)]
    # Half as many pieces, and horizons a factor of two apart between which the logarithm is a line.
    assert found[0] == pytest.approx(exact, rel=0.04)


def test_steps_to_a_loss_are_those_at_whose_end_it_is() -> None:
    law = law_of()
    steps = law.steps_to(SIZES, RATES, 0.2)
    assert np.all(np.isfinite(steps))
    assert law.losses_after(SIZES, RATES, steps)[0] == pytest.approx(np.full(3, 0.2), rel=1e-6)
    assert np.all(np.isinf(law.steps_to(SIZES, RATES, 1e-4)))


def test_rates_that_diverged_are_not_used() -> None:
    law = replace(law_of(), unstable=((64, 0.3),))
    steps = law.steps_to(SIZES, RATES, 0.2)
    assert np.isfinite(steps[0]).tolist() == [True, False, True]
    assert np.isinf(law.losses_after(SIZES, RATES, 16_000.0 / SIZES)[0, 1])


def test_rates_far_beyond_those_that_did_well_are_doubted() -> None:
    beyond = np.array([2.0, 1.0])
    law = replace(law_of(), proven=((64, 0.3),), stable_beyond=beyond)
    # 0.4 at 64 is within a factor of 2 of 0.3; small batches bear no higher rates than large ones.
    assert law.is_unstable(SIZES, RATES).tolist() == [[False, False, True], [False, True, True]]
    assert law.is_unstable(np.array([16.0]), np.array([0.4])).tolist() == [[True], [True]]


def test_the_trade_off_is_read_off_best_rates() -> None:
    steps_min, examples_min = (float(values[0]) for values in law_of().hyperbola(0.2))
    assert 0 < steps_min < examples_min
    rates = law_of().best_rates(np.array([16.0, 256.0]))
    assert rates[0] < rates[1]


def test_what_did_well_is_known_of_the_sizes_that_were_run() -> None:
    ends = Ends("wsd", None, (2_000.0, 256_000.0))
    law = replace(known_law(), stable=((256, 2.0),), unstable=((16, 0.2, 0.4),), highest_rate=2.0)
    found = DecayedLaw.of_forecast(law, ends)
    assert found.proven == ((16, 0.2), (256, 2.0))
    assert found.is_unstable(np.array([16.0]), np.array([1.5]))[0, 0]
    assert not found.is_unstable(np.array([256.0]), np.array([2.0]))[0, 0]
    # None is named: the largest batch bears most.
    assert DecayedLaw.of_forecast(replace(known_law(), highest_rate=2.0), ends).proven == ((256, 2.0),)


def test_the_best_rate_of_a_size_with_few_steps_is_carried_on() -> None:
    law = law_of()
    middle = law.ends.grid[len(law.ends.grid) // 2]
    usable = middle / 16.0
    rates = law.best_rates(np.array([usable, 4.0 * usable, 64.0 * usable]))
    assert rates == pytest.approx(rates[0] * np.array([1.0, 2.0, 8.0]))
    assert law.best_rates(np.array([64.0 * usable])) == pytest.approx(rates[2:]), "whatever else is asked"
    assert rates[0] > law.best_rates(np.array([16.0]))[0]


def test_a_stretch_counts_steps() -> None:
    law = known_law()
    rows, frame = np.array(law.rows), law.frame
    course = Course(np.geomspace(1.0, 500.0, 12), np.full(12, 64.0), np.full(12, 0.3))
    longer = replace(course, steps=1.7 * course.steps)
    stretch = np.full((2, 1), 1.7)
    plain = losses(rows, frame, Courses([longer]))
    assert losses(rows, frame, Courses([course]), stretch=stretch) == pytest.approx(plain, rel=1e-10)
    at = np.zeros(1, int), np.array([11])
    stretched = log_loss_slopes(rows, frame, Courses([course]), *at, stretch=stretch)
    for ours, theirs in zip(stretched, log_loss_slopes(rows, frame, Courses([longer]), *at), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-12)


def test_horizons_are_a_factor_of_two_apart_or_less() -> None:
    grid = Ends("wsd", None, (1_000.0, 9_000.0)).grid
    assert (grid[0], grid[-1]) == pytest.approx((1_000.0, 9_000.0))
    assert np.all(np.diff(np.log(grid)) <= math.log(2.0) + 1e-9)
