"""The learning-rate rule's limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.learning_rate import LearningRateRule


@given(alpha=st.floats(0.0, 2.0), turning_point=st.floats(1.0, 1e5), size=st.floats(1.0, 1e6))
def test_rises_with_the_batch_up_to_the_largest(alpha: float, turning_point: float, size: float) -> None:
    rule = LearningRateRule(0.3, turning_point, alpha)
    assert rule(size) <= rule(2 * size) * (1 + 1e-12)
    assert rule(2 * size) <= 0.3 * (1 + 1e-12)
    assert rule.rescaled(rule(size), from_batch=size, to_batch=3 * size) == pytest.approx(rule(3 * size))


@given(alpha=st.floats(0.1, 2.0))
def test_small_batches_scale_by_a_power(alpha: float) -> None:
    rule = LearningRateRule(1.0, 1e9, alpha)
    assert rule(200.0) / rule(100.0) == pytest.approx(2.0**alpha, rel=1e-6)


def test_golden_svhn() -> None:
    # McCandlish et al. 2018, footnote 20: 0.27 B / (96 + B) is roughly optimal on SVHN.
    rule = LearningRateRule(largest=0.27, turning_point=96.0, alpha=1.0)
    assert rule(128.0) == pytest.approx(0.27 * 128.0 / (96.0 + 128.0))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="turning_point must be positive"):
        LearningRateRule(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="alpha must be zero or more"):
        LearningRateRule(1.0, 1.0, -1.0)
