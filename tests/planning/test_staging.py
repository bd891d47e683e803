"""Schedules against a brute-force search over all rising ones, and against the theory's gain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from batchopt.planning.staging import Path, cheapest_rising, stage
from batchopt.step_cost import StepCost

SIZES = [16, 32, 64, 128, 256, 512]


def growing_path(*, pieces: int = 40, power: float = 2.0) -> Path:
    progress = (np.arange(pieces) + 0.5) / pieces
    noise = 2_000.0 * progress**power
    return Path(steps=10.0 * (1.0 + noise / 128.0), noise=noise, batch_size=128)


def test_dynamic_programme_against_all_rising_sequences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = rng.exponential(size=(3, 5))
        chosen = cheapest_rising(costs)
        total = costs[chosen, np.arange(5)].sum()
        rising = itertools.combinations_with_replacement(range(3), 5)
        assert total == pytest.approx(min(costs[list(path), np.arange(5)].sum() for path in rising))
        assert np.all(np.diff(chosen) >= 0)


def test_growing_noise_gives_a_rising_schedule() -> None:
    path = growing_path()
    staging = stage(
        path, price=StepCost(100.0, 1.0), batch_sizes=SIZES, learning_rate=0.1, multipliers=np.ones((6, 40))
    )
    sizes = [segment.batch_size for segment in staging.schedule.segments]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1
    # B_n ~ s^2: gamma = 3/4 (appendix D), which saves up to 6.7 % at the balanced point against the *best* constant;
    # 128 is not the best constant here, so more is saved, but not more than a half.
    assert 0.5 < staging.relative_cost < 0.98


def test_schedule_examples_and_cost_agree() -> None:
    path, price = growing_path(), StepCost(100.0, 1.0)
    staging = stage(path, price=price, batch_sizes=SIZES, learning_rate=0.1, multipliers=np.ones((6, 40)))
    replayed = sum(price(size) for _, size in staging.schedule.batches())
    constant = path.steps.sum() * price(128)
    assert replayed / constant == pytest.approx(staging.relative_cost, rel=0.01)


def test_constant_noise_gives_a_constant_schedule() -> None:
    noise = np.full(40, 128.0**2 / 100.0)
    path = Path(steps=np.full(40, 10.0), noise=noise, batch_size=128)
    staging = stage(
        path, price=StepCost(100.0, 1.0), batch_sizes=SIZES, learning_rate=0.1, multipliers=np.ones((6, 40))
    )
    assert staging.relative_cost == 1.0
    assert [segment.batch_size for segment in staging.schedule.segments] == [128]
    assert staging.schedule.examples == (400 * 128)


def test_learning_rate_multipliers_are_those_of_the_piece() -> None:
    multipliers = np.tile(np.arange(6)[:, None] + 1.0, (1, 40))
    staging = stage(
        growing_path(), price=StepCost(100.0, 1.0), batch_sizes=SIZES, learning_rate=0.1, multipliers=multipliers
    )
    for segment in staging.schedule.segments:
        assert segment.learning_rate_multiplier == SIZES.index(segment.batch_size) + 1.0
