"""Steps of a schedule in closed form, against walking through it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.schedules.schedule import Schedule, Segment, check_schedule


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    starts = sorted(draw(st.sets(st.integers(1, 300), max_size=4)) | {0})
    sizes = draw(st.lists(st.integers(1, 120), min_size=len(starts), max_size=len(starts)))
    segments = tuple(Segment(start, size) for start, size in zip(starts, sizes, strict=True))
    return Schedule(segments, starts[-1] + draw(st.integers(1, 300)))


@given(schedules())
def test_twin_steps(schedule: Schedule) -> None:
    batches = list(schedule.batches())
    assert schedule.steps == len(batches)
    for step, (seen, size) in enumerate(batches):
        assert schedule.steps_to(seen) == step
        assert schedule.steps_to(seen + size / 2) == pytest.approx(step + 0.5, rel=1e-12)
    assert schedule.steps_to(schedule.examples) == len(batches)


def test_a_segment_that_one_step_passes_over_has_no_step() -> None:
    schedule = Schedule((Segment(0, 100), Segment(10, 1), Segment(50, 30)), examples=160)
    assert list(schedule.batches()) == [(0, 100), (100, 30), (130, 30)]
    assert schedule.steps == 3


def test_steps_to_examples_outside_of_the_run() -> None:
    schedule = Schedule.constant(10, examples=100)
    with pytest.raises(ValueError, match="examples must be at most the schedule's 100, got 101"):
        schedule.steps_to(101)
    with pytest.raises(ValueError, match="examples must be zero or more"):
        schedule.steps_to(-1)


def test_what_is_no_schedule_is_told_with_what_to_give() -> None:
    schedule = Schedule.constant(10, examples=100)
    check_schedule(schedule)
    check_schedule(3, int)
    for path in ("schedule.json", Path("schedule.json")):
        with pytest.raises(
            TypeError, match=rf"got {type(path).__name__}: load it with batchopt\.Schedule\.load\(path\)"
        ):
            check_schedule(path)
    with pytest.raises(
        TypeError, match=r"schedule must be a batchopt\.Schedule, got SimpleNamespace: give its \.schedule$"
    ):
        check_schedule(SimpleNamespace(schedule=schedule))
    with pytest.raises(TypeError, match=r"must be a batchopt\.Schedule or a batchopt\.int, got dict$"):
        check_schedule({"schedule": schedule}, int)
