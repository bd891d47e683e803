"""The law's algebra: a table against direct integration, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.synthetic import INITIAL_LOSS, true_law
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt.forecasting.law import SHAPE, LawPosterior, LawTable
from batchopt.forecasting.law_paces import interpolate_rising


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


def many_rows(wide: float, *, n: int = 7, delay: float = 0.0, seed: int = 0) -> LawTable:
    """Parameters about those of a law, so many standard deviations of a wide prior away."""
    law, rng = true_law(delay=delay), np.random.default_rng(seed)
    sd = np.array([2.0, 0.2, 2.0, 0.15, 0.7, 0.2, 0.3, 1.0, 1.0, *[0.3] * (len(law.best) - len(SHAPE))])
    return law.frame.table(np.array(law.best) + wide * sd * rng.standard_normal((n, len(law.best))))


def slow_curves(table: LawTable, batch_sizes: np.ndarray, learning_rates: np.ndarray) -> np.ndarray:
    """Twin: steps to every grid point, in logarithms and term by term as the module's notation has it."""
    frame, grid = table.frame, table.grid
    named = {name: table.rows[:, i, None, None] for i, name in enumerate(SHAPE)}
    past_mid, log_size, log_rate = grid - frame.v_mid, np.log(batch_sizes)[:, None], np.log(learning_rates)[..., None]
    log_b = named["log_b"] + named["q"] * past_mid
    log_lr_s = named["log_lr"] - named["d"] * past_mid
    log_lr_e = named["log_lr"] + named["log_k"] + named["alpha"] * (log_size - named["log_b"]) - named["g"] * past_mid
    log_x = log_rate - log_lr_s + np.logaddexp(0.0, log_lr_s - log_lr_e)
    per_y = np.logaddexp(-log_b, -log_size)
    share = np.exp(-log_b - per_y)
    log_a = share * named["log_a_steps"] + (1.0 - share) * named["log_a_examples"]
    log_cost = np.logaddexp(log_a, (1.0 + np.exp(log_a)) * log_x) - np.logaddexp(0.0, log_a) - log_x
    pace = np.exp(np.minimum(math.log(frame.scale) + grid + per_y + log_cost, 100.0))
    areas = 0.5 * (pace[..., 1:] + pace[..., :-1]) * (grid[1] - grid[0])
    steps = np.cumsum(np.concatenate([np.zeros((*areas.shape[:2], 1)), areas], axis=2), axis=2)
    return steps + frame.delay * (1.0 - np.exp(-steps / frame.delay)) if frame.delay else steps


def settings_of(k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return 2.0 ** rng.integers(3, 12, k), 10.0 ** rng.uniform(-4.0, 1.0, k)


# Exponents of up to some hundred, each off by half of its last digit, and 128 terms: 1e-13 at the least. Far away the
# power of x has an exponent of thousands.
@pytest.mark.parametrize(("wide", "tolerance"), [(1.0, 1e-10), (6.0, 1e-8)])
@pytest.mark.parametrize("delay", [0.0, 9.0])
def test_curves_agree_with_their_slow_twin(wide: float, tolerance: float, delay: float) -> None:
    table = many_rows(wide, n=300, delay=delay)
    sizes, rates = settings_of(5)
    np.testing.assert_allclose(
        table.cumulative_steps(sizes, rates), slow_curves(table, sizes, rates), rtol=tolerance, atol=1e-10
    )
    own_rates = rates * np.linspace(0.5, 2.0, 300)[:, None]
    np.testing.assert_allclose(
        table.cumulative_steps(sizes, own_rates), slow_curves(table, sizes, own_rates), rtol=tolerance, atol=1e-10
    )


@pytest.mark.parametrize("delay", [0.0, 9.0])
@pytest.mark.parametrize("own_rates", [False, True])
def test_steps_are_read_off_the_curves(delay: float, own_rates: bool) -> None:
    table = many_rows(1.0, delay=delay)
    sizes, rates = settings_of(300)
    if own_rates:
        rates = rates * np.linspace(0.5, 2.0, len(table.rows))[:, None]
    v = np.array([0.0, 0.3, 2.0, 5.0, table.grid[-1], table.grid[-1] + 1.0, np.inf])
    fast = table.steps_at(v, sizes, rates)
    assert np.all(np.isinf(fast[-1]))
    for row, at, curves in zip(fast[:-1], v, slow_curves(table, sizes, rates), strict=False):
        slow = [np.interp(at, table.grid, curve) for curve in curves]
        np.testing.assert_allclose(row, slow, rtol=1e-10, atol=1e-10)


def test_no_settings_take_no_steps() -> None:
    assert many_rows(1.0).steps_at(np.zeros(7), np.zeros(0), np.zeros(0)).shape == (7, 0)


def test_parameters_that_nobody_believes_overflow_to_never_and_not_to_nan() -> None:
    rows = np.tile(true_law().best, (2 * len(SHAPE), 1))
    for i in range(len(SHAPE)):
        rows[2 * i, i], rows[2 * i + 1, i] = 1e3, -1e3
    table = true_law().frame.table(rows)
    sizes, rates = settings_of(20)
    assert np.all(np.isfinite(table.cumulative_steps(sizes, rates)))
    assert np.all(np.isfinite(table.steps_at(np.full(len(rows), 3.0), sizes, rates)))


@pytest.mark.parametrize("delay", [0.0, 9.0])
def test_what_is_beyond_all_examples_need_not_be_tabulated(delay: float) -> None:
    table = many_rows(1.0, n=50, delay=delay)
    sizes, rates = settings_of(6)
    run = np.repeat(np.arange(6), 4)
    for most in (1e-3, 30.0, 3e4, 1e9, math.inf):
        steps = most * np.tile([0.01, 0.1, 0.5, 1.0], 6) / sizes[run]
        slow = interpolate_rising(slow_curves(table, sizes, rates), np.tile(steps, (50, 1)), table.grid, run)
        np.testing.assert_allclose(table.v_of_points(steps, sizes, rates, run), slow, rtol=1e-9, atol=1e-12)


def test_where_a_loss_is_reached_is_interpolated_between_knots() -> None:
    law = true_law()
    rows = np.tile(law.best, (4, 1))
    rows[:, len(SHAPE) :] += np.random.default_rng(0).standard_normal((4, len(law.knots) - 1))
    table = LawTable(rows, law.frame)
    lowest = float(np.exp(table.knot_log_losses[:, -1]).min())
    for loss in (*np.geomspace(0.9 * lowest, 1.1 * INITIAL_LOSS, 50), INITIAL_LOSS):
        slow = [np.interp(-math.log(loss), -row, table.knots, right=np.inf) for row in table.knot_log_losses]
        np.testing.assert_allclose(table.v_of_loss(float(loss)), slow, rtol=1e-9, atol=1e-12)
