"""The JSON Schema that `batchopt schedule --schema` prints."""

from __future__ import annotations

import json
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
