"""What each consumer makes of an export, by its own rules written out here; the packages themselves are in
`test_consumers.py`."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.registry import EXPORTERS, IMPORTERS, export_schedule, import_schedule
from batchopt.schedules.schedule import Schedule, Segment

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)
OPTIONS: dict[str, dict[str, int]] = {
    "megatron": {"tokens_per_example": 1024, "micro_batch": 8, "data_parallel": 2},
    "megatron-ramp": {"micro_batch": 8, "data_parallel": 2},
    "nemo": {"micro_batch": 8, "data_parallel": 2},
    "olmo-core": {"tokens_per_example": 1024, "micro_batch": 8, "data_parallel": 2},
    "levanter": {"data_parallel": 2},
    "maxtext": {"devices": 16},
    "deepspeed": {"micro_batch": 8, "data_parallel": 2},
    "lightning": {"examples_per_epoch": 10_000, "micro_batch": 8, "data_parallel": 2},
    "ignite": {},
    "bs-scheduler": {},
    "torch": {},
    "nanogns": {"tokens_per_example": 1024, "micro_batch": 8, "data_parallel": 2},
}


def exported(name: str, schedule: Schedule = REFERENCE, **more: int) -> Export:
    return export_schedule(schedule, name, **{**OPTIONS[name], **more})


@st.composite
def schedules(draw: st.DrawFn, *, rising: bool = False) -> Schedule:
    starts = sorted(draw(st.sets(st.integers(1, 5_000), max_size=4)) | {0})
    sizes = draw(st.lists(st.integers(1, 40), min_size=len(starts), max_size=len(starts)))
    length = starts[-1] + draw(st.integers(1, 2_000))
    sizes = sorted(sizes) if rising else sizes
    return Schedule(tuple(Segment(start, 16 * size) for start, size in zip(starts, sizes, strict=True)), length)


def test_every_exporter_is_tried_here() -> None:
    assert OPTIONS.keys() == EXPORTERS.keys()


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_export_gives_the_learning_rate_and_says_what_becomes_of_its_factors(name: str) -> None:
    changing = Schedule((Segment(0, 64), Segment(10_000, 128, 1.2)), examples=120_000, learning_rate=0.03)
    export = exported(name, changing)
    if name != "nanogns":
        assert "0.03" in export.text
    assert any("1.2" in note for note in export.notes)
    bare = exported(name, Schedule((Segment(0, 64, 0.5),), examples=6_400))
    assert any("multiply your" in note and "0.5" in note for note in bare.notes)


@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if options])
def test_a_batch_that_does_not_divide_is_refused(name: str) -> None:
    odd = Schedule((Segment(0, 64), Segment(10_000, 101)), examples=20_000)
    with pytest.raises(ValueError, match=r"must be a multiple of .*, got 101: plan with multiple_of="):
        exported(name, odd)


@pytest.mark.parametrize("name", ["megatron-ramp", "nemo", "maxtext"])
def test_a_ramp_cannot_fall(name: str) -> None:
    falling = Schedule((Segment(0, 64), Segment(10_000, 32)), examples=20_000)
    with pytest.raises(ValueError, match="only batch sizes that grow, got 32 after 64"):
        exported(name, falling)


def ramp_steps(start: int, increment: int, samples: int, end: int, examples: int) -> list[tuple[int, int]]:
    """(samples seen, batch size) as megatron-core 0.16 counts: equal parts of the ramp, rounded down."""
    each = samples / ((end - start) / increment) if end > start else math.inf
    seen, taken = 0, []
    while seen < examples:
        size = end if seen > samples else start + int(seen / each) * increment
        taken.append((seen, size))
        seen += size
    return taken


def test_a_linear_schedule_is_a_ramp_and_another_is_said_not_to_be() -> None:
    linear = Schedule(tuple(Segment(1_600 * k, 16 * (k + 1)) for k in range(5)), examples=20_000)
    export = exported("megatron-ramp", linear)
    assert "--rampup-batch-size 16 16 6400 " in export.text
    assert not any("not the schedule" in note for note in export.notes)
    export = exported("megatron-ramp")
    assert "--global-batch-size 256 --rampup-batch-size 64 64 50000 " in export.text
    taken = ramp_steps(64, 64, 50_000, 256, 120_000)
    differ = sum(min(size, 120_000 - seen) for seen, size in taken if size != REFERENCE(seen))
    assert any(
        f"{differ / 120_000:.0%} of the examples" in note and f"in {len(taken):,} steps" in note
        for note in export.notes
    )


@settings(max_examples=50, deadline=None)
@given(schedule=schedules(rising=True))
def test_a_ramp_is_one_that_megatron_accepts(schedule: Schedule) -> None:
    text = exported("megatron-ramp", schedule).text
    found = re.search(r"--rampup-batch-size (\d+) (\d+) (\d+)", text)
    sizes = [schedule(seen) for seen, _ in schedule.batches()]
    if found is None:
        assert len(set(sizes)) == 1
        return
    start, increment, samples = map(int, found.groups())
    # Its assertions: the growth is a whole number of increments, each divisible by micro-batch x ranks.
    assert (sizes[-1] - start) % increment == 0
    assert increment % 16 == 0
    assert start == sizes[0]
    assert ramp_steps(start, increment, samples, sizes[-1], schedule.examples)[-1][1] <= sizes[-1]


def test_nemo_and_maxtext_are_yaml() -> None:
    nemo = yaml.safe_load(exported("nemo").text)
    assert nemo == {
        "micro_batch_size": 8, "global_batch_size": 256, "rampup_batch_size": [64, 64, 50_000],
        "train_samples": 120_000, "lr_decay_samples": 120_000,
    }  # fmt: skip
    maxtext = yaml.safe_load(exported("maxtext").text)
    assert maxtext["per_device_batch_size_start"] * 16 == 64
    assert maxtext["per_device_batch_size_increment"] * 16 == 64
    assert maxtext["per_device_batch_size"] * 16 == 256
    assert maxtext["steps"] == len(ramp_steps(64, 64, 50_000, 256, 120_000))
    assert yaml.safe_load(exported("maxtext", Schedule.constant(64, examples=6_400)).text) == {
        "per_device_batch_size": 4.0, "steps": 100,
    }  # fmt: skip


def test_olmo_core_counts_in_tokens_and_takes_integer_factors() -> None:
    text = exported("olmo-core").text
    assert "batch_sizes=[65536, 131072, 262144]" in text
    assert "schedule=[Duration.tokens(0), Duration.tokens(10240000), Duration.tokens(51200000)]" in text
    assert "max_duration = Duration.tokens(122880000)" in text
    third = Schedule((Segment(0, 64), Segment(10_000, 96)), examples=20_000)
    with pytest.raises(ValueError, match="by an integer factor, got 96 after 64"):
        exported("olmo-core", third)


def test_olmo_core_rescales_by_the_root() -> None:
    root = Schedule((Segment(0, 64), Segment(10_000, 128, math.sqrt(2.0))), examples=20_000)
    assert any("as the schedule does" in note for note in exported("olmo-core", root).notes)
    assert any(
        "by 1, 1.41 where the schedule has 1, 1" in note
        for note in exported("olmo-core", Schedule((Segment(0, 64), Segment(10_000, 128)), 20_000)).notes
    )


@settings(max_examples=50, deadline=None)
@given(schedule=schedules())
def test_levanter_takes_the_schedules_own_steps(schedule: Schedule) -> None:
    config = yaml.safe_load(exported("levanter", schedule).text)["trainer"]
    starts = [(stage["start"], stage["value"]) for stage in config["train_batch_size"]]
    sizes = [[size for start, size in starts if step >= start][-1] for step in range(config["num_train_steps"])]
    own = [size for _, size in schedule.batches()]
    assert sizes[:-1] == own[:-1]
    assert len(sizes) == len(own)


@settings(max_examples=50, deadline=None)
@given(schedule=schedules(), rate=st.one_of(st.none(), st.floats(1e-6, 10.0)))
@pytest.mark.parametrize("name", IMPORTERS)
def test_round_trip(name: str, schedule: Schedule, rate: float | None) -> None:
    given_rate = Schedule(schedule.segments, schedule.examples, rate)
    back = import_schedule(exported(name, given_rate).text, name)
    assert [size for _, size in back.batches()][:-1] == [size for _, size in given_rate.batches()][:-1]
    assert back.steps == given_rate.steps
    assert back.learning_rate == rate


LATE = "trainer: {train_batch_size: [{start: 5, value: 8}], num_train_steps: 9}"
SHORT = "trainer: {train_batch_size: [{start: 0, value: 8}, {start: 9, value: 9}], num_train_steps: 9}"


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("levanter", "trainer: {train_batch_size: 64}", "train_batch_size and num_train_steps"),
        ("levanter", "no: [", "must be YAML"),
        ("levanter", "just text", "must have a section `trainer`"),
        ("levanter", LATE, "begin at step 0 and rise"),
        ("levanter", SHORT, "more than the last start"),
        ("megatron", "--train-samples 10", "must have --step-batch-size-schedule"),
        ("megatron", '--step-batch-size-schedule "5:8" --train-samples 10', "first threshold must be 0, got 5"),
        ("megatron", '--step-batch-size-schedule "0:x" --train-samples 10', "must be THRESHOLD:SIZE, got '0:x'"),
    ],
)
def test_what_cannot_be_read(name: str, text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        import_schedule(text, name)


def test_an_export_with_its_notes_is_read() -> None:
    """As the command line prints it."""
    changing = Schedule((Segment(0, 64), Segment(10_000, 128, 1.2)), examples=20_000)
    export = exported("megatron", changing)
    text = "\n".join([export.text, *(f"# {note}" for note in export.notes)])
    assert any("--lr and" in note for note in export.notes)
    assert import_schedule(text, "megatron").steps == changing.steps
    with pytest.raises(ValueError, match="--lr must be a number, got 'fast'"):
        import_schedule(f"{export.text} --lr fast", "megatron")


def test_megatrons_other_spellings_are_read() -> None:
    text = '--step-batch-size-schedule "0:64, 1e4:128 0.05M:256" --train-samples 120000'
    assert import_schedule(text, "megatron") == REFERENCE
    with pytest.raises(ValueError, match="source must be one of 'megatron', 'levanter'"):
        import_schedule(text, "nemo")


def test_deepspeed_switches_where_no_gradient_is_mis_scaled() -> None:
    """Its own rule: it steps when its count of micro-batches is a multiple of the accumulation steps."""
    text = exported("deepspeed").text
    config, end = json.JSONDecoder().raw_decode(text)
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (64, 4)
    assert config["scheduler"]["params"]["total_num_steps"] == 743
    space: dict[str, Any] = {}
    exec(text[end:], space)

    class Engine:
        micro_steps, size = 0, 64

        def train_batch_size(self) -> int:
            return self.size

        def set_train_batch_size(self, size: int) -> None:
            self.size = size

    engine, seen, gathered, switches = Engine(), 0, 0, []
    while seen < 120_000:
        gathered += 16
        engine.micro_steps += 1
        if engine.micro_steps % (engine.size // 16):
            continue
        assert gathered == engine.size  # the gradient is a mean over exactly the batch
        seen, gathered = seen + gathered, 0
        before = engine.size
        space["follow_schedule"](engine, seen)
        if engine.size != before:
            switches.append((seen, engine.size))
    assert [size for _, size in switches] == [128, 256]
    assert all(0 <= seen - start < size for (seen, size), start in zip(switches, (10_000, 50_000), strict=True))


def test_lightning_takes_whole_epochs_and_says_what_moves() -> None:
    export = exported("lightning", examples_per_epoch=8_000)
    found = re.search(r"scheduling=(\{.*?\})", export.text)
    assert found is not None
    assert ast.literal_eval(found[1]) == {0: 4, 1: 8, 6: 16}
    assert "max_epochs = 15" in export.text
    assert any("10,000 to 8,000, 50,000 to 48,000" in note for note in export.notes)
    exact = exported("lightning")
    assert not any("moved" in note for note in exact.notes)
    assert any("cut short" in note for note in exact.notes)


def test_nanogns_has_no_slopes() -> None:
    points = [tuple(map(int, line.split(","))) for line in exported("nanogns").text.splitlines()]
    tokens, values = zip(*points, strict=True)
    assert list(tokens) == sorted(set(tokens))
    for seen in range(0, 120_000, 997):
        right = next(i for i, start in enumerate(tokens) if start >= seen * 1024)
        left = right if tokens[right] == seen * 1024 else right - 1
        part = 0.0 if right == left else (seen * 1024 - tokens[left]) / (tokens[right] - tokens[left])
        assert values[left] + part * (values[right] - values[left]) == REFERENCE(seen) // 16


@pytest.mark.parametrize("name", ["ignite", "bs-scheduler"])
@settings(max_examples=25, deadline=None)
@given(schedule=schedules())
def test_functions_of_the_step_give_the_schedules_own(name: str, schedule: Schedule) -> None:
    text = exported(name, schedule).text
    space: dict[str, Any] = {}
    exec(text.partition("\nloader")[0], space)
    own = [size for _, size in schedule.batches()]
    assert [space["batch_size_at"](step) for step in range(schedule.steps)][:-1] == own[:-1]
