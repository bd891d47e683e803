"""The JSON Schema that `batchopt schedule --schema` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt._codec import json_schema
from batchopt.errors import RecordError
from batchopt.learning_rate_schedule import SHAPES, LearningRateSchedule, ShapeName
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.adapted import Adapted

SCHEDULE = Schedule((Segment(0, 64), Segment(10_000, 128, 1.5)), examples=120_000, learning_rate=0.1)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"unit": "tokens"}, "Additional properties"),
    ({"schema": "batchopt.schedule/3"}, "was expected"),
    ({"learning_rate_schedule": "wsd"}, "is not valid under any of the given schemas"),
    ({"learning_rate_schedule": {"examples": [0], "multipliers": [1.0], "unit": "steps"}}, "Additional properties"),
    ({"examples": "120000"}, "is not of type"),
    ({"examples": 1.5}, "is not of type"),
    ({"segments": [{"start_examples": 0}]}, "'batch_size' is a required property"),
]


GOLDEN = Path(__file__).with_name("golden")
PUBLISHED = Path(__file__).parents[2] / "docs" / "schedule.schema.json"


def test_files_of_earlier_versions_are_read_as_they_were_meant() -> None:
    """These files do not change: they are what people have on their disks."""
    whole = Schedule.load(GOLDEN / "whole.json")
    assert json.loads((GOLDEN / "whole.json").read_text())["schema"] == "batchopt.schedule/1"
    assert whole == Schedule((Segment(0, 64), Segment(10_000, 128, 1.5), Segment(50_000, 256, 2.25)), 120_000, 0.1)
    assert whole.steps == 743
    assert Schedule.load(GOLDEN / "by_hand.json") == Schedule((Segment(0, 64), Segment(10_000, 128)), 120_000)
    # What is written is the version of now.
    assert Schedule.from_json(whole.to_json()) == whole
    assert json.loads(whole.to_json())["schema"] == "batchopt.schedule/2"


def test_files_of_this_version_are_read_and_written_as_they_are() -> None:
    whole = Schedule.load(GOLDEN / "whole_2.json")
    rates = LearningRateSchedule.of("wsd", examples=120_000, warmup_examples=6_000)
    assert whole == Schedule((Segment(0, 64), Segment(10_000, 128, 1.5)), 120_000, 0.1, rates)
    assert (whole.to_json() + "\n") == (GOLDEN / "whole_2.json").read_text()
    by_hand = LearningRateSchedule((0, 120_000), (1.0, 0.1))
    assert Schedule.load(GOLDEN / "by_hand_2.json").learning_rate_schedule == by_hand


def test_an_older_file_holds_no_more_than_its_version_knew() -> None:
    fields = json.loads((GOLDEN / "whole_2.json").read_text()) | {"schema": "batchopt.schedule/1"}
    with pytest.raises(RecordError, match="schedule/1 has no learning_rate_schedule: write batchopt"):
        Schedule.from_json(json.dumps(fields))


def test_a_schedule_of_the_first_version_inside_another_record_is_read() -> None:
    inside = json.loads((GOLDEN / "whole.json").read_text())
    del inside["schema"]
    adapted = json.dumps({"schema": "batchopt.adapted/2", "schedule": inside})
    read = Adapted.from_json(adapted)
    assert read.schedule == Schedule.load(GOLDEN / "whole.json")
    assert read.diverged == ()
    with pytest.raises(RecordError, match="diverged: files of this version had no such key"):
        Adapted.from_json(json.dumps({"schema": "batchopt.adapted/2", "schedule": inside, "diverged": []}))


def test_a_file_of_a_later_version_says_what_to_do() -> None:
    with pytest.raises(RecordError, match="newer") as raised:
        Schedule.load(GOLDEN / "newer.json")
    assert "batchopt.schedule/3" in str(raised.value)
    assert "newer.json" in str(raised.value)


def test_the_published_schema_is_this_one_and_takes_the_golden_files() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(PUBLISHED.read_text())
    assert schema == json_schema(Schedule)
    for name in ("whole_2", "by_hand_2"):
        jsonschema.validate(json.loads((GOLDEN / f"{name}.json").read_text()), schema)


def test_structure() -> None:
    schema = json_schema(Schedule)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["schema"] == {"const": "batchopt.schedule/2"}
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"schema", "segments", "examples"}
    segment = schema["$defs"]["Segment"]
    assert set(segment["required"]) == {"start_examples", "batch_size"}
    assert segment["additionalProperties"] is False


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    rate=st.none() | st.floats(1e-9, 1e3),
    multiplier=st.floats(1e-3, 1e3),
    shape=st.none() | st.sampled_from(SHAPES),
)
def test_accepts_what_is_written(
    sizes: list[int], rate: float | None, multiplier: float, shape: ShapeName | None
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    segments = tuple(Segment(100 * i, size, multiplier) for i, size in enumerate(sizes))
    examples = 100 * len(sizes)
    rates = None if shape is None else LearningRateSchedule.of(shape, examples=examples, warmup_examples=10)
    schedule = Schedule(segments, examples, rate, rates)
    schema = json_schema(Schedule)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(schedule.to_json()), schema)
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(("change", "complaint"), WRONG)
def test_refuses_what_the_reader_refuses(change: dict[str, Any], complaint: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    written = json.loads(SCHEDULE.to_json()) | change
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        jsonschema.validate(written, json_schema(Schedule))
    with pytest.raises(RecordError, match="schedule"):
        Schedule.from_json(json.dumps(written))
