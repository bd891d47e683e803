"""What is believed of best rates at longer horizons: against runs one by one, and against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from forecasting.known_law import known_law, known_report

from batchopt.forecasting import rate_drift
from batchopt.forecasting.rate_drift import ASIDE, BEFORE, CURVATURE, CURVATURE_SD, FURTHER, HORIZON_EXPONENT, drifts_of
from batchopt.forecasting.schedule_fit import NoiseReadings, Points, _Misfit, fit_schedule_law
from batchopt.forecasting.schedule_law import Course, Courses, Frame, frame_of, losses
from batchopt.forecasting.schedule_points import NearBest, evidence_of
from batchopt.forecasting.schedule_prior import prior_of
from batchopt.learning_rate_schedule import LearningRateSchedule

LAW = known_law()


def log_end(size: int, rate: float, horizon: float) -> float:
    """Of a run that warms up over a twentieth of its horizon and decays over the last fifth."""
    knees = (0, round(0.05 * horizon), round(0.8 * horizon), round(horizon))
    schedule = LearningRateSchedule(knees, (0.0, 1.0, 1.0, 0.0))
    return float(LAW.losses_at_end([size], [rate], [schedule], [horizon])[0, 0])


def test_the_contrasts_are_those_of_runs_one_by_one() -> None:
    size, rate, longest = 16, 0.3, 20_000.0
    found = drifts_of([NearBest(size, rate, True)], longest)
    ends = np.log(losses(np.array(LAW.rows[:1]), LAW.frame, found.courses)[0, :, -1])
    later, there = rate * FURTHER**HORIZON_EXPONENT, FURTHER * longest

    def tilt(middle: float, horizon: float) -> float:
        return log_end(size, middle * math.exp(ASIDE), horizon) - log_end(size, middle / math.exp(ASIDE), horizon)

    both = sum(log_end(size, later * math.exp(sign * ASIDE), there) for sign in (-1.0, 1.0))
    bend = both - 2.0 * log_end(size, later, there)
    steepness = (log_end(size, rate, longest / BEFORE) - log_end(size, rate, longest)) / math.log(BEFORE)
    here = tilt(rate, longest)
    expected = [here, tilt(later, there) - here, bend - CURVATURE * ASIDE**2 * steepness]
    # In single precision where losses along runs are asked for, in double here.
    assert found.differences @ ends == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("off", [0.0, 1.5])
def test_a_parabola_whose_best_rate_moves_by_an_exponent_is_off_by_so_many_deviations(off: float) -> None:
    longest = 40_000.0
    found = drifts_of([NearBest(4, 0.1, True), NearBest(64, 0.4, True)], longest)
    every = found.courses
    size, horizon = every.batch_sizes[:, 0], np.sum(every.steps * every.batch_sizes, axis=1)
    exponent = HORIZON_EXPONENT + off * rate_drift.HORIZON_EXPONENT_SD
    best = 0.1 * np.sqrt(size / 4.0) * (horizon / longest) ** exponent
    ends = 0.5 * CURVATURE * np.log(every.peaks / best) ** 2 - np.log(horizon)
    near, drift, bend = (found.differences @ ends / found.sds).reshape(2, 3).T
    assert near == pytest.approx(0.0, abs=1e-9)
    assert drift == pytest.approx(-off, rel=1e-6, abs=1e-9)
    # Of the curvature that is believed; but the run before H is at the best rate of H, not at its own.
    steepness = 1.0 + 0.5 * CURVATURE * exponent**2 * math.log(BEFORE)
    assert bend == pytest.approx((1.0 - steepness) / CURVATURE_SD, rel=1e-6)


@pytest.mark.parametrize("off", [-1.0, 2.0])
def test_a_rate_that_is_off_by_so_many_deviations_is_told(off: float) -> None:
    found = drifts_of([NearBest(4, 0.1, True)], 40_000.0)
    best = 0.1 * math.exp(off * rate_drift.NEAR_SD)
    ends = 0.5 * CURVATURE * np.log(found.courses.peaks / best) ** 2
    assert (found.differences @ ends / found.sds)[0] == pytest.approx(-off, rel=1e-6)


READINGS = NoiseReadings(
    Courses([Course(np.full(k, 9.0), np.full(k, 16.0), np.full(k, 0.2)) for k in (2, 5)]), np.log([5.0, 40.0])
)


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("readings", [None, READINGS])
@pytest.mark.parametrize("best", [(), (NearBest(4, 0.05, True), NearBest(64, 0.2, False))])
def test_derivatives_of_all_residuals_are_those_of_differences(
    is_adaptive: bool, readings: NoiseReadings | None, best: tuple[NearBest, ...]
) -> None:
    rng = np.random.default_rng(3)
    runs = [Course(rng.uniform(1, 30, k), 2.0 ** rng.integers(1, 8, k), rng.uniform(0.01, 1.0, k)) for k in (6, 9)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    points = Points(Courses(runs), np.array([0, 1, 1]), np.array([5, 3, 8]), np.log([0.9, 1.1, 0.7]), np.full(3, 0.01))
    prior = prior_of(points, frame)
    misfit = _Misfit(points, frame, prior, 0.4, drifts_of(best, 2_000.0) if best else None, readings)
    rows = prior.mean + 0.3 * prior.sd * rng.standard_normal((3, len(prior.mean)))
    misfit.shifts = 0.5 * rng.standard_normal((3, misfit.shifts.shape[1]))
    slopes, step = misfit.jacobian(rows), 1e-5
    for k in range(rows.shape[1]):
        ahead, behind = rows.copy(), rows.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        found = (misfit.residuals(ahead) - misfit.residuals(behind)) / (2.0 * step)
        assert slopes[:, :, k] == pytest.approx(found, rel=1e-5, abs=1e-6)


def test_vague_beliefs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = evidence_of(known_report(LAW).runs, initial_loss=LAW.initial_loss)
    frame = frame_of(evidence.points.courses, initial_loss=LAW.initial_loss, lowest_loss=0.06, is_adaptive=False)
    for name in ("HORIZON_EXPONENT_SD", "CURVATURE_SD", "NEAR_SD"):
        monkeypatch.setattr(rate_drift, name, 1e9)
    vague = drifts_of(evidence.near_best, evidence.longest)
    alone, with_vague = (
        fit_schedule_law(evidence.points, frame, contrasts=contrasts, draws=2).rows[0] for contrasts in (None, vague)
    )
    assert with_vague == pytest.approx(alone, abs=1e-6)
