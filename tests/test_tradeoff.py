"""The hyperbola, its fit, and published data that it must reproduce."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(steps_min=st.floats(1.0, 1e6), crit=st.floats(8.0, 4096.0))
def test_fit_inverts_the_law(steps_min: float, crit: float) -> None:
    law = TradeoffLaw(steps_min, steps_min * crit)
    sizes = [2.0**k for k in range(1, 15)]
    fit = fit_tradeoff(sizes, [law.steps(size) for size in sizes])
    assert fit.law.critical_batch_size == pytest.approx(crit, rel=1e-4)
    assert fit.law.steps_min == pytest.approx(steps_min, rel=1e-4)
    assert fit.rms < 1e-5


@pytest.mark.parametrize(
    ("model", "crit", "rms"),
    [("85M", 2192, 4.9), ("151M", 3241, 5.5), ("302M", 5434, 4.0), ("604M", 7905, 4.4), ("1.2B", 11125, 3.8)],
)
def test_golden_language_models(model: str, crit: float, rms: float) -> None:
    # Zhang et al. 2024 (arXiv 2410.21676), steps to target of AdamW language models; the printed digits.
    fit = fit_tradeoff(ZHANG["batch_sizes_sequences"], ZHANG["steps"][model])
    assert fit.critical_batch_size.value == pytest.approx(crit, rel=1e-3)
    assert 100 * fit.rms == pytest.approx(rms, abs=0.06)
    assert fit.critical_batch_size.resolved
    assert TradeoffFit.from_json(fit.to_json()) == fit


def test_intervals_cover() -> None:
    rng, covered = np.random.default_rng(0), 0
    law = TradeoffLaw(500.0, 100_000.0)
    sizes = 2.0 ** np.arange(4, 13)
    for _ in range(300):
        steps = np.array([law.steps(size) for size in sizes]) * np.exp(0.05 * rng.standard_normal(9))
        estimate = fit_tradeoff(sizes.tolist(), steps.tolist()).critical_batch_size
        covered += estimate.low <= 200.0 <= estimate.high
    assert 0.85 <= covered / 300 <= 0.95


@pytest.mark.parametrize("sizes", [[1.0, 2.0, 4.0, 8.0], [4096.0, 8192.0, 16384.0, 32768.0]])
def test_one_side_of_the_critical_batch_size_does_not_tell(sizes: list[float]) -> None:
    rng = np.random.default_rng(1)
    law = TradeoffLaw(1_000.0, 200_000.0)
    fit = fit_tradeoff(sizes, [law.steps(size) * np.exp(0.05 * rng.standard_normal()) for size in sizes])
    assert not fit.critical_batch_size.resolved
    assert fit.critical_batch_size.high == np.inf


def test_refusals() -> None:
    with pytest.raises(EvidenceError, match="at least 3 different batch sizes, got 2"):
        fit_tradeoff([8, 8, 16], [10, 10, 6])
    with pytest.raises(ValueError, match="as many steps as batch sizes"):
        fit_tradeoff([8, 16], [10])
    with pytest.raises(ValueError, match="every number of steps must be positive"):
        fit_tradeoff([8, 16, 32], [10, -1, 3])
    with pytest.raises(ValueError, match="steps_min must be positive"):
        TradeoffLaw(0.0, 1.0)
