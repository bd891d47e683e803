"""The hyperbola, its fit, and published data that it must reproduce."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from batchopt.errors import EvidenceError
from batchopt.tradeoff import TradeoffFit, TradeoffLaw, fit_tradeoff

ZHANG = json.loads((Path(__file__).parent / "data" / "zhang_steps_to_target.json").read_text())

positive = st.floats(1e-3, 1e9)


@given(steps_min=positive, examples_min=positive, ratio=st.floats(1e-3, 1e3))
def test_identities(steps_min: float, examples_min: float, ratio: float) -> None:
    law = TradeoffLaw(steps_min, examples_min)
    size = law.critical_batch_size * ratio
    # Cancellation: each factor is of order ratio or 1/ratio, computed as a difference from 1.
    bound = 1e-13 * (ratio + 1.0 / ratio + 2.0)
    assert (law.steps(size) / steps_min - 1) * (law.examples(size) / examples_min - 1) == pytest.approx(1, rel=bound)
    assert law.steps(size) * size == pytest.approx(law.examples(size))
    assert law.steps(law.critical_batch_size) == pytest.approx(2 * steps_min)
    assert law.examples(law.critical_batch_size) == pytest.approx(2 * examples_min)
    assert law.batch_size_at_steps(law.steps(size)) == pytest.approx(size, rel=bound)


@given(steps_min=st.floats(1.0, 1e6), crit=st.floats(8.0, 4096.0))
def test_fit_inverts_the_law(steps_min: float, crit: float) -> None:
    law = TradeoffLaw(steps_min, steps_min * crit)
    sizes = [2.0**k for k in range(1, 15)]
    fit = fit_tradeoff(sizes, [law.steps(size) for size in sizes])
    assert fit.law.critical_batch_size == pytest.approx(crit, rel=1e-4)
    assert fit.law.steps_min == pytest.approx(steps_min, rel=1e-4)
    assert fit.rms < 1e-5
    assert fit.critical_batch_size.resolved


def residuals(parameters: np.ndarray, sizes: np.ndarray, log_steps: np.ndarray) -> np.ndarray:
    return np.asarray(parameters[0] + np.log1p(np.exp(parameters[1]) / sizes) - log_steps)


def test_twin_general_least_squares() -> None:
    # The fit solves for S_min in closed form and searches B_crit alone; the twin searches both, from many starts.
    rng = np.random.default_rng(3)
    sizes = 2.0 ** np.arange(3, 12)
    for _ in range(10):
        law = TradeoffLaw(300.0, 300.0 * float(rng.uniform(20, 1_000)))
        steps = np.array([law.steps(size) for size in sizes]) * np.exp(0.1 * rng.standard_normal(9))

        fits = [
            optimize.least_squares(residuals, [5.0, start], args=(sizes, np.log(steps)), xtol=1e-14, gtol=1e-14)
            for start in range(2, 9)
        ]
        slow = min(fits, key=lambda fit: float(fit.cost)).x
        fast = fit_tradeoff(sizes.tolist(), steps.tolist()).law
        assert np.log([fast.steps_min, fast.critical_batch_size]) == pytest.approx(slow, rel=1e-7)


@pytest.mark.parametrize(
    ("model", "crit", "rms"),
    [("85M", 2192, 4.9), ("151M", 3241, 5.5), ("302M", 5434, 4.0), ("604M", 7905, 4.4), ("1.2B", 11125, 3.8)],
)
def test_golden_language_models(model: str, crit: float, rms: float) -> None:
    # Zhang et al. 2024 (arXiv 2410.21676), steps to target of AdamW language models. The B_crit here were printed from
    # a coarser search: they are within 0.07 % of the exact minimum.
    fit = fit_tradeoff(ZHANG["batch_sizes_sequences"], ZHANG["steps"][model])
    assert fit.critical_batch_size.value == pytest.approx(crit, rel=1e-3)
    assert 100 * fit.rms == pytest.approx(rms, abs=0.06)
    assert fit.critical_batch_size.resolved
    assert TradeoffFit.from_json(fit.to_json()) == fit


@pytest.mark.parametrize(("powers", "noise"), [(range(4, 13), 0.05), (range(4, 13), 0.2), (range(6, 10), 0.1)])
def test_intervals_cover(powers: range, noise: float) -> None:
    rng, covered = np.random.default_rng(0), np.zeros(3)
    law = TradeoffLaw(500.0, 100_000.0)
    sizes = [2.0**power for power in powers]
    for _ in range(400):
        steps = [law.steps(size) * math.exp(noise * rng.standard_normal()) for size in sizes]
        fit = fit_tradeoff(sizes, steps)
        truths = ((fit.critical_batch_size, 200.0), (fit.steps_min, 500.0), (fit.examples_min, 100_000.0))
        covered += [estimate.low <= truth <= estimate.high for estimate, truth in truths]
    # Four standard errors of a share of 0.9 in 400 draws.
    assert np.all(np.abs(covered / 400 - 0.9) < 0.06)


def steps_with_noise(sizes: list[float]) -> list[float]:
    rng = np.random.default_rng(1)
    law = TradeoffLaw(1_000.0, 200_000.0)
    return [law.steps(size) * math.exp(0.05 * rng.standard_normal()) for size in sizes]


def test_small_batches_only_bound_the_critical_one_from_below() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    fit = fit_tradeoff(sizes, steps_with_noise(sizes))
    assert not fit.critical_batch_size.resolved
    assert 8.0 < fit.critical_batch_size.low < 200.0
    assert fit.critical_batch_size.high == math.inf
    assert fit.steps_min.low == 0.0
    assert not fit.steps_min.resolved
    assert fit.examples_min.resolved
    assert fit.examples_min.low < 200_000.0 < fit.examples_min.high


def test_large_batches_only_bound_the_critical_one_from_above() -> None:
    sizes = [4096.0, 8192.0, 16384.0, 32768.0]
    fit = fit_tradeoff(sizes, steps_with_noise(sizes))
    assert not fit.critical_batch_size.resolved
    assert fit.critical_batch_size.low == 0.0
    assert 200.0 < fit.critical_batch_size.high < 4096.0
    assert fit.steps_min.resolved
    assert not fit.examples_min.resolved


def test_steps_that_rise_with_the_batch_resolve_nothing() -> None:
    fit = fit_tradeoff([1, 2, 4], [100, 150, 200])
    assert not fit.critical_batch_size.resolved
    assert (fit.critical_batch_size.low, fit.critical_batch_size.high) == (0.0, math.inf)


def test_refusals() -> None:
    with pytest.raises(EvidenceError, match="at least 3 different batch sizes, got 2"):
        fit_tradeoff([8, 8, 16], [10, 10, 6])
    with pytest.raises(ValueError, match="as many steps as batch sizes"):
        fit_tradeoff([8, 16], [10])
    with pytest.raises(ValueError, match="every number of steps must be positive"):
        fit_tradeoff([8, 16, 32], [10, -1, 3])
    with pytest.raises(ValueError, match="steps_min must be positive"):
        TradeoffLaw(0.0, 1.0)
    with pytest.raises(ValueError, match="steps must exceed the fewest possible"):
        TradeoffLaw(100.0, 1.0).batch_size_at_steps(100.0)
