"""Probes of a run that no one trains: the noisy quadratic with 10^6 modes, against its steps one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scale
from language_models import price_of_probe
from large_quadratic import FLOOR, FULL, MODES, NOISE, World
from scale import above_of, budgeted

from batchopt import LearningRateSchedule, StepCost
from batchopt.probing.long_runs import LEVELS

WORLD = World.of("middle")


def step_by_step(
    world: World, batch_size: int, learning_rate: float, schedule: LearningRateSchedule, steps: int
) -> float:
    """The loss after single steps, each at the rate in its middle."""
    squares = world.starts
    for step in range(steps):
        rate = learning_rate * schedule((step + 0.5) * batch_size)
        kept = (1.0 - rate * world.curvatures) ** 2
        squares = kept * squares + rate**2 * NOISE * world.curvatures / batch_size
    return world.loss(squares)


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_pieces_give_what_single_steps_give(batch_size: int) -> None:
    horizon = 400 * batch_size
    schedule = LearningRateSchedule((0, 40 * batch_size, 320 * batch_size, horizon), (0.0, 1.0, 1.0, 0.0))
    (loss,), _ = WORLD.run(batch_size, 0.5, schedule, [horizon])
    assert loss == pytest.approx(step_by_step(WORLD, batch_size, 0.5, schedule, 400), rel=0.01)
    assert math.isinf(WORLD.run(batch_size, 2.5, schedule, [horizon])[0][0]), "twice the largest curvature diverges"


def test_a_world_has_a_million_modes_and_a_loss_of_one_above_its_floor() -> None:
    assert WORLD.weights.sum() == MODES
    assert WORLD.loss(WORLD.starts) == pytest.approx(WORLD.initial_loss)
    assert WORLD.initial_loss == 1.0 + FLOOR


def test_its_noise_scale_is_tr_sigma_over_the_squared_gradient() -> None:
    flat = replace(WORLD, curvatures=np.array([2.0]), weights=np.array([3.0]), starts=np.array([0.5]))
    # G is 2 theta in three modes, of mean square 0.5; Sigma is NOISE times the curvature in each.
    assert flat.noise_scale(flat.starts) == pytest.approx(NOISE * 6.0 / (3 * 4.0 * 0.5))


def test_the_shortest_run_that_ends_at_a_loss_does() -> None:
    wanted = WORLD.end(1024, 0.5, 2.0**25)
    assert WORLD.examples_to(wanted, 1024, 0.5) == pytest.approx(2.0**25, rel=0.02)
    assert math.isinf(WORLD.examples_to(0.5 * FLOOR, 1024, 0.5))


def test_every_batch_size_has_the_full_runs_budget() -> None:
    price = StepCost(4096.0, 1.0)
    for size in (64, 1024, 8192):
        steps = budgeted(size, price) / size
        assert steps * price(size) == pytest.approx(price(1024) * FULL / 1024, rel=1e-3)
    assert budgeted(1024, price) == FULL


def test_losses_are_told_over_what_can_be_learned() -> None:
    assert above_of(FLOOR + 0.15, FLOOR + 0.1) == pytest.approx(0.5)
    assert above_of(math.inf, FLOOR + 0.1) is None


def test_a_probe_spends_the_shares_of_its_budget() -> None:
    report = scale.Probe(WORLD, 2**17, seed=0).report()
    small, large = sorted({branch.batch_size for branch in report.branches})
    assert large == 8 * small
    decayed = [b for b in report.branches if b.learning_rate_schedule.multipliers[-1] == 0.0]
    assert len(decayed) == 8, "two short runs of each batch size, and two cooldowns off each long one"
    spent = sum(branch.examples for branch in report.branches if branch not in decayed)
    assert 0.3 * 2**17 < spent < 2**17
    assert len(report.noise_scales) == LEVELS


def test_a_tenth_of_a_language_models_tokens_costs_a_tenth() -> None:
    whole, tenth = price_of_probe(1.0), price_of_probe(0.1)
    assert tenth["gpu_hours"] == pytest.approx(0.1 * whole["gpu_hours"])
    # 6 N D floating-point operations at 0.4 of 989 TFLOP/s.
    assert whole["gpu_hours"] == pytest.approx(6e9 * 1e11 / (0.4 * 989e12) / 3600.0)
