"""Measured noise scales as evidence for a law: which count, of which runs they are, and what they do to a fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import known_forecast, known_law, known_report
from numpy.typing import NDArray

from batchopt.evidence import Branch, LossCurve, ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.least_squares import soft
from batchopt.forecasting.schedule_fit import (
    READING_SD,
    NoiseReadings,
    Points,
    ScheduleLaw,
    _Misfit,
    fit_schedule_law,
)
from batchopt.forecasting.schedule_law import SHAPE, Course, Courses, Frame, course, frame_of, losses
from batchopt.forecasting.schedule_points import readings_of
from batchopt.forecasting.schedule_prior import prior_of
from batchopt.forecasting.schedule_slopes import log_noise_scale_slopes
from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.uncertainty import log_normal, unresolved

AT = MeasuredAt(4_000, 1.0, 16, 0.1)


def reading(at: MeasuredAt | None = AT, *, value: float = 40.0, kind: str = "simple") -> NoiseScale:
    return NoiseScale(kind, 1.0, value, log_normal(value, 0.1), 4_000, 1, None, "exact", "width", at)


def run(batch_size: int, rate: float, shape: ShapeName | None = None) -> Branch:
    """Over 8 000 examples."""
    schedule = None if shape is None else LearningRateSchedule.of(shape, examples=8_000, warmup_examples=640)
    return Branch(batch_size, rate, LossCurve((0, 8_000), (2.0, 1.0)), learning_rate_schedule=schedule)


IGNORED = {
    "unresolved": replace(reading(), batch_size=unresolved(reading().batch_size)),
    "of another kind": reading(kind="hessian"),
    "not on a run": reading(None),
    "at initialisation": reading(replace(AT, examples=0)),
}


def test_scales_in_the_optimizers_metric_count_where_there_is_no_simple_one() -> None:
    preconditioned = reading(kind="preconditioned", value=70.0)
    found = readings_of([preconditioned, reading(kind="hessian")], [run(16, 0.1)])
    assert found is not None
    assert found.log_scales == pytest.approx([math.log(70.0)])
    beside = readings_of([preconditioned, reading(value=40.0)], [run(16, 0.1)])
    assert beside is not None
    assert beside.log_scales == pytest.approx([math.log(40.0)])


@pytest.mark.parametrize("ignored", IGNORED.values(), ids=IGNORED)
def test_only_simple_scales_that_were_resolved_along_a_run_count(ignored: NoiseScale) -> None:
    assert readings_of([ignored], [run(16, 0.1)]) is None
    found = readings_of([ignored, reading(value=70.0)], [run(16, 0.1)])
    assert found is not None
    assert found.log_scales == pytest.approx([math.log(70.0)])
    assert len(found.courses.steps) == 1


@pytest.mark.parametrize("delay", [0.0, 9.0])
def test_a_reading_takes_the_schedule_of_its_own_run(delay: float) -> None:
    runs = [run(16, 0.1, "wsd"), run(16, 0.4), run(64, 0.1, "linear")]
    places = [(16, 0.1, 0), (16, 0.4, 1), (64, 0.1, 2), (64, 0.4, None)]  # nobody knows the run of the last
    found = readings_of([reading(MeasuredAt(6_400, 1.0, size, rate)) for size, rate, _ in places], runs, delay=delay)
    assert found is not None
    for k, (size, rate, number) in enumerate(places):
        schedule = None if number is None else runs[number].learning_rate_schedule
        total, lagged = 0.0, 0.0
        for step in range(6_400 // size):
            share = 1.0 - math.exp(-(step + 0.5) / delay) if delay else 1.0
            lagged += share
            total += share * rate * (1.0 if schedule is None else schedule((step + 0.5) * size))
        # Pieces take the mean of the rate; how much momentum lags within a step matters little.
        steps = found.courses.steps[k]
        assert float(steps.sum()) == pytest.approx(lagged, rel=1e-3)
        assert float(steps @ found.courses.learning_rates[k]) == pytest.approx(total, rel=0.01 if delay else 1e-9)
        assert set(found.courses.batch_sizes[k][steps > 0]) == {float(size)}


def test_a_cooldown_that_comes_first_is_not_the_run_of_a_reading() -> None:
    at = reading(MeasuredAt(6_400, 1.0, 16, 0.1))
    decayed = LearningRateSchedule(examples=(0, 640, 3_200, 4_000), multipliers=(0.0, 1.0, 1.0, 0.0))
    cooldown = Branch(16, 0.1, LossCurve((3_200, 4_000), (1.2, 1.0)), learning_rate_schedule=decayed)
    stable = run(16, 0.1, "constant")
    alone, beside = readings_of([at], [stable]), readings_of([at], [cooldown, stable])
    assert alone is not None
    assert beside is not None
    assert beside.courses.learning_rates == pytest.approx(alone.courses.learning_rates)
    only = readings_of([at], [cooldown])
    assert only is not None
    assert float(only.courses.longest) < 0.9 * float(alone.courses.longest)


def test_many_readings_count_as_one() -> None:
    """What the law is off by is the mean over readings, in units of `READING_SD`, however many there are."""
    runs = [course(8.0, 0.1, [0.0, 10.0, 200.0]), course(64.0, 0.4, [0.0, 30.0])]
    points = Points(Courses(runs), np.array([0, 0, 1]), np.array([0, 1, 0]), np.log([1.5, 0.7, 1.1]), np.full(3, 0.01))
    frame = Frame(2.3, 0.5, 1.0, np.linspace(0.0, 3.0, 7), 16.0, False)
    prior = prior_of(points, frame)
    rows = np.tile(prior.mean, (2, 1))
    rows[:, SHAPE.index("log_gradient_noise")] = (1.0, 4.0)
    rows[:, SHAPE.index("gradient_noise_growth")] = 0.0  # the noise scale is the same everywhere
    for logs in ([2.0], [1.0, 3.0], [2.0] * 9):
        readings = NoiseReadings(Courses([runs[k % 2] for k in range(len(logs))]), np.array(logs))
        found = _Misfit(points, frame, prior, 0.4, readings).residuals(rows)
        alone = _Misfit(points, frame, prior, 0.4, None).residuals(rows)
        assert found[:, 3] == pytest.approx(soft(np.array([-1.0, 2.0]) / READING_SD))
        assert np.delete(found, 3, axis=1) == pytest.approx(alone)


KNOTS = np.linspace(0.0, 8.0, 17)
BELIEVABLE = {
    "log_noise": 2.0, "log_memory": -1.5, "forgetting": 1.1, "kappa": 1.0, "log_oscillation": 5.0, "log_edge": 1.5,
    "log_gradient_noise": 3.0, "gradient_noise_growth": 0.6, "floor": -3.0, "log_saturation": -0.5,
}  # fmt: skip
"""A law whose noise scale rises from 20 to some hundreds, and slows progress."""
TRUE = np.array([[*(BELIEVABLE[name] for name in SHAPE), *[-1.0] * 16]])
SETTINGS = [(size, rate, n) for size in (8.0, 64.0, 512.0) for rate in (0.1, 0.4) for n in (8_000, 64_000)]
MEASURED = Courses([course(64.0, 0.4, [0.0, *np.geomspace(1.0, n / 64, 8)]) for n in (2_000, 8_000, 32_000)])


def made_points(truth: Frame, rng: np.random.Generator) -> Points:
    """Late losses of twelve runs, with 2 % noise."""
    courses = Courses([course(size, rate, [0.0, *np.geomspace(1.0, n / size, 12)]) for size, rate, n in SETTINGS])
    run, piece = np.repeat(np.arange(len(SETTINGS)), 9), np.tile(np.arange(3, 12), len(SETTINGS))
    logs = np.log(losses(TRUE, truth, courses)[0][run, piece + 1])
    return Points(courses, run, piece, logs + 0.02 * rng.standard_normal(len(run)), np.full(len(run), 0.02))


def log_scales_of(law: ScheduleLaw) -> NDArray[np.float64]:
    """By the law, where they were measured, (1 + draws, 3)."""
    return log_noise_scale_slopes(law.rows, law.frame, MEASURED)[0]


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_follows_its_readings(is_adaptive: bool, seed: int) -> None:
    truth = Frame(2.3, 0.05, 1.0, KNOTS, 64.0, is_adaptive)
    points = made_points(truth, np.random.default_rng(seed))
    lowest = math.exp(points.log_losses.min())
    frame = frame_of(points.courses, initial_loss=2.3, lowest_loss=lowest, is_adaptive=is_adaptive)
    true = log_noise_scale_slopes(TRUE, truth, MEASURED)[0][0]

    def fitted(off: float | None) -> NDArray[np.float64]:
        readings = None if off is None else NoiseReadings(MEASURED, true + off)
        return log_scales_of(fit_schedule_law(points, frame, readings=readings))

    alone, near, high, low = fitted(None), fitted(0.0), fitted(math.log(10.0)), fitted(-math.log(10.0))
    assert np.abs(near[0] - true).max() < READING_SD
    # Readings are off by WIDER * READING_SD, which with losses alone leaves 0.7 of the deviation, known to an eighth.
    assert near[1:].mean(axis=1).std() < 0.85 * alone[1:].mean(axis=1).std(), "losses alone say little of noise scales"
    # The losses hold against readings that are off, so the law is moved by less than these are.
    assert READING_SD < (high[0] - near[0]).mean() < math.log(10.0)
    assert READING_SD < (near[0] - low[0]).mean() < math.log(10.0)


def test_the_known_probe_measured_the_noise_scales_of_its_law() -> None:
    law, report = known_law(), known_report(known_law())
    found = readings_of(report.noise_scales, report.runs)
    assert found is not None
    true = log_noise_scale_slopes(np.array(law.rows[:1]), law.frame, found.courses)[0][0]
    assert found.log_scales == pytest.approx(true, abs=0.4), "four standard errors of 0.1 each"


@pytest.mark.parametrize("kind", ["simple", "preconditioned"])
def test_a_forecast_takes_the_readings_of_its_probe(kind: str) -> None:
    told = known_report(known_law())
    read = tuple(replace(scale, kind=kind) for scale in told.noise_scales)
    report = ProbeReport.from_json(replace(told, noise_scales=read).to_json())
    trend = Forecast.fit(report).noise_trend
    assert trend is not None
    assert trend.kind == kind
    tenfold = [replace(each, batch_size=each.batch_size.scaled(10.0)) for each in report.noise_scales]
    found = readings_of(report.noise_scales, report.runs)
    assert found is not None
    (near, high) = (
        log_noise_scale_slopes(np.array(law.rows[:1]), law.frame, found.courses)[0].mean()
        for law in (known_forecast().law, Forecast.fit(replace(report, noise_scales=tuple(tenfold))).law)
    )
    assert near == pytest.approx(found.log_scales.mean(), abs=READING_SD)
    assert READING_SD < high - near < math.log(10.0)


READINGS = NoiseReadings(
    Courses([Course(np.full(k, 9.0), np.full(k, 16.0), np.full(k, 0.2)) for k in (2, 5)]), np.log([5.0, 40.0])
)


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("readings", [None, READINGS])
def test_derivatives_of_all_residuals_are_those_of_differences(
    is_adaptive: bool, readings: NoiseReadings | None
) -> None:
    rng = np.random.default_rng(3)
    runs = [Course(rng.uniform(1, 30, k), 2.0 ** rng.integers(1, 8, k), rng.uniform(0.01, 1.0, k)) for k in (6, 9)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    points = Points(Courses(runs), np.array([0, 1, 1]), np.array([5, 3, 8]), np.log([0.9, 1.1, 0.7]), np.full(3, 0.01))
    prior = prior_of(points, frame)
    misfit = _Misfit(points, frame, prior, 0.4, readings)
    rows = prior.mean + 0.3 * prior.sd * rng.standard_normal((3, len(prior.mean)))
    misfit.shifts = 0.5 * rng.standard_normal((3, misfit.shifts.shape[1]))
    slopes, step = misfit.jacobian(rows), 1e-5
    for k in range(rows.shape[1]):
        ahead, behind = rows.copy(), rows.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        found = (misfit.residuals(ahead) - misfit.residuals(behind)) / (2.0 * step)
        assert slopes[:, :, k] == pytest.approx(found, rel=1e-5, abs=1e-6)
