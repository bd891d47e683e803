"""Derivatives of the misfit against finite differences, and what noise readings weigh."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from batchopt.forecasting.law import SHAPE, Frame
from batchopt.forecasting.misfit import Misfit, NoiseReading, Points, Prior

KNOTS = np.linspace(0.0, 9.0, 7)
READINGS = [
    NoiseReading("simple", 1.8, math.log(40.0), 0.1),
    NoiseReading("simple", 1.1, math.log(90.0), 0.1),
    NoiseReading("hessian", 1.1, math.log(60.0), 0.3),
]


def misfit_of(readings: list[NoiseReading]) -> Misfit:
    rng = np.random.default_rng(1)
    run = np.repeat([0, 1, 2], 5)
    points = Points(
        batch_sizes=np.array([16.0, 128.0, 128.0]),
        learning_rates=np.array([0.1, 0.2, 0.6]),
        run=run,
        steps=np.tile([5.0, 12.0, 30.0, 80.0, 200.0], 3),
        log_losses=math.log(2.3) - np.tile([0.05, 0.2, 0.4, 0.7, 1.0], 3) + 0.05 * rng.standard_normal(15),
        weights=rng.uniform(3.0, 20.0, 15),
    )
    n_law = len(SHAPE) + len(KNOTS) - 1
    prior = Prior(np.zeros(n_law), np.diag(rng.uniform(0.5, 2.0, n_law)))
    frame = Frame(KNOTS, 4.0, math.log(2.3), 16.0, 2.0)
    misfit = Misfit(points, frame, prior, tuple(readings), shifts=np.zeros((1, 1)))
    shifts = 0.5 * rng.standard_normal((2, misfit.n_residuals))
    return Misfit(points, frame, prior, tuple(readings), shifts=shifts)


def rows_of(misfit: Misfit) -> np.ndarray:
    rng = np.random.default_rng(2)
    shape = [math.log(50.0), 0.5, math.log(0.3), 0.05, 0.2, 0.1, 0.9, 0.4, 0.1]
    law = np.array([*shape, *np.log(np.linspace(0.1, 0.4, 6))])
    row = np.append(law, 0.2 * np.ones(misfit.n_nuisances))
    return row + 0.1 * rng.standard_normal((2, len(row)))


@pytest.mark.parametrize("readings", [[], READINGS])
def test_derivatives_agree_with_finite_differences(readings: list[NoiseReading]) -> None:
    misfit = misfit_of(readings)
    rows = rows_of(misfit)
    fast = misfit.jacobian(rows)
    assert fast.shape == (2, misfit.n_residuals, rows.shape[1])
    for i in range(rows.shape[1]):
        step = np.zeros(rows.shape[1])
        step[i] = 1e-3
        slow = (misfit.residuals(rows + step) - misfit.residuals(rows - step)) / 2e-3
        # The law is tabulated, so its derivatives jump between grid points.
        assert fast[:, :, i] == pytest.approx(slow, rel=0.05, abs=0.02)


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("readings", [[], READINGS])
def test_derivatives_agree_with_one_parameter_at_a_time(readings: list[NoiseReading], paced: bool) -> None:
    misfit = misfit_of(readings)
    if paced:
        misfit = replace(misfit, paces=np.diag([2.0, 3.0, 4.0]))
        misfit = replace(misfit, shifts=0.5 * np.random.default_rng(4).standard_normal((2, misfit.n_residuals)))
    rows = rows_of(misfit)
    count, width, step = len(misfit.points.steps), len(misfit.prior.mean), 1e-4
    fast = misfit.jacobian(rows)[:, :count]
    table, steps = misfit.frame.table(rows[:, :width]), misfit._steps(rows[:, width : width + misfit._n_paces])
    v = misfit._progress(table, steps)
    unsoftened = (table.log_loss(v) - misfit.points.log_losses) * misfit.points.weights + misfit.shifts[:, :count]
    outer = (
        misfit.points.weights
        * table.log_loss_slope(v)
        / np.sqrt((1.0 + unsoftened**2) * 2.0 / (1.0 + np.sqrt(1.0 + unsoftened**2)))
    )
    for i in range(len(SHAPE)):
        stepped = rows[:, :width].copy()
        stepped[:, i] += step
        slow = outer * (misfit._progress(misfit.frame.table(stepped), steps) - v) / step
        # Differences of v, known to 1e-14, over 1e-4.
        np.testing.assert_allclose(fast[:, :, i], slow, rtol=1e-8, atol=1e-8)
    if paced:
        slow = outer * (misfit._progress(table, steps * (1.0 - step)) - v) / step
        np.testing.assert_allclose(fast[:, np.arange(count), width + misfit.points.run], slow, rtol=1e-8, atol=1e-8)


def test_derivatives_of_noise_agree_with_one_parameter_at_a_time() -> None:
    misfit = misfit_of(READINGS)
    rows, step = rows_of(misfit), 1e-4
    first = len(misfit.points.steps) + len(misfit.prior.mean)
    base = misfit._noise_residuals(rows)
    fast = misfit.jacobian(rows)[:, first:]
    for i in range(rows.shape[1]):
        stepped = rows.copy()
        stepped[:, i] += step
        slow = (misfit._noise_residuals(stepped) - base) / step
        np.testing.assert_allclose(fast[:, :, i], slow, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("readings", [[], READINGS])
def test_rows_that_are_alike_have_the_same_derivatives_as_among_others(readings: list[NoiseReading]) -> None:
    misfit = misfit_of(readings)
    rows = rows_of(misfit)
    alike = np.tile(rows[:1], (2, 1))
    third = replace(misfit, shifts=np.concatenate([misfit.shifts, misfit.shifts[:1]]))
    among = third.jacobian(np.concatenate([alike, rows[1:]]))[:2]
    np.testing.assert_allclose(misfit.jacobian(alike), among, rtol=1e-8, atol=1e-8)


def test_large_misfits_count_by_their_size() -> None:
    misfit = misfit_of([])
    points = misfit.points
    rows = rows_of(misfit)[:1]
    costs = []
    for wrong in (0.0, 50.0, 100.0):
        far = Points(
            points.batch_sizes,
            points.learning_rates,
            points.run,
            points.steps,
            np.concatenate([[points.log_losses[0] + wrong], points.log_losses[1:]]),
            points.weights,
        )
        residuals = Misfit(far, misfit.frame, misfit.prior, (), np.zeros((1, misfit.n_residuals))).residuals(rows)
        costs.append(0.5 * float(np.sum(residuals**2)))
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0], rel=0.05)


def test_kinds_of_one_level_count_as_one_reading() -> None:
    """Two kinds that say the same pull as hard as one: a kind more is no more gradients."""
    one = [NoiseReading("simple", loss, math.log(100.0), 1e-3) for loss in (1.8, 1.1)]
    two = one + [NoiseReading("hessian", r.loss, r.log_noise, r.log_se) for r in one]

    def pull(readings: list[NoiseReading]) -> float:
        misfit = misfit_of(readings)
        rows = rows_of(misfit)[:1] * np.append(np.ones(len(SHAPE) + 6), np.zeros(misfit.n_nuisances))
        residuals = Misfit(
            misfit.points, misfit.frame, misfit.prior, misfit.noise, np.zeros((1, misfit.n_residuals))
        ).residuals(rows)
        return float(np.sum(residuals[0, -len(readings) - misfit.n_nuisances :] ** 2))

    assert pull(two) == pytest.approx(pull(one), rel=1e-3)
