"""Records through JSON: exact, strict, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from visualization.samples import plan_of

import batchopt
from batchopt import _codec
from batchopt._codec import Record, json_schema, write_text
from batchopt.errors import RecordError
from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance, Spending
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.probing.journal import Identity, Part
from batchopt.step_cost import Knee, StepCost
from batchopt.uncertainty import Estimate

ESTIMATE = Estimate(2.0, 1.0, 3.0, True)

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
non_negative = st.floats(min_value=0.0, allow_infinity=False)
counts = st.integers(1, 10**12)
words = st.text(st.characters(codec="utf-8")).filter(lambda text: text not in ("inf", "-inf"))


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, value, high = sorted(draw(st.tuples(*[st.floats(allow_nan=False)] * 3)))
    if math.isinf(value):
        value = draw(finite)
        low, high = min(low, value), max(high, value)
    return Estimate(value, low, high, math.isfinite(low) and math.isfinite(high) and draw(st.booleans()))


@st.composite
def step_costs(draw: st.DrawFn) -> StepCost:
    places = sorted(draw(st.sets(non_negative, max_size=3)))
    knees = tuple(Knee(place, draw(finite)) for place in places)
    return StepCost(
        draw(positive), draw(non_negative), knees, draw(st.none() | counts), draw(words),
        draw(st.floats(1.0, 100.0)),
    )  # fmt: skip


@st.composite
def branches(draw: st.DrawFn) -> Branch:
    examples = sorted(draw(st.sets(st.integers(0, 10**9), max_size=5)))
    curve = LossCurve(tuple(examples), tuple(draw(positive) for _ in examples))
    outcome = draw(st.sampled_from(["finished", "stopped", "diverged"]))
    return Branch(draw(counts), draw(positive), curve, outcome=outcome, seed=draw(st.integers(0, 2**63)))


@st.composite
def reports(draw: st.DrawFn) -> ProbeReport:
    readings = st.builds(
        NoiseScale,
        kind=words,
        signal=finite,
        noise=finite,
        batch_size=estimates(),
        examples=st.integers(2, 10**9),
        group_size=counts,
        population=st.none() | counts,
        method=words,
        stopped=st.sampled_from(["width", "budget", "population"]),
        at=st.none() | st.builds(MeasuredAt, counts, positive, counts, positive),
    )
    return ProbeReport(
        reference=draw(st.none() | branches()),
        branches=tuple(draw(st.lists(branches(), max_size=2))),
        noise_scales=tuple(draw(st.lists(readings, max_size=2))),
        step_cost=draw(st.none() | step_costs()),
        spending=tuple(draw(st.lists(st.builds(Spending, words, non_negative, counts, non_negative), max_size=2))),
        budget_examples=draw(counts),
        stopped=draw(st.none() | words),
        provenance=Provenance(draw(st.dictionaries(words, words, max_size=2)), draw(words), 0, None, draw(counts)),
        decisions=tuple(draw(st.lists(words, max_size=2))),
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=estimates() | step_costs() | branches() | reports())
def test_round_trip_is_exact(record: Record) -> None:
    again = type(record).from_json(record.to_json())
    assert again == record
    assert repr(again) == repr(record)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "estimate.json"
    ESTIMATE.save(path)
    assert Estimate.load(path) == ESTIMATE
    assert Estimate.load(os.fspath(path)) == ESTIMATE
    assert [file.name for file in tmp_path.iterdir()] == ["estimate.json"]


def test_an_infinite_end_is_written_as_text() -> None:
    written = json.loads(Estimate(2.0, -math.inf, math.inf, False).to_json())
    assert written == {"schema": "batchopt.estimate/1", "value": 2.0, "low": "-inf", "high": "inf", "resolved": False}


def altered(**fields: object) -> str:
    return json.dumps({**json.loads(ESTIMATE.to_json()), **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (altered(colour="red"), "colour: Unexpected keyword argument"),
        (altered(value="2.0"), "value: Input should be a valid number"),
        (altered(value=True), "value: Input should be a valid number"),
        (altered(value=None), "value: Input should be a valid number"),
        (altered(resolved=1), "resolved: Input should be a valid boolean"),
        (altered(low=5.0), "low <= value <= high must hold"),
        (altered(value="inf"), "value must be finite"),
        (altered(schema="batchopt.estimate/2"), "newer batchopt .*upgrade batchopt"),
        (altered(schema="batchopt.estimate/0"), "holds batchopt.estimate/0, expected batchopt.estimate/1"),
        (altered(schema="batchopt.estimate/x"), "holds batchopt.estimate/x"),
        (altered(schema="batchopt.estimate/²"), "holds batchopt.estimate/²"),
        (altered(schema="batchopt.estimate/" + "9" * 5_000), "is it the right file"),
        (altered(schema="batchopt.step_cost/1"), "is it the right file"),
        (altered(schema="elsewhere/1"), "expected a JSON object with"),
        (altered(schema=None), "expected a JSON object with"),
        (altered(value=math.nan), "NaN is not allowed"),
        (altered(high=math.inf), "Infinity is not allowed"),
        ("[1, 2]", "expected a JSON object with"),
        ("null", "expected a JSON object with"),
        ("", "is not valid JSON .* cut off"),
        (ESTIMATE.to_json()[:-4], "is not valid JSON .* cut off"),
        (ESTIMATE.to_json() + "x", "is not valid JSON"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Estimate.from_json(text)


@pytest.mark.parametrize(
    ("record", "keys", "older"),
    [
        (StepCost(1e-3, 1e-5), ["scatter"], "batchopt.step_cost/1"),
        (plan_of(), ["expected_regret", "asked", "metrics", "parameters", "population"], "batchopt.plan/2"),
        (plan_of(), ["asked", "metrics", "parameters", "population"], "batchopt.plan/3"),
        (LossCurve((10,), (0.5,)), ["metrics"], "batchopt.loss_curve/1"),
        (ProbeReport(None, (), (), None, (), 1_000, None, Provenance({}, "cpu", 0, None, 1)), ["decisions"],
         "batchopt.probe/2"),
        (Part(Spending("search", 1.0, 1, 1.0)), ["step_seconds", "aim"], "batchopt.probe_part/2"),
        (Identity(1_000, None, 0, None, None, 100, 10), ["goal", "metrics"], "batchopt.probe_identity/3"),
        (Identity(1_000, None, 0, None, None, 100, 10), ["metrics"], "batchopt.probe_identity/4"),
    ],
)  # fmt: skip
def test_what_is_new_has_a_default_in_files_of_the_version_before(record: Record, keys: list[str], older: str) -> None:
    fields = json.loads(record.to_json()) | {"schema": older}
    with pytest.raises(RecordError, match=f"{keys[0]}: files of this version had no such key"):
        type(record).from_json(json.dumps(fields))
    for key in keys:
        del fields[key]
    assert type(record).from_json(json.dumps(fields)) == record


def test_a_missing_key_is_named() -> None:
    fields = json.loads(ESTIMATE.to_json())
    del fields["low"]
    with pytest.raises(RecordError, match="low: Field required"):
        Estimate.from_json(json.dumps(fields))


@given(cut=st.integers(0, len(ESTIMATE.to_json()) - 1))
def test_a_truncated_record_is_refused_wherever_it_ends(cut: int) -> None:
    with pytest.raises(RecordError, match="not valid JSON"):
        Estimate.from_json(ESTIMATE.to_json()[:cut])


@pytest.mark.parametrize("depth", [150, 400, 700, 990, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    with pytest.raises(RecordError, match=r"valid number|recursion"):
        Estimate.from_json(f'{{"schema": "batchopt.estimate/1", "value": {nested}}}')


def test_nan_is_never_written() -> None:
    @dataclass(frozen=True, slots=True)
    class Loose(Record):
        SCHEMA: ClassVar[str] = "batchopt.loose/1"
        values: tuple[float, ...]

    with pytest.raises(RecordError, match="NaN is not allowed"):
        Loose((1.0, math.nan)).to_json()


def test_the_published_schema_carries_the_tag() -> None:
    schema = json_schema(Estimate)
    assert schema["properties"]["schema"] == {"const": "batchopt.estimate/1"}
    assert schema["required"][0] == "schema"
    assert schema["additionalProperties"] is False


def test_an_older_version_is_read_by_what_makes_this_one_of_it() -> None:
    @dataclass(frozen=True, slots=True)
    class Length(Record):
        SCHEMA: ClassVar[str] = "batchopt.length/3"
        OLDER: ClassVar[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
            "batchopt.length/2": lambda fields: {"metres": fields["feet"] * 0.3048}
        }
        metres: float

    assert Length.from_json('{"schema": "batchopt.length/2", "feet": 10}') == Length(3.048)
    assert json.loads(Length(1.5).to_json()) == {"schema": "batchopt.length/3", "metres": 1.5}
    with pytest.raises(RecordError, match=r"holds batchopt\.length/1, expected batchopt\.length/3"):
        Length.from_json('{"schema": "batchopt.length/1", "inches": 10}')
    with pytest.raises(RecordError, match="newer batchopt"):
        Length.from_json('{"schema": "batchopt.length/4", "metres": 1.5}')


@pytest.mark.parametrize("unit", ["inf", "-inf"])
def test_a_text_that_stands_for_a_number_is_not_written(unit: str) -> None:
    with pytest.raises(RecordError, match=r"the text '-?inf' is not allowed"):
        StepCost(1.0, 1.0, unit=unit).to_json()


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "estimate.json"
    with pytest.raises(RecordError, match=r"estimate\.json: cannot be read: No such file"):
        Estimate.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"estimate\.json: is not UTF-8 text"):
        Estimate.load(path)
    with pytest.raises(RecordError, match="cannot be read: Is a directory"):
        Estimate.load(tmp_path)
    ESTIMATE.save(path)
    monkeypatch.setattr(_codec, "LARGEST_FILE", 50)
    with pytest.raises(RecordError, match=r"at most 50 bytes, got \d+"):
        Estimate.load(path)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "estimate.json"
    ESTIMATE.save(path)

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(ESTIMATE, value=2.5).save(path)
    assert Estimate.load(path) == ESTIMATE
    assert [file.name for file in tmp_path.iterdir()] == ["estimate.json"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt("Ctrl-C")

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ESTIMATE.to_json(), "batchopt.estimate"),
        ('{"schema": "batchopt.plan/9"}', "batchopt.plan"),
        ('{"schema": 3}', None),
        ("[1]", None),
        ("{", None),
    ],
)
def test_which_record_a_text_says_it_is(text: str, name: str | None) -> None:
    assert _codec.record_name(text) == name


def test_every_record_has_a_tag_of_its_own() -> None:
    records = {}
    for module in pkgutil.walk_packages(batchopt.__path__, "batchopt."):
        with contextlib.suppress(ImportError):  # an integration whose package is not here
            found = vars(importlib.import_module(module.name)).values()
            records |= {id(each): each for each in found if isinstance(each, type) and issubclass(each, Record)}
    tags = [each.SCHEMA.rpartition("/")[0] for each in records.values() if each is not Record]
    assert len(tags) > 10
    assert sorted(tags) == sorted(set(tags))


def test_records_of_one_tag_are_not_mixed_up() -> None:
    @dataclass(frozen=True, slots=True)
    class Metres(Record):
        SCHEMA: ClassVar[str] = "batchopt.same/1"
        metres: float

    @dataclass(frozen=True, slots=True)
    class Feet(Record):
        SCHEMA: ClassVar[str] = "batchopt.same/1"
        feet: float

    for record in (Metres(1.0), Feet(3.0)):
        assert type(record).from_json(record.to_json()) == record
