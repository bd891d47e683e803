"""The cost benchmark: the peers' formulas are unbiased, and their cost is where they first reach the error."""

from __future__ import annotations

import math

import noise_cost
import numpy as np
import pytest
from noise_cost import Gradients, best, cost, from_norms
from populations import few_dimensions, isotropic


def test_paper_form() -> None:
    # |G|^2 = 3, tr(Sigma) = 40: E|g_b|^2 = 3 + 40 / b.
    signal, noise = from_norms(np.array([3 + 40 / 8]), np.array([3 + 40 / 64]), 8, 64)
    assert (signal[0], noise[0]) == pytest.approx((3.0, 40.0))


@pytest.mark.parametrize("count", [2, 8, 64])
def test_norms_of_parts_and_of_their_mean_are_unbiased(count: int) -> None:
    population = few_dimensions(50.0)
    gradients, rng, batch = Gradients.of(population), np.random.default_rng(0), 64
    large = gradients.norms(rng, batch, (20_000,)).sum(0)
    small = large + gradients.scatter(rng, batch // count, count, (20_000,))
    for values, truth in zip(from_norms(small, large, batch // count, batch), (1 / 50, 1.0), strict=True):
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(20_000)


def test_twin_of_the_last_of_several_batches() -> None:
    population, batch, count = few_dimensions(5.0), 4, 3
    rng, gradients = np.random.default_rng(1), Gradients.of(population)
    large = gradients.norms(rng, batch * count, (20_000,))
    small = gradients.norms(rng, batch / (1 - 1 / count), (20_000,), around=large).sum(0)
    batches = population.mean + np.sqrt(population.variances / batch) * rng.standard_normal((20_000, count, 20))
    slow_small, slow_large = (batches[:, -1] ** 2).sum(1), (batches.mean(1) ** 2).sum(1)
    for fast, slow in (
        (small, slow_small),
        (large.sum(0), slow_large),
        (small * large.sum(0), slow_small * slow_large),
    ):
        assert abs(fast.mean() - slow.mean()) < 4 * math.sqrt((fast.var() + slow.var()) / 20_000)


def test_cost_is_at_the_first_step_that_reaches_the_error() -> None:
    signal, noise = np.ones((10, 4)), np.array([[40.0, 20.0, 15.0, 10.0]] * 10)
    # Plain means of the noise: 40, 30, 25, 21.25.
    assert cost(signal, noise, 1.0, 8, truth=21.25 / 1.19) == 32
    assert cost(signal, noise, 1.0, 8, truth=5.0) == math.inf


def test_readings_without_a_ratio() -> None:
    noise = np.full((100, 1), 20.0)
    signal = np.ones((100, 1))
    signal[:5] = -1.0
    assert cost(signal, noise, 1.0, 8, truth=20.0) == 8
    signal[5] = -1.0
    assert cost(signal, noise, 1.0, 8, truth=20.0) == math.inf


def test_the_best_setting() -> None:
    assert best(iter([{"examples": 9.0}, {"examples": 3.0, "decay": 0.9}])) == {"examples": 3.0, "decay": 0.9}
    assert best(iter([{"examples": math.inf}])) == {"examples": None}


def test_every_peer_gives_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_cost, "REPETITIONS", 40)
    for name, peer in noise_cost.PEERS.items():
        settings = list(peer(isotropic(64), 16, np.random.default_rng(0)))
        reached = [setting["examples"] for setting in settings if math.isfinite(setting["examples"])]
        assert reached, name
        assert min(reached) >= 16
