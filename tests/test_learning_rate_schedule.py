"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from batchopt.learning_rate_schedule import LearningRateSchedule, Shape, function_of

FORMULAS = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
}


@pytest.mark.parametrize("warmup", [0, 200])
@pytest.mark.parametrize("name", list(FORMULAS))
def test_shapes_follow_their_formulas_after_the_warm_up(name: str, warmup: int) -> None:
    schedule = LearningRateSchedule.of(name, examples=10_000, warmup_examples=warmup)  # type: ignore[arg-type]
    for n in np.linspace(warmup, 10_000, 50):
        assert schedule(n) == pytest.approx(FORMULAS[name]((n - warmup) / (10_000 - warmup)), abs=4e-4)
    assert schedule.warmup_examples == warmup
    if warmup:
        assert (schedule(0), schedule(0.25 * warmup)) == (0.0, pytest.approx(0.25))


def test_wsd_falls_over_its_last_fifth() -> None:
    schedule = LearningRateSchedule.of("wsd", examples=1_000, warmup_examples=100)
    assert [schedule(n) for n in (50, 100, 800, 900, 1_000, 2_000)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert schedule.decays
    assert not LearningRateSchedule.of("constant", examples=1_000, warmup_examples=100).decays


def test_means_are_integrals() -> None:
    schedule = LearningRateSchedule.of("cosine", examples=1_000, warmup_examples=130)
    edges = np.array([0.0, 10.0, 200.0, 203.0, 950.0, 1_400.0])
    fine = [np.mean([schedule(n) for n in np.linspace(a, b, 20_001)]) for a, b in pairwise(edges)]
    np.testing.assert_allclose(schedule.means(edges), fine, atol=1e-4)
    assert schedule.mean(200.0, 203.0) == pytest.approx(fine[2], abs=1e-4)


def test_a_function_of_progress_is_met_at_its_points() -> None:
    schedule = LearningRateSchedule.of(lambda p: (1.0 - p) ** 2, examples=25_600, warmup_examples=100)
    assert schedule(12_800) == pytest.approx(0.25)
    assert schedule.warmup_examples == 100
    assert function_of((1.0, 0.5, 0.0))(0.25) == pytest.approx(0.75)
    assert function_of((1.0, 0.5, 0.0)) is function_of((1.0, 0.5, 0.0))


@pytest.mark.parametrize(
    ("shape", "given", "error", "match"),
    [
        (
            "wsd",
            {"examples": 100, "warmup_examples": 80},
            ValueError,
            "warm-up must end before the rate decays, got 80",
        ),
        ("linear", {"examples": 100, "warmup_examples": 100}, ValueError, "warm up over fewer, or train longer"),
        ("wsd", {"examples": 100, "cooldown": 0.0}, ValueError, "cooldown must be a share of the horizon"),
        ("wsd", {"examples": 100, "cooldown": math.nan}, ValueError, "cooldown must be a share of the horizon"),
        ("stairs", {"examples": 100}, ValueError, "must be one of 'constant', 'linear', 'cosine', 'wsd'"),
        (lambda p: 3e-4 * (1.0 - p), {"examples": 100}, ValueError, r"largest value is 0\.0003: divide it by that"),
        (lambda p: "much", {"examples": 100}, TypeError, "at progress 0 it failed"),
        (lambda p: math.inf, {"examples": 100}, ValueError, "got inf at progress 0"),
    ],
)
def test_what_is_no_schedule_is_refused(
    shape: Shape, given: dict[str, float], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        LearningRateSchedule.of(shape, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("examples", "multipliers", "match"),
    [
        ((), (), "one at least, got 0 and 0"),
        ((0, 10), (1.0,), "as many multipliers as examples"),
        ((5, 10), (1.0, 0.0), "must begin at 0 examples, got 5"),
        ((0, 10, 10), (1.0, 1.0, 0.0), "must rise strictly"),
        ((0, 10), (1.0, -0.1), r"zero or more and finite, got -0\.1"),
        ((0, 10), (0.0, 0.0), "above zero somewhere"),
    ],
)
def test_points_are_checked(examples: tuple[int, ...], multipliers: tuple[float, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LearningRateSchedule(examples, multipliers)
