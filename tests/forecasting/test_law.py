"""The law's algebra: a table against direct integration, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.synthetic import INITIAL_LOSS, true_law
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt.forecasting.law import LawPosterior


def slow_steps(law: LawPosterior, batch_size: float, learning_rate: float, loss: float) -> float:
    """Twin: d steps / dy = (1/b + 1/B) c integrated with 100,000 points, written from the module's notation."""
    log_b, q, log_lr, d, log_k, g, alpha, log_a_steps, log_a_examples = law.best[:9]
    slopes = np.exp(law.best[9:])
    knots = np.array(law.knots)
    log_losses = math.log(law.initial_loss) - np.concatenate([[0.0], np.cumsum(slopes * np.diff(knots))])
    v_end = np.interp(-math.log(loss), -log_losses, knots)
    v = np.linspace(0.0, v_end, 100_001)
    y = law.scale * np.expm1(v)
    b = np.exp(log_b + q * (v - law.v_mid))
    of_steps = np.exp(log_lr - d * (v - law.v_mid))
    of_examples = np.exp(log_lr + log_k - g * (v - law.v_mid)) * (batch_size / math.exp(log_b)) ** alpha
    x = learning_rate / (of_steps / (1.0 + of_steps / of_examples))
    share = batch_size / (b + batch_size)
    a = np.exp(share * log_a_steps + (1.0 - share) * log_a_examples)
    cost = (a + x ** (1.0 + a)) / ((1.0 + a) * x)
    steps = float(np.trapezoid((1.0 / b + 1.0 / batch_size) * cost, y))
    return steps + law.delay * (1.0 - math.exp(-steps / law.delay)) if law.delay else steps


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.floats(4.0, 4096.0),
    learning_rate=st.floats(0.01, 1.0),
    loss=st.floats(0.2, 1.8),
    b_mid=st.floats(10.0, 1000.0),
    q=st.floats(0.2, 0.8),
    delay=st.sampled_from([0.0, 9.0]),
)
def test_steps_agree_with_direct_integration(
    batch_size: float, learning_rate: float, loss: float, b_mid: float, q: float, delay: float
) -> None:
    law = true_law(b_mid=b_mid, q=q, delay=delay)
    fast = law.steps_to([batch_size], [learning_rate], loss)[0, 0]
    # The integrand grows at most like e^(3v) and the grid's step is dv = 0.11: the trapezoids err by (3 dv)^2 / 12 and
    # the interpolation by (3 dv)^2 / 8, 2.3 % together.
    assert fast == pytest.approx(slow_steps(law, batch_size, learning_rate, loss), rel=2.5e-2)


def test_loss_and_steps_are_inverse() -> None:
    law = true_law()
    for loss in (1.5, 1.0, 0.5):
        steps = law.steps_to([128.0], [0.2], loss)[0, 0]
        assert law.losses_at([128.0], [0.2], [128.0 * steps])[0, 0] == pytest.approx(loss, rel=1e-3)


def test_initial_loss_takes_no_steps_and_an_unreachable_one_takes_forever() -> None:
    law = true_law()
    assert law.losses_at([64.0], [0.1], [1e-6])[0, 0] == pytest.approx(INITIAL_LOSS, rel=1e-3)
    assert math.isinf(law.steps_to([64.0], [0.1], 1e-9)[0, 0])


def test_best_steps_follow_the_hyperbola() -> None:
    law = true_law()
    steps_min, examples_min = (values[0] for values in law.hyperbola(0.5))
    b_crit = examples_min / steps_min
    sizes = b_crit * np.array([0.25, 1.0, 4.0])
    steps, _ = law.best_steps(sizes, 0.5)
    # McCandlish et al. 2018 eq. 2.11; a constant rate cannot follow lr*, which bends it by a few per cent.
    assert (steps[0] / steps_min - 1.0) * (steps[0] * sizes / examples_min - 1.0) == pytest.approx(1.0, rel=0.15)


def test_best_steps_match_a_dense_search() -> None:
    law = true_law()
    fast = law.best_steps([100.0], 0.5)[0][0, 0]
    rates = np.geomspace(1e-4, 10.0, 2_000)
    dense = law.steps_to(np.full(len(rates), 100.0), rates, 0.5)[0].min()
    assert dense <= fast * (1 + 1e-9)
    assert fast <= 1.02 * dense


def test_a_diverged_setting_is_never_used() -> None:
    law = true_law()
    hot = replace(law, unstable=((64, 0.2),))
    assert math.isinf(hot.steps_to([32.0], [0.3], 0.5)[0, 0])
    assert math.isfinite(hot.steps_to([128.0], [0.3], 0.5)[0, 0])
    assert hot.best_steps([32.0], 0.5)[1].max() < 0.2


def test_wrong_number_of_parameters() -> None:
    with pytest.raises(ValueError, match=r"needs 11 parameters, got 8"):
        LawPosterior(2.3, 8.0, 0.0, (0.0, 1.0, 2.0), 1.0, (0.0,) * 8, (), (), (1, 1), 0.1)


def test_the_mean_critical_batch_size_is_that_of_the_hyperbola() -> None:
    law = true_law()
    steps_min, examples_min = (values[0] for values in law.hyperbola(0.5))
    assert law.table().mean_critical_batch_size(0.5)[0] == pytest.approx(examples_min / steps_min, rel=0.1)
