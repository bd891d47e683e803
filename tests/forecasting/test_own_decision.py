"""When a run that decides itself reaches a loss: a walk along the run, and the best that is possible."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import drawn_law, known_law

from batchopt.forecasting.own_decision import INSIDE, LATER, RATIO, _crossing, examples_by_own_decision
from batchopt.forecasting.posterior import LossPosterior
from batchopt.learning_rate_schedule import COOLDOWN, LearningRateSchedule

SIZE, RATE, LOSS, WARMUP = 32, 0.3, 0.2, 500
BEGINS = 1_000.0 * RATIO ** np.arange(8)
AT = BEGINS[:, None] * (1.0 + COOLDOWN / (1.0 - COOLDOWN) * np.arange(1, INSIDE + 1) / INSIDE)


def walk(stable: list[float], inside: list[list[float]], likely: list[bool], target: float) -> float:
    """Examples of a run that goes from one beginning to the next, and into each decay that it decides on."""
    trained, earliest = 0.0, BEGINS[0]
    for k, begin in enumerate(BEGINS.tolist()):
        is_last = k == len(BEGINS) - 1
        if stable[k] <= target:
            return trained + begin
        if not is_last and (begin < earliest or not likely[k]):
            continue
        before, since = stable[k], begin
        for j in range(INSIDE):
            if inside[k][j] <= target:
                return trained + since + (before - target) / (before - inside[k][j]) * (AT[k, j] - since)
            before, since = inside[k][j], AT[k, j]
        if is_last:
            return math.inf
        trained += AT[k, -1] - begin
        earliest = LATER * begin
    return math.inf


@pytest.mark.parametrize("drop", [0.5, 1.0, 1.5])
def test_twin_crossing(drop: float) -> None:
    """Runs whose losses fall and decays that bring more or less, of which some miss."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        stable = 1.0 + rng.uniform() - np.cumsum(rng.uniform(0.0, 0.25, 8))
        inside = stable[:, None] - rng.uniform(0.0, drop, (8, 1)) * np.linspace(0.0, 1.0, INSIDE + 1)[1:] ** 0.7
        likely = rng.uniform(size=8) < 0.4
        found.append(_crossing(BEGINS, stable, inside, AT, likely, 0.0))
        assert found[-1] == pytest.approx(walk(stable.tolist(), inside.tolist(), likely.tolist(), 0.0))
    assert sum(map(math.isfinite, found)) > 30


def wsd(begin: float) -> LearningRateSchedule:
    return LearningRateSchedule((0, WARMUP, round(begin), round(begin / (1.0 - COOLDOWN))), (0.0, 1.0, 1.0, 0.0))


def shortest(law: LossPosterior) -> float:
    """The shortest wsd run to the loss by the best guess, by bisection."""
    low, high = 1_000.0, 1e6
    for _ in range(25):
        middle = math.sqrt(low * high)
        (end,) = law.losses_at_end([SIZE], [RATE], [wsd(middle)], [middle / (1.0 - COOLDOWN)])[0]
        low, high = (low, middle) if end <= math.log(LOSS) else (middle, high)
    return high / (1.0 - COOLDOWN)


def by_own(law: LossPosterior, near: float, **given: float) -> np.ndarray:
    return examples_by_own_decision(law, SIZE, RATE, LOSS, near=near, warmup_examples=WARMUP, **given)


def test_a_run_that_knows_all_decays_as_soon_as_it_can() -> None:
    known = replace(known_law(), steepness=1e-9)  # no scatter, so no decay misses
    best = shortest(known)
    for near in (0.7 * best, best, 1.5 * best):
        for examples in by_own(known, near):
            assert 0.97 * best <= examples <= 1.01 * RATIO * best  # the end of a decay brings little


def test_where_runs_differ_more_certainty_takes_longer_and_misses_less() -> None:
    law = replace(drawn_law(24, spread=0.0), steepness=0.5)
    best = shortest(law)
    bold, usual, sure = (by_own(law, best, chance=chance)[1:] for chance in (0.3, 0.9, 0.99))
    assert np.isfinite(np.concatenate([bold, usual, sure])).all()
    assert np.median(usual) < np.median(sure) <= 2.0 * best
    assert np.max(bold) > np.max(usual), "a decay that missed is counted, and another follows"
    assert np.median(usual) < np.quantile(usual, 0.95)


def test_none_arrives_where_the_loss_or_the_rate_is_out_of_reach() -> None:
    law = known_law()
    assert np.isinf(examples_by_own_decision(law, SIZE, RATE, 1e-9, near=9_000.0, warmup_examples=WARMUP)).all()
    assert np.isinf(examples_by_own_decision(law, SIZE, 1e3, LOSS, near=9_000.0, warmup_examples=WARMUP)).all()


def test_a_loss_that_the_peak_rate_reaches_needs_no_decay() -> None:
    law = replace(known_law(), steepness=1e-9)
    (alone,) = law.losses_at_end([SIZE], [RATE], [LearningRateSchedule((0, WARMUP), (0.0, 1.0))], [8_000.0])[0]
    found = examples_by_own_decision(law, SIZE, RATE, math.exp(alone) * 1.0001, near=100_000.0, warmup_examples=WARMUP)
    assert np.all(found <= 0.8 * 100_000.0)
