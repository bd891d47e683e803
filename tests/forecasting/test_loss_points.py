"""Training losses on the scale of evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchopt.evidence import Branch, LossCurve, TrainingLosses
from batchopt.forecasting.loss_points import (
    POINTS_PER_RUN,
    LossPoints,
    TrainingOffset,
    loss_points,
    octaves_behind,
)

INITIAL = 2.3
TIMES = np.geomspace(40.0, 20_000.0, 40)


def true_loss(examples: np.ndarray) -> np.ndarray:
    return INITIAL * (1.0 + examples / 500.0) ** -0.5


def run_of(batch_size: int, *, ratio: float, evaluated: tuple[int, ...] = (), noise: float = 0.0) -> Branch:
    """A run whose training losses part from the loss as it falls: `ratio` times the loss at a factor of e below."""
    scatter = noise * np.random.default_rng(batch_size).standard_normal(len(TIMES))
    training = true_loss(TIMES) * ratio ** np.log(INITIAL / true_loss(TIMES)) * np.exp(scatter)
    return Branch(
        batch_size,
        0.1,
        LossCurve(evaluated, tuple(map(float, true_loss(np.array(evaluated, float))))),
        training=TrainingLosses(tuple(TIMES), tuple(training), tuple(max(noise, 0.01) * training)),
    )


def test_training_losses_are_brought_onto_the_scale_of_evaluations() -> None:
    runs = [run_of(32, ratio=0.8, evaluated=(2_500, 5_000, 10_000)), run_of(64, ratio=0.8)]
    offset = TrainingOffset(runs, INITIAL)
    # The second run was never evaluated: what the first one tells serves it as well.
    points = loss_points(runs[1], offset)
    errors = points.log_losses - np.log(true_loss(points.steps * 64))
    assert abs(math.log(0.8) * (points.log_losses[-1] - math.log(INITIAL))) > 0.35
    assert np.abs(errors[:-1]).max() < 0.03
    assert abs(errors[-1]) < 0.08, "beyond the last evaluation"


def test_without_evaluations_the_training_losses_stand() -> None:
    run = run_of(32, ratio=1.0)
    points = loss_points(run, TrainingOffset([run], INITIAL))
    assert len(points.steps) <= POINTS_PER_RUN
    assert points.log_losses == pytest.approx(np.log(true_loss(points.steps * 32)), abs=0.03)
    assert np.all(np.diff(points.steps) > 0)


def windows_of(scatter: np.ndarray, errors: np.ndarray) -> Branch:
    """A run at batch size 1 in windows of 10 examples, off the loss by so much, with such errors as shares of it."""
    middles = 10.0 * np.arange(1, len(scatter) + 1) - 5.0
    losses = true_loss(middles) * np.exp(scatter)
    training = TrainingLosses(tuple(middles), tuple(losses), tuple(errors * losses))
    return Branch(1, 0.1, LossCurve((), ()), training=training)


def test_bins_average_the_scatter() -> None:
    scatter = 0.2 * np.random.default_rng(0).standard_normal(200)
    run = windows_of(scatter, np.full(200, 0.2))
    points = loss_points(run, TrainingOffset([run], INITIAL))
    pulls = (points.log_losses - np.log(true_loss(points.steps))) / points.errors
    assert 0.5 < np.std(pulls) < 1.5
    # The last of ten bins over a factor of 400 in examples holds nearly half of the windows.
    assert points.errors[0] == pytest.approx(0.2, rel=0.01)
    assert points.errors[-1] == pytest.approx(0.2 / math.sqrt(89), rel=0.05)


def test_errors_of_bins_are_true_where_those_of_windows_are_guesses() -> None:
    rng, pulls = np.random.default_rng(0), []
    for _ in range(200):
        # Each window knows its scatter from five differences only, as at the least number of batches.
        errors = 0.2 * np.sqrt(rng.chisquare(5, 200) / 5)
        run = windows_of(0.2 * rng.standard_normal(200), errors)
        points = loss_points(run, TrainingOffset([run], INITIAL))
        pulls.append((points.log_losses - np.log(true_loss(points.steps)))[-1] / points.errors[-1])
    # Weighted by such guesses, the windows would claim twice the precision that they have.
    assert np.std(pulls) == pytest.approx(1.0, abs=0.15)


def test_what_has_no_logarithm_is_left_out() -> None:
    training = TrainingLosses((0.0, 50.0, 100.0, 200.0), (2.0, -0.5, 1.5, 1.0), (0.1, 0.1, 0.1, 5.0))
    run = Branch(32, 0.1, LossCurve((0, 150), (2.0, 1.2)), training=training)
    points = loss_points(run, TrainingOffset([run], INITIAL))
    # Initialisation, the negative mean and the one that is all scatter are no points.
    assert points.steps == pytest.approx([100.0 / 32, 150.0 / 32])


def test_the_shock_of_a_high_rate_is_left_out() -> None:
    steps, initial = np.arange(1.0, 7.0), math.log(2.0)
    shock = LossPoints(steps, initial + np.array([0.02, 0.9, -0.1, 0.3, 0.01, -0.5]), np.full(6, 0.1))
    assert shock.after_transient(initial).steps == pytest.approx([5.0, 6.0])
    calm = LossPoints(steps, initial + np.array([0.04, 0.0, -0.1, -0.2, 0.03, -0.5]), np.full(6, 0.1))
    assert calm.after_transient(initial).steps == pytest.approx(steps)
    assert len(LossPoints(steps, np.full(6, initial + 1.0), np.full(6, 0.1)).after_transient(initial).steps) == 0


def power_law(pace: float, steps: np.ndarray) -> LossPoints:
    """A loss that falls by the root of steps, `pace` times as fast as another."""
    return LossPoints(steps, math.log(INITIAL) - 0.5 * np.log1p(pace * steps), np.full(len(steps), 0.01))


def test_steepness_is_the_exponent_of_a_power_law() -> None:
    steps = np.geomspace(1e4, 1e6, 9)
    assert power_law(1.0, steps).steepness() == pytest.approx(0.5, rel=1e-3)
    level = LossPoints(steps, np.full(9, 0.3), np.full(9, 0.01))
    assert level.steepness() == pytest.approx(0.0, abs=1e-12)


def test_octaves_behind_the_fastest_run_of_the_batch_size() -> None:
    steps = np.geomspace(10.0, 1_000.0, 40)
    fast, slow, other = power_law(4.0, steps), power_law(1.0, steps), power_law(100.0, steps)
    behind = octaves_behind([(32.0, fast), (32.0, slow), (64.0, other)])
    assert behind[0] == pytest.approx(np.zeros(40))
    assert behind[2] == pytest.approx(np.zeros(40))
    # A quarter of the pace is two octaves; what the fast run has at its first point cannot be told any earlier.
    late = steps > 45.0
    assert behind[1][late] == pytest.approx(np.full(late.sum(), 2.0), abs=0.01)
    assert np.all((behind[1] >= 0.0) & (behind[1] <= 2.01))


def test_a_run_that_goes_astray_is_behind_itself() -> None:
    points = LossPoints(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.8, 0.4, 0.6, 0.5]), np.full(4, 0.01))
    (behind,) = octaves_behind([(8.0, points)])
    assert behind[:2] == pytest.approx([0.0, 0.0])
    assert behind[2] == pytest.approx(math.log2(4.0 / math.sqrt(2.0)))  # it was at 0.6 half-way between 1 and 2
