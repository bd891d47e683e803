"""Where draws of the posterior take stability to end, and what they add to the law beyond the runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_law

from batchopt.forecasting.beyond import HIGHER, HIGHER_SD, STEEPER, STEEPER_SD
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_points import course_along
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.schedule import Schedule, Segment

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


def log_losses(law: LossPosterior, batch_size: int, examples: int) -> np.ndarray:
    """At the end of a decaying run, (1 + draws,)."""
    schedule = LearningRateSchedule.of("wsd", examples=examples, warmup_examples=examples // 20)
    return law.losses_at_end([batch_size], [0.2], [schedule], [examples])[:, 0]


def test_beyond_the_longest_run_and_the_largest_batch_the_law_is_bent() -> None:
    few = {"rows": known_law().rows[:1] * 201, "weights": ((),) * 201, "amplitudes": ((0.0,),) * 201}
    law = replace(known_law(), **few, longest=20_000.0, batch_sizes=(16, 64))
    bare = replace(law, longest=1e12, batch_sizes=(16, 1 << 20))
    for batch_size, examples in ((16, 20_000), (64, 5_000)):
        assert log_losses(law, batch_size, examples) == pytest.approx(log_losses(bare, batch_size, examples))
    for batch_size, examples, longer, larger in ((16, 160_000, 8.0, 1.0), (1024, 20_000, 1.0, 16.0)):
        added = (log_losses(law, batch_size, examples) - log_losses(bare, batch_size, examples)) / law.steepness
        mean = HIGHER * np.log(larger) - STEEPER * np.log(longer)
        sd = np.hypot(HIGHER_SD * np.log(larger), STEEPER_SD * np.log(longer))
        assert added[0] == pytest.approx(mean)
        assert added[1:].mean() == pytest.approx(mean)
        assert added[1:].std() == pytest.approx(sd, rel=0.02), "normal scores of 200 draws"
    both = (log_losses(law, 1024, 160_000) - log_losses(bare, 1024, 160_000)) / law.steepness
    independent = np.hypot(HIGHER_SD * np.log(16.0), STEEPER_SD * np.log(8.0))
    assert both[1:].std() == pytest.approx(independent, rel=0.2), "the two are drawn apart"


def test_it_grows_no_further_than_it_was_measured_and_not_at_once_where_the_batch_size_changes() -> None:
    law = replace(known_law(), longest=1_000.0, batch_sizes=(16, 64))
    bare = replace(law, longest=1e12)
    (far, farther) = (log_losses(law, 16, n)[0] - log_losses(bare, 16, n)[0] for n in (64_000, 640_000))
    assert far == pytest.approx(-STEEPER * np.log(64.0) * law.steepness)
    assert farther == pytest.approx(far)
    edges = np.array([0.0, 10_000.0, 30_000.0, 30_512.0, 60_000.0])
    schedule = Schedule((Segment(0, 64), Segment(30_000, 512)), 60_000, 0.15)
    (found,) = replace(law, longest=1e12).losses_along([course_along(schedule, 0.15, edges)])
    (without,) = replace(law, longest=1e12, batch_sizes=(16, 512)).losses_along([course_along(schedule, 0.15, edges)])
    share = np.array([0.0, 0.0, 512.0 / 30_512.0, 30_000.0 / 60_000.0])
    assert (found - without)[0] == pytest.approx(HIGHER * np.log(8.0) * law.steepness * share, abs=1e-9)
