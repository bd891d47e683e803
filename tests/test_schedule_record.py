"""A schedule as a function of examples seen, and as a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from visualization.samples import plan_of

from batchopt.errors import RecordError
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.planning.plan import Plan
from batchopt.schedules.schedule import Schedule, Segment

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000, learning_rate=0.1)


def test_golden_reference_run() -> None:
    # By hand: 157 steps of 64 pass 10,000 at 10,048; 313 of 128 pass 50,000 at 50,112; 273 of 256 take the rest.
    batches = list(REFERENCE.batches())
    assert len(batches) == REFERENCE.steps == 743
    assert [step for step in range(1, 743) if REFERENCE(batches[step][0]) != REFERENCE(batches[step - 1][0])] == [
        157,
        470,
    ]
    assert (batches[157], batches[470]) == ((10_048, 128), (50_112, 256))
    assert batches[-1] == (119_744, 256)
    assert sum(size for _, size in batches) == 120_000


def test_the_last_step_takes_what_is_left() -> None:
    assert list(Schedule.constant(64, examples=150).batches()) == [(0, 64), (64, 64), (128, 22)]
    assert list(Schedule.constant(64, examples=10).batches()) == [(0, 10)]


def test_a_run_goes_on_from_the_middle() -> None:
    whole = list(REFERENCE.batches())
    assert list(REFERENCE.batches(whole[300][0])) == whole[300:]
    assert list(REFERENCE.batches(120_000)) == []


def test_the_segment_at_its_own_start() -> None:
    assert REFERENCE(9_999) == 64
    assert REFERENCE(10_000) == 128
    assert REFERENCE(10**9) == 256
    with pytest.raises(ValueError, match="examples_seen must be at least 0, got -1"):
        REFERENCE(-1)


def test_round_trip() -> None:
    assert Schedule.from_json(REFERENCE.to_json()) == REFERENCE
    fields = json.loads(REFERENCE.to_json())
    assert fields["segments"][1] == {"start_examples": 10_000, "batch_size": 128, "learning_rate_multiplier": 1.0}
    fields["segments"][1]["batch_size"] = 0
    with pytest.raises(RecordError, match="batch_size must be at least 1, got 0"):
        Schedule.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("segments", "examples", "message"),
    [
        ((), 10, "the first segment must start at 0 examples"),
        ((Segment(5, 8),), 10, "the first segment must start at 0 examples"),
        ((Segment(0, 8), Segment(0, 16)), 10, "segments' start_examples must rise strictly, got 0 before 0"),
        ((Segment(0, 8), Segment(10, 16)), 10, "every segment must start before the run ends, got 10 of 10 examples"),
        ((Segment(0, 8),), 0, "examples must be at least 1, got 0"),
    ],
)
def test_refusals(segments: tuple[Segment, ...], examples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(segments, examples)


def test_refused_segments() -> None:
    with pytest.raises(TypeError, match=r"batch_size must be a whole number \(int\), got 8\.5"):
        Segment(0, 8.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate_multiplier must be positive"):
        Segment(0, 8, 0.0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        Schedule.constant(8, examples=10, learning_rate=-1.0)


def test_the_rate_of_a_step_is_its_segments_times_warm_up_and_decay_in_its_middle() -> None:
    rates = LearningRateSchedule((0, 10_000, 120_000), (0.0, 1.0, 0.0))
    schedule = Schedule((Segment(0, 64), Segment(50_000, 256, 1.5)), 120_000, 0.1, rates)
    assert schedule.multiplier_of(0, 64) == pytest.approx(32 / 10_000)
    assert schedule.multiplier_of(49_984, 64) == pytest.approx((120_000 - 50_016) / 110_000)
    assert schedule.multiplier_of(50_048, 256) == pytest.approx(1.5 * (120_000 - 50_176) / 110_000)
    assert Schedule(schedule.segments, 120_000).multiplier_of(50_048, 256) == 1.5


def test_the_decay_ends_within_the_run() -> None:
    rates = LearningRateSchedule.of("linear", examples=200)
    assert Schedule.constant(8, examples=200, learning_rate_schedule=rates).learning_rate_schedule == rates
    with pytest.raises(
        ValueError,
        match=r"must end within the run, got its last point at 200 of 199 examples: make it for this run, "
        r"LearningRateSchedule\.of\(shape, examples=199\), or train longer",
    ):
        Schedule.constant(8, examples=199, learning_rate_schedule=rates)


def test_the_file_of_a_plan_holds_a_schedule(tmp_path: Path) -> None:
    file, plan = tmp_path / "plan.json", plan_of()
    plan.save(file)
    assert Schedule.load(file) == plan.schedule
    assert Plan.SCHEMA in Schedule.HELD_BY
    assert {f"batchopt.plan/{version}" for version in range(2, 5)} == {Plan.SCHEMA, *Plan.OLDER}


def test_the_file_of_another_plan_is_told_as_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for content in (
        '{"schema": "batchopt.plan/1", "schedule": {}}',
        '{"schema": "batchopt.plan/99", "schedule": {}}',
        '{"schema": "batchopt.plan/3", "schedule": 1}',
    ):
        file.write_text(content)
        with pytest.raises(RecordError, match=r"plan\.json: .* it is a plan: take batchopt\.Plan\.load\(path\)"):
            Schedule.load(file)
    file.write_text('{"schema": "batchopt.plan/3", "schedule": {"examples": 3}}')
    with pytest.raises(RecordError, match=r"plan\.json: batchopt\.schedule/2: segments"):
        Schedule.load(file)


@pytest.mark.parametrize("shape", ["cosine", lambda progress: 1.0 - progress])
def test_a_shape_is_no_schedule_of_a_run(shape: object) -> None:
    remedy = r"make it for this run, LearningRateSchedule\.of\(shape, examples=640\)"
    with pytest.raises(
        TypeError, match=rf"learning_rate_schedule must be a batchopt\.LearningRateSchedule, .*{remedy}"
    ):
        Schedule.constant(64, examples=640, learning_rate_schedule=shape)  # type: ignore[arg-type]
