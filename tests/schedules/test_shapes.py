"""Known shapes of learning-rate schedules: there and back, and to another length."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt.learning_rate_schedule import SHAPES, LearningRateSchedule, ShapeName
from batchopt.schedules.shapes import KnownShape, ending_at, shape_of


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(SHAPES),
    examples=st.integers(20, 10**9),
    warmup=st.floats(0.0, 0.5),
    cooldown=st.floats(0.1, 0.45),
)
def test_there_and_back(name: ShapeName, examples: int, warmup: float, cooldown: float) -> None:
    rises = round(warmup * examples)
    schedule = LearningRateSchedule.of(name, examples=examples, warmup_examples=rises, cooldown=cooldown)
    shape = shape_of(schedule)
    assert shape is not None
    assert (shape.name, shape.warmup_examples) == (name, rises)
    assert shape.schedule() == schedule
    if name != "constant":
        assert shape.end_examples == examples
        falls = examples - round((1.0 - cooldown) * examples) if name == "wsd" else examples - rises
        assert shape.decay_examples == falls


@pytest.mark.parametrize(
    ("examples", "multipliers"),
    [
        ((0,), (0.5,)),  # not the peak rate
        ((0, 10, 100), (0.1, 1.0, 0.0)),  # a warm-up that does not begin at zero
        ((0, 100), (1.0, 0.1)),  # ends above zero
        ((0, 50, 100), (1.0, 0.4, 0.0)),
        ((0, 50, 100), (1.0, 0.5, 1.0)),
        ((0, 33, 66, 100), (1.0, 0.75, 0.25, 0.0)),  # on a cosine, but lines between points so far apart are none
        ((0, 20, 40, 100), (0.0, 0.5, 1.0, 0.0)),  # a warm-up with a point within
    ],
)
def test_any_other_curve_has_none(examples: tuple[int, ...], multipliers: tuple[float, ...]) -> None:
    assert shape_of(LearningRateSchedule(examples, multipliers)) is None


def test_a_cosine_of_more_points_is_one_and_a_square_root_is_not() -> None:
    def curve(of: object) -> LearningRateSchedule:
        points = range(0, 10_001, 50)
        return LearningRateSchedule(tuple(points), tuple(of(n / 10_000) for n in points))  # type: ignore[operator]

    cosine = curve(lambda p: 0.5 * (1.0 + math.cos(math.pi * p)))
    assert shape_of(cosine) == KnownShape("cosine", 0, 10_000, 10_000)
    assert shape_of(curve(lambda p: 1.0 - math.sqrt(p))) is None
    near = curve(lambda p: max(0.0, 0.5 * (1.0 + math.cos(math.pi * p)) - 0.01 * math.sin(math.pi * p)))
    assert shape_of(near) is None


@pytest.mark.parametrize("name", SHAPES)
def test_a_longer_run_keeps_the_warm_up_and_ends_its_decay_at_its_own_end(name: ShapeName) -> None:
    schedule = LearningRateSchedule.of(name, examples=1_000, warmup_examples=100)
    longer = ending_at(schedule, 1_900, before=1_000)
    assert [longer(n) for n in (0, 50, 100)] == [0.0, 0.5, 1.0]
    for n in range(100, 1_001, 9):
        assert longer(100 + 2 * (n - 100)) == pytest.approx(schedule(n), abs=1e-3)
    assert longer.examples[-1] == (100 if name == "constant" else 1_900)
    assert ending_at(schedule, 1_000, before=1_000) == schedule


def test_a_run_that_ends_within_the_warm_up_is_cut_off_there() -> None:
    schedule = LearningRateSchedule.of("linear", examples=1_000, warmup_examples=100)
    assert ending_at(schedule, 50, before=1_000) == LearningRateSchedule((0, 50), (0.0, 0.5))
    short = ending_at(schedule, 102, before=1_000)
    assert (short.examples, short.multipliers) == ((0, 100, 102), (0.0, 1.0, 0.0))
    crowded = LearningRateSchedule.of("cosine", examples=1_000, warmup_examples=100)
    assert ending_at(crowded, 110, before=1_000).examples == (0, *range(100, 111))
