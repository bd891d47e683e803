"""Laws of others: what they read of a schedule, and that a fit finds a law again that made the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rivals.decays import multi_power_errors, schedule_of, three_term_errors
from rivals.multi_power import MultiPowerLaw, fit_multi_power, schedule
from rivals.three_term import ThreeTermLaw, fit_three_term
from truth.curves import Run


def made_run(horizon: int, seed: int = 0, shape: str = "wsd") -> Run:
    return Run(8, 0.1, seed, horizon, "reached", (), (), (), shape)


def test_a_schedule_is_its_progress_and_its_drops() -> None:
    read = schedule(np.array([10.0, 20.0, 5.0, 5.0]), np.array([0.5, 1.0, 0.6, 0.2]))
    assert read.progress == pytest.approx(29.0)
    assert read.drops == pytest.approx([0.4, 0.4])
    assert read.rates == pytest.approx([0.6, 0.2])
    assert read.later == pytest.approx([4.0, 1.0])


def test_a_cooldown_is_read_to_its_end() -> None:
    read = schedule_of(made_run(8_000), 1_000.0, 50.0)
    assert read.progress == pytest.approx(25.0 + 750.0 + 100.0, rel=1e-3)
    assert float(read.drops.sum()) == pytest.approx(1.0, abs=0.05)


def test_multi_power_law_predicts_longer_cooldowns_of_its_own() -> None:
    true = MultiPowerLaw(np.log([1.0, 1.5, 0.5, 0.4, 2.0, 0.6, 0.64]), 100.0)
    stable = [schedule_of(made_run(0), steps, 50.0) for steps in np.geomspace(150.0, 4_000.0, 12)]
    told = [schedule_of(made_run(8 * steps), float(steps), 50.0) for steps in (500, 1_000, 2_000)]
    held = [schedule_of(made_run(32_000), 4_000.0, 50.0)]
    law = fit_multi_power(stable + told, true.log_losses(stable + told))
    assert law.log_losses(held) == pytest.approx(true.log_losses(held), abs=0.01)


def test_multi_power_law_says_nothing_where_no_cooldown_was_fitted() -> None:
    points = [(made_run(0), steps, -0.1 * math.log(steps)) for steps in (100.0, 200.0, 400.0)]
    assert multi_power_errors(points, [(made_run(4_000), -0.8)], lambda _: 50.0) == {}


def test_three_term_law_is_found_again() -> None:
    true = ThreeTermLaw(np.log([1.0, 0.3, 0.2, 0.5, 0.4]), (64.0, 1_000.0))
    sizes, steps = (each.ravel() for each in np.meshgrid([16.0, 64.0, 256.0], [300.0, 1_000.0, 3_000.0]))
    law = fit_three_term(sizes, steps, true.log_losses(sizes, steps))
    assert law.log_losses(sizes, 3.0 * steps) == pytest.approx(true.log_losses(sizes, 3.0 * steps), abs=0.02)


def test_three_term_law_needs_a_few_ends() -> None:
    assert three_term_errors({(8, 64): 0.0}, {(8, 128): 0.0}) == {}
