"""Law and paces fitted together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.synthetic import simulate, simulated_report, true_law

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.law_fit import fit_law
from batchopt.forecasting.paced_fit import PacedLaw, Ranges, fit_paced, pace_covariance

LAW = true_law()
RANGES = Ranges((8.0, 2048.0), (1e-3, 10.0))
SETTINGS = ((32, 0.05), (32, 0.2), (64, 0.1), (128, 0.3), (256, 0.2), (512, 0.5))


def run(size: int, rate: float, *, pace: float = 1.0, seed: int = 0, noise: float = 0.01) -> Branch:
    rng = np.random.default_rng(seed)
    examples = [round(size * 10 * 1.6**k) for k in range(9)]
    exact = LAW.losses_at([float(size)] * 9, [rate] * 9, [n / pace for n in examples])[0]
    losses = exact * np.exp(noise * rng.standard_normal(9))
    return Branch(
        batch_size=size,
        learning_rate=rate,
        curve=LossCurve(tuple(examples), tuple(map(float, losses))),
        outcome="stopped",
        seed=seed,
    )


def place(size: int, rate: float, other: float = 0.0) -> list[float]:
    return [math.log2(size) / 2.0, math.log2(rate) / 1.5, other]


def fitted(paces: list[float], others: list[float]) -> PacedLaw:
    runs = [run(*setting, pace=pace, seed=i) for i, (setting, pace) in enumerate(zip(SETTINGS, paces, strict=True))]
    places = np.array([place(*setting, other) for setting, other in zip(SETTINGS, others, strict=True)])
    return fit_paced(runs, places, RANGES, spread=0.5)


def test_runs_of_one_pace_find_the_law() -> None:
    paced = fitted([1.0] * 6, [0.0] * 6)
    sizes, rates = [64.0, 128.0, 256.0], [0.1, 0.2, 0.3]
    found = paced.law.steps_to(sizes, rates, 1.2)[0] * np.exp(paced.log_paces_at(_at(sizes, rates))[0][0])
    assert np.abs(np.log(found / LAW.steps_to(sizes, rates, 1.2)[0])).max() < 0.15


def _at(sizes: list[float], rates: list[float], other: float = 0.0) -> np.ndarray:
    return np.array([place(int(size), rate, other) for size, rate in zip(sizes, rates, strict=True)])


def test_a_third_parameter_shows_in_the_paces() -> None:
    told = [(setting, other) for setting in SETTINGS for other in (0.0, 3.0)]
    runs = [run(*setting, pace=2.0 if other else 1.0, seed=i) for i, (setting, other) in enumerate(told)]
    paced = fit_paced(runs, np.array([place(*setting, other) for setting, other in told]), RANGES, spread=0.5)
    slow, fast = (paced.log_paces_at(_at([64.0], [0.15], other))[0][0, 0] for other in (3.0, 0.0))
    assert slow - fast == pytest.approx(math.log(2.0), abs=0.25)


def test_paces_away_from_all_runs_are_unknown() -> None:
    paced = fitted([1.0] * 6, [0.0] * 6)
    _, near = paced.log_paces_at(_at([64.0], [0.1]))
    mean, far = paced.log_paces_at(_at([64.0], [0.1], 20.0))
    assert near[0] < 0.3 * far[0]
    assert far[0] == pytest.approx(0.5)
    assert np.abs(mean).max() < 1e-6


def test_paces_are_carried_by_the_textbook_formula() -> None:
    """Twin: conditioning a joint Gaussian by its blocks, one place at a time."""
    paced = replace(fitted([1.0, 1.5, 1.0, 0.7, 1.0, 1.2], [0.0] * 6), own_sd=np.array([0.05, 0.3, 0.1, 0.1, 0.2, 0.1]))
    at = _at([48.0, 300.0], [0.07, 0.4])
    mean, sd = paced.log_paces_at(at)
    for i, one in enumerate(at):
        joint = pace_covariance(np.vstack([paced.places, one]), paced.spread, np.append(paced.own_sd, 0.0))
        inner, across = joint[:-1, :-1], joint[-1, :-1]
        assert mean[:, i] == pytest.approx([across @ np.linalg.inv(inner) @ row for row in paced.log_paces], rel=1e-8)
        assert sd[i] ** 2 == pytest.approx(joint[-1, -1] - across @ np.linalg.inv(inner) @ across, rel=1e-8)


def test_the_first_fit_of_one_run() -> None:
    paced = fit_paced([run(64, 0.1)], _at([64.0], [0.1]), RANGES, spread=0.3)
    assert paced.fitted == (0,)
    assert np.all(np.isfinite(paced.law.steps_to([64.0], [0.1], 1.8)))
    short = replace(run(64, 0.1), curve=LossCurve((640, 1280), (2.0, 1.9)))
    with pytest.raises(EvidenceError, match="the law needs 1 loss curves"):
        fit_paced([short], _at([64.0], [0.1]), RANGES, spread=0.3)


def test_a_wrong_forecast_is_moved_towards_new_runs() -> None:
    truth, wrong = true_law(b_mid=60.0), true_law(b_mid=60.0, learning_rate=0.03)
    law = fit_law(simulated_report(wrong).runs)
    rng = np.random.default_rng(3)
    settings = ((64, 0.1), (256, 0.3), (128, 0.05), (512, 0.5))
    runs = [simulate(truth, size, rate, 20_000, rng) for size, rate in settings]
    before = abs(math.log(law.best_steps([128.0], 1.0)[1][0, 0] / truth.best_steps([128.0], 1.0)[1][0, 0]))
    updated = fit_paced(runs, np.array([place(*s) for s in settings]), RANGES, spread=0.3, prior=law).law
    after = abs(math.log(updated.best_steps([128.0], 1.0)[1][0, 0] / truth.best_steps([128.0], 1.0)[1][0, 0]))
    assert after < 0.5 * before
    assert updated.lowest_loss <= law.lowest_loss
    assert updated.batch_sizes[0] <= law.batch_sizes[0]
