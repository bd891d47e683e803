"""The law of any schedule against what is exactly solvable, and against its own definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from forecasting.noisy_quadratic import Schedule, constant, cosine, made_run, ramp, wsd
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq

from batchopt.errors import EvidenceError
from batchopt.forecasting import schedule_fit, schedule_law
from batchopt.forecasting.schedule_fit import Points, ScheduleLaw, fit_schedule_law, steepness_of
from batchopt.forecasting.schedule_law import SHAPE, Course, Courses, Frame, Law, course, frame_of, losses
from batchopt.forecasting.schedule_slopes import log_loss_slopes, log_noise_scale_slopes

SCHEDULES: dict[str, tuple[Schedule, Schedule]] = {
    "constant": (constant, constant),
    "cosine": (cosine, constant),
    "wsd": (wsd, constant),
    "batch ramp": (constant, ramp),
}
SETTINGS = [(4.0, 0.05), (4.0, 0.2), (32.0, 0.1), (32.0, 0.4), (256.0, 0.4)]


def points_of(runs: list[tuple[Course, NDArray[np.float64]]], *, every: int = 6) -> Points:
    """Some points of runs, the last among them."""
    courses = Courses([each for each, _ in runs])
    chosen = [sorted({*range(every - 1, len(found), every), len(found) - 1}) for _, found in runs]
    run = np.repeat(np.arange(len(runs)), [len(own) for own in chosen])
    piece = np.concatenate(chosen)
    logs = np.array([math.log(runs[i][1][k]) for i, k in zip(run, piece, strict=True)])
    return Points(courses, run, piece, logs, np.full(len(run), 0.002))


def fitted(runs: list[tuple[Course, NDArray[np.float64]]]) -> ScheduleLaw:
    points = points_of(runs)
    lowest = math.exp(points.log_losses.min())
    first = float(made_run(1.0, 1e-12, 1, constant)[1][0])
    frame = frame_of(points.courses, initial_loss=first, lowest_loss=lowest, is_adaptive=False)
    return fit_schedule_law(points, frame)


@pytest.fixture(scope="module")
def quadratic() -> dict[str, list[tuple[Course, NDArray[np.float64]]]]:
    return {
        name: [made_run(size, rate, steps, *schedule) for size, rate in SETTINGS for steps in (400, 3_000)]
        for name, schedule in SCHEDULES.items()
    }


def law_errors(law: ScheduleLaw, points: Points) -> NDArray[np.float64]:
    """Of the law by itself, without what it is known to miss."""
    return np.abs(points.of(losses(law.rows[:1], law.frame, points.courses))[0] - points.log_losses)


def test_it_fits_a_noisy_quadratic_under_every_schedule(
    quadratic: dict[str, list[tuple[Course, NDArray[np.float64]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_fit, "MISSED", 0.02)  # as close as the law's form allows
    law = fitted(list(itertools.chain(*quadratic.values())))
    for name, runs in quadratic.items():
        errors = law_errors(law, points_of(runs))
        assert np.median(errors) < 0.02, name
        assert errors.max() < 0.1, name


def test_what_is_missed_is_known_near_a_run(quadratic: dict[str, list[tuple[Course, NDArray[np.float64]]]]) -> None:
    law = fitted(quadratic["constant"] + quadratic["wsd"])
    other = [made_run(size, 1.1 * rate, 3_000, wsd) for size, rate in SETTINGS]
    points = points_of(other, every=10_000)
    with_missed = np.abs(law.log_losses(points)[0] - points.log_losses)
    assert np.median(with_missed) < 0.8 * np.median(law_errors(law, points))


def test_steepness_is_that_of_the_lowest_ends_where_only_ends_are_known() -> None:
    runs = [course(size, 0.1, [0.0, steps / size]) for size in (4.0, 16.0) for steps in (1_000.0, 8_000.0)]
    first, index = np.zeros(4, dtype=int), np.arange(4)
    logs = np.array([0.0, -0.3, 0.2, -0.2])
    assert steepness_of(Points(Courses(runs), index, first, logs, np.zeros(4))) == pytest.approx(0.3 / math.log(8.0))
    alike = Points(Courses(runs[::2]), index[:2], first[:2], logs[::2], np.zeros(2))
    assert steepness_of(alike) == 1.0, "runs of one length say nothing"


def test_steepness_is_not_that_of_runs_that_end_on_a_plateau() -> None:
    edges = np.geomspace(1.0, 4_096.0, 13)
    runs = [course(4.0, 0.1, [0.0, *edges[: 13 if long else 8]]) for long in (True, False, False, False)]
    run = np.repeat(np.arange(4), [13, 8, 8, 8])
    piece = np.concatenate([np.arange(13), *[np.arange(8)] * 3])
    logs = np.minimum(0.0, -0.8 * np.log(edges[piece] / edges[7]))
    points = Points(Courses(runs), run, piece, logs, np.zeros(len(run)))
    assert steepness_of(points) == pytest.approx(0.8)


def random_rows(n: int, frame: Frame) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    beliefs = [
        (1.0, 1.0),
        (0.0, 1.0),
        (1.2, 0.3),
        (0.8, 0.3),
        (4.0, 1.0),
        (0.5, 0.5),
        (2.0, 1.0),
        (0.3, 0.2),
        (-2.0, 1.0),
        (-1.0, 1.0),
    ]
    assert len(beliefs) == len(SHAPE)
    shape = np.array([mean + sd * rng.standard_normal(n) for mean, sd in beliefs]).T
    return np.concatenate([shape, rng.normal(-1.0, 0.3, (n, len(frame.knots) - 1))], axis=1)


def slow_times(row: NDArray[np.float64], frame: Frame, run: Course) -> list[tuple[float, float]]:
    """eps of every piece by the definition, and intrinsic time at its end."""
    named = dict(zip(SHAPE, row, strict=False))
    tau, found = 0.0, []
    for steps, size, eta in zip(run.steps, run.batch_sizes, run.learning_rates, strict=True):
        noisier = 1.0 + math.exp(slow_log_noise_scale(row, frame, tau)) / size
        eps = eta / math.sqrt(noisier) if frame.is_adaptive else eta
        tau += steps * eps / (1.0 + eps / math.exp(named["log_saturation"]) * noisier)
        found.append((eps, tau))
    return found


def slow_log_noise_scale(row: NDArray[np.float64], frame: Frame, tau: float) -> float:
    named = dict(zip(SHAPE, row, strict=False))
    return float(named["log_gradient_noise"] + named["gradient_noise_growth"] * math.log1p(tau / frame.scale))


def slow_losses(row: NDArray[np.float64], frame: Frame, run: Course) -> list[float]:
    """The definition, noise of every piece by its own integral."""
    named = dict(zip(SHAPE, row, strict=False))
    x = 3.0 * 4.0 ** -np.arange(8.0)
    share = x ** named["forgetting"] * np.exp(-x)
    share /= share.sum()
    memory = math.exp(named["log_memory"])

    def forgotten(u: float) -> float:
        """Integral of K from 0 to u."""
        return float(np.sum(share * memory / x * -np.expm1(-x * u / memory)))

    def signal(tau: float) -> float:
        drop, v = 0.0, math.log1p(tau / frame.scale)
        for k, log_slope in enumerate(row[len(SHAPE) :]):
            last = k == len(frame.knots) - 2
            end = v if last else min(v, frame.knots[k + 1])
            drop += math.exp(log_slope) * max(0.0, end - frame.knots[k])
        floor = frame.lowest_loss / (1.0 + math.exp(-named["floor"]))
        return floor + (frame.initial_loss - floor) * math.exp(-drop)

    taus, noises, found = [0.0], [], [frame.initial_loss]
    for (eps, tau), size in zip(slow_times(row, frame, run), run.batch_sizes, strict=True):
        taus.append(tau)
        middle = found[-1] / frame.initial_loss * math.sqrt(signal(taus[-1]) / signal(taus[-2]))
        shock = (eps / math.exp(named["log_edge"])) ** 4 / (1.0 + taus[-1] / frame.scale) / frame.batch_size
        per_time = math.exp(named["log_noise"]) * eps * min(middle, 10.0) ** named["kappa"]
        noises.append(per_time * (1.0 / size + math.exp(-named["log_oscillation"]) + shock))
        left = [forgotten(taus[-1] - begin) - forgotten(taus[-1] - end) for begin, end in itertools.pairwise(taus)]
        noise = sum(q * part for q, part in zip(noises, left, strict=True))
        found.append(min(signal(taus[-1]) + noise, 20.0 * frame.initial_loss))
    return found


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_it_is_its_definition(is_adaptive: bool) -> None:
    rng = np.random.default_rng(1)
    runs = [Course(rng.uniform(1, 30, k), 2.0 ** rng.integers(1, 8, k), rng.uniform(0.01, 1.0, k)) for k in (1, 9, 14)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    rows = random_rows(6, frame)
    found = losses(rows, frame, Courses(runs))
    for row, of_row in zip(rows, found, strict=True):
        for run, of_run in zip(runs, of_row, strict=True):
            slow = slow_losses(row, frame, run)
            assert of_run[: len(slow)] == pytest.approx(slow, rel=1e-9)
            assert np.ptp(of_run[len(slow) - 1 :]) < 1e-9, "pieces of no steps change nothing"


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_its_derivatives_are_those_of_differences(is_adaptive: bool) -> None:
    rng = np.random.default_rng(2)
    runs = [Course(rng.uniform(1, 30, k), 2.0 ** rng.integers(1, 8, k), rng.uniform(0.01, 1.0, k)) for k in (1, 9, 14)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    rows = random_rows(6, frame)
    courses = Courses(runs)
    run, piece = np.array([2, 0, 1, 1, 2, 2]), np.array([13, 0, 3, 8, 0, 13])
    values, slopes = log_loss_slopes(rows, frame, courses, run, piece)
    assert values == pytest.approx(np.log(losses(rows, frame, courses)[:, run, piece + 1]), rel=1e-12)
    step = 1e-5  # of central differences: off by its square, and by rounding over it
    for k in range(rows.shape[1]):
        ahead, behind = rows.copy(), rows.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        found = [np.log(losses(moved, frame, courses)[:, run, piece + 1]) for moved in (ahead, behind)]
        assert slopes[:, :, k] == pytest.approx((found[0] - found[1]) / (2.0 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_its_noise_scale_is_its_definition_and_so_are_the_derivatives(is_adaptive: bool) -> None:
    rng = np.random.default_rng(5)
    runs = [Course(rng.uniform(1, 30, k), 2.0 ** rng.integers(1, 8, k), rng.uniform(0.01, 1.0, k)) for k in (1, 9, 14)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    rows, courses = random_rows(6, frame), Courses(runs)
    values, slopes = log_noise_scale_slopes(rows, frame, courses)
    slow = [[slow_log_noise_scale(row, frame, slow_times(row, frame, run)[-1][1]) for run in runs] for row in rows]
    assert values == pytest.approx(np.array(slow), rel=1e-10)
    step = 1e-5  # as for losses
    for k in range(rows.shape[1]):
        ahead, behind = rows.copy(), rows.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        found = [log_noise_scale_slopes(moved, frame, courses)[0] for moved in (ahead, behind)]
        assert slopes[:, :, k] == pytest.approx((found[0] - found[1]) / (2.0 * step), rel=1e-6, abs=1e-8)


def row_of(*, log_noise_scale: float, log_saturation: float) -> NDArray[np.float64]:
    """Without injected noise, at a noise scale that does not grow: (1, parameters) for six slopes."""
    named = dict.fromkeys(SHAPE, 0.0) | {
        "log_noise": -100.0,
        "log_edge": 40.0,
        "log_gradient_noise": log_noise_scale,
        "log_saturation": log_saturation,
    }
    return np.array([[*named.values(), *[-0.5] * 6]])


@pytest.mark.parametrize("is_adaptive", [False, True])
@given(
    log_rate=st.floats(-20.0, 20.0),
    log_size=st.floats(0.0, 10.0),
    log_noise_scale=st.floats(-5.0, 12.0),  # beyond, b / (b + B) loses more digits to rounding
    log_saturation=st.floats(-10.0, 10.0),
)
def test_a_step_makes_at_most_its_share_of_the_progress_without_noise(
    is_adaptive: bool, log_rate: float, log_size: float, log_noise_scale: float, log_saturation: float
) -> None:
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    size = math.exp(log_size)

    def progress(log_noise_scale: float, log_rate: float) -> float:
        """Intrinsic time of one step."""
        law = Law(
            row_of(log_noise_scale=log_noise_scale, log_saturation=log_saturation), frame, np.zeros(1, dtype=np.intp)
        )
        return float(law.after(law.start(), np.ones(1), np.array([size]), np.exp([log_rate])).tau[0])

    share = 1.0 / (1.0 + math.exp(log_noise_scale) / size)
    noiseless, highest = -math.inf, 60.0  # no rate makes more progress than the highest, without noise
    most = progress(noiseless, highest)
    assert most == pytest.approx(math.exp(log_saturation), rel=1e-9)
    assert progress(log_noise_scale, log_rate) <= share * most * (1.0 + 1e-10)
    assert progress(log_noise_scale, log_rate) <= progress(noiseless, log_rate) * (1.0 + 1e-10)
    assert progress(log_noise_scale, highest) == pytest.approx(share * most, rel=1e-9)


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_steps_to_a_loss_at_the_best_rate_are_mccandlishs_hyperbola(is_adaptive: bool) -> None:
    """S = S_min (1 + B_c / B), their eq. 2.11, where the noise scale B_c is constant."""
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, is_adaptive)
    critical, saturation, loss = 100.0, 0.3, 0.9
    row = row_of(log_noise_scale=math.log(critical), log_saturation=math.log(saturation))
    sizes, rates = 2.0 ** np.arange(15), saturation * 10.0 ** np.arange(-1.0, 14.0)

    def steps_to(size: float, rate: float) -> float:
        def above(log_steps: float) -> float:
            run = Course(np.exp([log_steps]), np.array([size]), np.array([rate]))
            return float(losses(row, frame, Courses([run]))[0, 0, -1]) - loss

        return math.exp(brentq(above, -10.0, 40.0, xtol=1e-13, rtol=1e-13))

    best = np.array([min(steps_to(size, rate) for rate in rates) for size in sizes])
    fewest = min(steps_to(1e12 * critical, rate) for rate in rates)
    assert best == pytest.approx(fewest * (1.0 + critical / sizes), rel=1e-9)


def test_single_precision_is_off_by_parts_in_a_million() -> None:
    rng = np.random.default_rng(4)
    runs = [Course(rng.uniform(1, 30, 24), 2.0 ** rng.integers(1, 8, 24), rng.uniform(0.01, 1.0, 24)) for _ in range(9)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, True)
    rows = random_rows(20, frame)
    exact, rough = losses(rows, frame, Courses(runs)), losses(rows, frame, Courses(runs), single=True)
    assert rough == pytest.approx(exact, rel=5e-5)


@pytest.mark.parametrize("name", SHAPE)
def test_parameters_astray_are_not_an_error(name: str) -> None:
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, True)
    rows = random_rows(4, frame)
    rows[:, SHAPE.index(name)] = (-1e4, -50.0, 50.0, 1e4)
    courses = Courses([Course(np.ones(5), np.full(5, 8.0), np.linspace(0.01, 1.0, 5))])
    found = losses(rows, frame, courses)
    assert (np.isnan(found) | (found <= 60.0)).all()
    log_loss_slopes(rows, frame, courses, np.array([0]), np.array([4]))
    log_noise_scale_slopes(rows, frame, courses)


def test_columns_in_parts_are_those_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    runs = [Course(np.ones(k), np.full(k, 8.0), rng.uniform(0.01, 1.0, k)) for k in (3, 1, 7, 2)]
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, True)
    together = losses(random_rows(5, frame), frame, Courses(runs))
    monkeypatch.setattr(schedule_law, "COLUMNS", 3)
    assert (losses(random_rows(5, frame), frame, Courses(runs)) == together).all()


def test_the_memory_is_nearly_a_power_law() -> None:
    x = 3.0 * 4.0 ** -np.arange(8.0)
    u = np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 200)])
    for beta in (0.6, 1.0, 1.5, 2.0):
        share = x**beta * np.exp(-x)
        kept = np.exp(-u[:, None] * x) @ share / share.sum()
        assert np.abs(kept - (1.0 + u) ** -beta).max() < 0.03


def test_a_course_follows_its_multiplier_and_momentum_lags() -> None:
    run = course(8.0, 0.5, [0, 4, 8, 10], lambda steps: 1.0 - steps / 10.0)
    assert run.steps == pytest.approx([4, 4, 2])
    assert run.learning_rates == pytest.approx([0.4, 0.2, 0.05])
    lagging = course(8.0, 0.5, [0, 100], delay=9.0)
    assert float(lagging.steps.sum()) == pytest.approx(91.0, abs=0.01)


def test_too_few_points() -> None:
    run, found = made_run(4.0, 0.1, 10, constant)
    points = points_of([(run, found)], every=10_000)
    frame = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, False)
    with pytest.raises(EvidenceError, match="a law needs 6 losses after the first, got 1"):
        fit_schedule_law(points, frame)
