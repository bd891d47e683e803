"""Exports: the syntax that consumers read, and what is checked before they would fail."""

from __future__ import annotations

import jsonschema
import pytest

from batchopt._codec import json_schema
from batchopt.schedules.exporter import EXPORTERS, export_schedule
from batchopt.schedules.schedule import Schedule, Segment

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)


def read_megatron(text: str, seq_length: int) -> list[tuple[int, int]]:
    """Megatron's own rules: suffixes K, M, B, T; thresholds in tokens, floored to samples."""
    stages = text.split('--step-batch-size-schedule "')[1].split('"')[0]
    units = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    read = []
    for stage in stages.split():
        threshold, size = stage.split(":")
        tokens = int(threshold[:-1]) * units[threshold[-1]] if threshold[-1] in units else int(threshold)
        read.append((tokens // seq_length, int(size)))
    return read


def test_megatron_reference() -> None:
    export = export_schedule(REFERENCE, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2)
    assert '--step-batch-size-schedule "0:64 10240K:128 51200K:256"' in export.text
    assert "--train-samples 120000 --lr-decay-samples 120000" in export.text
    assert "--global-batch-size" not in export.text
    assert "--train-iters" not in export.text


@pytest.mark.parametrize("seq_length", [1, 7, 1000, 1024, 4097])
def test_megatron_thresholds_survive_its_own_reading(seq_length: int) -> None:
    schedule = Schedule((Segment(0, 16), Segment(333, 32), Segment(1_000, 48)), examples=5_001)
    export = export_schedule(schedule, "megatron", tokens_per_example=seq_length, micro_batch=4, data_parallel=4)
    assert read_megatron(export.text, seq_length) == [(0, 16), (333, 32), (1_000, 48)]


def test_megatron_checks() -> None:
    with pytest.raises(ValueError, match=r"must be a multiple of micro_batch x data_parallel = 24, got 64"):
        export_schedule(REFERENCE, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=3)
    with pytest.raises(ValueError, match="megatron needs tokens_per_example"):
        export_schedule(REFERENCE, "megatron", micro_batch=8, data_parallel=2)
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        export_schedule(REFERENCE, "megatron", tokens_per_example=1, micro_batch=0, data_parallel=2)
    with pytest.raises(TypeError, match="megatron takes the options tokens_per_example"):
        export_schedule(REFERENCE, "megatron", tokens=1)
    with pytest.raises(ValueError, match="to must be one of 'megatron'"):
        export_schedule(REFERENCE, "nanotron")


def test_lost_learning_rates_are_named() -> None:
    scaled = Schedule((Segment(0, 16), Segment(100, 32, 1.4)), examples=500, learning_rate=0.01)
    export = export_schedule(scaled, "megatron", tokens_per_example=1, micro_batch=16, data_parallel=1)
    assert any("multipliers 1, 1.4 of the stages are lost" in note for note in export.notes)
    assert any("--lr 0.01" in note for note in export.notes)


def test_every_exporter_is_documented_and_pure() -> None:
    for exporter in EXPORTERS.values():
        assert exporter.__doc__
        assert "schedule" in exporter.__annotations__


def test_published_schema_accepts_what_is_written_and_no_more() -> None:
    import json

    schema = json_schema(Schedule)
    jsonschema.Draft202012Validator.check_schema(schema)
    written = json.loads(REFERENCE.to_json())
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate(written | {"unit": "tokens"}, schema)
    with pytest.raises(jsonschema.ValidationError, match="was expected"):
        jsonschema.validate(written | {"schema": "batchopt.schedule/2"}, schema)
