"""Schedules from logged rates: their shapes come back, whatever the logger rounded or left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName
from batchopt.runs.rates import SAME, schedule_of_rates


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("digits", [4, 12])
def test_a_shape_is_read_back(shape: ShapeName, digits: int) -> None:
    true = LearningRateSchedule.of(shape, examples=64_000, warmup_examples=3_200)
    examples = np.arange(0.0, 64_001.0, 64)
    rates = np.array([float(f"{0.03 * true(n):.{digits}g}") for n in examples])
    found = schedule_of_rates(examples, rates)
    assert found is not None
    assert len(found.examples) <= 40
    np.testing.assert_allclose([found(n) for n in examples], [true(n) for n in examples], atol=3 * SAME)


def test_rounding_does_not_make_a_stable_rate_fall() -> None:
    examples = np.arange(0.0, 1_000.0, 10)
    rates = 0.1 * np.minimum(1.0, (1.0 - examples / 1_000) / 0.2) * (1.0 - 1e-4 * (examples > 300))
    found = schedule_of_rates(examples, rates)
    assert found is not None
    assert found(790) == 1.0


def test_a_constant_rate_has_no_schedule() -> None:
    assert schedule_of_rates(np.array([10.0, 20.0, 30.0]), np.array([0.1, 0.1, 0.1])) is None
    assert schedule_of_rates(np.array([10.0]), np.array([0.1])) is None


def test_before_the_first_point_a_warm_up_is_carried_back_and_a_decay_is_not() -> None:
    warm = schedule_of_rates(np.array([100.0, 200, 400, 800]), np.array([0.25, 0.5, 1.0, 1.0]))
    falling = schedule_of_rates(np.array([100.0, 200, 400]), np.array([1.0, 0.5, 0.0]))
    assert warm is not None
    assert falling is not None
    assert (warm(0), warm.warmup_examples) == (0.0, 400)
    assert falling(0) == 1.0


def test_rates_that_drop_in_steps() -> None:
    examples = np.arange(0.0, 900.0, 10)
    found = schedule_of_rates(examples, np.select([examples < 300, examples < 600], [1.0, 0.1], 0.01))
    assert found is not None
    assert found(200) == 1.0
    assert found(500) == pytest.approx(0.1)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=60).filter(lambda rates: max(rates) > 0.01))
def test_every_point_is_met(rates: list[float]) -> None:
    examples = np.arange(len(rates), dtype=float) * 7
    found = schedule_of_rates(examples, np.array(rates))
    told = np.ones(len(rates)) if found is None else np.array([found(n) for n in examples])
    np.testing.assert_allclose(told, np.array(rates) / max(rates), atol=2.01 * SAME)
