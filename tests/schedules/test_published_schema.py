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
from batchopt.schedules.schedule import Schedule, Segment

SCHEDULE = Schedule((Segment(0, 64), Segment(10_000, 128, 1.5)), examples=120_000, learning_rate=0.1)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"unit": "tokens"}, "Additional properties"),
    ({"schema": "batchopt.schedule/2"}, "was expected"),
    ({"examples": "120000"}, "is not of type"),
    ({"examples": 1.5}, "is not of type"),
    ({"segments": [{"start_examples": 0}]}, "'batch_size' is a required property"),
]


GOLDEN = Path(__file__).with_name("golden")
PUBLISHED = Path(__file__).parents[2] / "docs" / "schedule.schema.json"


def test_files_of_earlier_versions_are_read_as_they_were_meant() -> None:
    """These files do not change: they are what people have on their disks."""
    whole = Schedule.load(GOLDEN / "whole.json")
    assert whole == Schedule((Segment(0, 64), Segment(10_000, 128, 1.5), Segment(50_000, 256, 2.25)), 120_000, 0.1)
    assert whole.steps == 743
    assert (whole.to_json() + "\n") == (GOLDEN / "whole.json").read_text()
    assert Schedule.load(GOLDEN / "by_hand.json") == Schedule((Segment(0, 64), Segment(10_000, 128)), 120_000)


def test_a_file_of_a_later_version_says_what_to_do() -> None:
    with pytest.raises(RecordError, match="newer") as raised:
        Schedule.load(GOLDEN / "newer.json")
    assert "batchopt.schedule/2" in str(raised.value)
    assert "newer.json" in str(raised.value)


def test_the_published_schema_is_this_one_and_takes_the_golden_files() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(PUBLISHED.read_text())
    assert schema == json_schema(Schedule)
    for name in ("whole", "by_hand"):
        jsonschema.validate(json.loads((GOLDEN / f"{name}.json").read_text()), schema)


def test_structure() -> None:
    schema = json_schema(Schedule)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["schema"] == {"const": "batchopt.schedule/1"}
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
)
def test_accepts_what_is_written(sizes: list[int], rate: float | None, multiplier: float) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    segments = tuple(Segment(100 * i, size, multiplier) for i, size in enumerate(sizes))
    schedule = Schedule(segments, 100 * len(sizes), rate)
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
