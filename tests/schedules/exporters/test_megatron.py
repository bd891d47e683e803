"""What Megatron makes of an export, by its own rules."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchopt.schedules.exporters.registry import export_schedule
from batchopt.schedules.schedule import Schedule, Segment

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def arguments(text: str) -> dict[str, str]:
    words = shlex.split(text)
    assert all(word.startswith("--") for word in words[::2])
    return dict(zip(words[::2], words[1::2], strict=True))


def read_stages(text: str) -> list[tuple[int, int]]:
    """(samples, batch size) as megatron-core 0.19 reads its command line."""
    given = arguments(text)
    stages = []
    for stage in given["--step-batch-size-schedule"].split():
        threshold, size = stage.split(":")
        tokens = float(threshold[:-1]) * UNITS[threshold[-1]] if threshold[-1] in UNITS else float(threshold)
        stages.append((int(tokens) // int(given["--seq-length"]), int(size)))
    assert all(left[0] < right[0] for left, right in pairwise(stages))
    return stages


def steps(text: str) -> Iterator[tuple[int, int]]:
    """(samples seen, batch size) of Megatron's steps: every one full, until --train-samples are consumed."""
    stages, seen = read_stages(text), 0
    while seen < int(arguments(text)["--train-samples"]):
        size = [size for threshold, size in stages if seen >= threshold][-1]
        yield seen, size
        seen += size


def schedules(multiple_of: int = 1) -> st.SearchStrategy[Schedule]:
    """Schedules of up to five segments whose batch sizes are a multiple."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> Schedule:
        starts = sorted(draw(st.sets(st.integers(1, 5_000), max_size=4)) | {0})
        sizes = draw(st.lists(st.integers(1, 64), min_size=len(starts), max_size=len(starts)))
        length = starts[-1] + draw(st.integers(1, 2_000))
        return Schedule(tuple(Segment(n, size * multiple_of) for n, size in zip(starts, sizes, strict=True)), length)

    return draw_one()


def test_reference() -> None:
    export = export_schedule(REFERENCE, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2)
    assert export.text == (
        '--seq-length 1024 --micro-batch-size 8 --step-batch-size-schedule "0:64 10240K:128 51200K:256" '
        "--train-samples 120000 --lr-decay-samples 120000"
    )
    run = list(steps(export.text))
    assert len(run) == 743
    assert (run[157], run[470]) == ((10_048, 128), (50_112, 256))


@settings(max_examples=50, deadline=None)
@given(schedule=schedules(6), tokens=st.sampled_from([1, 7, 999, 1000, 1024, 4096, 131_072]))
def test_twin_the_consumer_takes_the_schedules_own_steps(schedule: Schedule, tokens: int) -> None:
    export = export_schedule(schedule, "megatron", tokens_per_example=tokens, micro_batch=3, data_parallel=2)
    # All but the last step: that one Megatron does not cut short.
    assert list(steps(export.text))[:-1] == list(schedule.batches())[:-1]
    assert len(list(steps(export.text))) == schedule.steps


def test_last_step_is_full_and_said_to_be() -> None:
    cut = Schedule.constant(64, examples=100)
    export = export_schedule(cut, "megatron", tokens_per_example=1, micro_batch=8, data_parallel=1)
    assert arguments(export.text)["--train-samples"] == arguments(export.text)["--lr-decay-samples"] == "128"
    assert any("128 samples instead of 100" in note for note in export.notes)
    whole = export_schedule(REFERENCE, "megatron", tokens_per_example=1, micro_batch=8, data_parallel=1)
    assert not any("instead of" in note for note in whole.notes)


@pytest.mark.parametrize("forbidden", ["--global-batch-size", "--train-iters", "--rampup", "--decrease-batch-size"])
def test_arguments_that_megatron_refuses_beside_a_schedule(forbidden: str) -> None:
    text = export_schedule(REFERENCE, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2).text
    assert forbidden not in text


def test_divisibility_is_checked_now_and_not_when_the_stage_begins() -> None:
    late = Schedule((Segment(0, 64), Segment(10_000, 100)), examples=20_000)
    with pytest.raises(ValueError, match="micro_batch x data_parallel = 16, got 100: plan with multiple_of=16"):
        export_schedule(late, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2)


@pytest.mark.parametrize("option", ["tokens_per_example", "micro_batch", "data_parallel"])
def test_options_are_counts(option: str) -> None:
    options = {"tokens_per_example": 1024, "micro_batch": 8, "data_parallel": 2}
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        export_schedule(REFERENCE, "megatron", **(options | {option: 0}))


def test_learning_rate_is_given_where_it_can_be() -> None:
    def export(*multipliers: float, rate: float | None) -> tuple[dict[str, str], str]:
        segments = tuple(Segment(100 * i, 16, multiplier) for i, multiplier in enumerate(multipliers))
        schedule = Schedule(segments, 500, rate)
        made = export_schedule(schedule, "megatron", tokens_per_example=1, micro_batch=16, data_parallel=1)
        return arguments(made.text), " | ".join(made.notes)

    given, notes = export(1.0, 1.0, rate=0.01)
    assert given["--lr"] == "0.01"
    assert "lost" not in notes
    given, notes = export(0.5, 0.7, rate=0.01)
    assert given["--lr"] == "0.005"
    assert "factors 1, 1.4 of the stages are lost" in notes
    given, notes = export(0.5, 0.5, rate=None)
    assert "--lr" not in given
    assert "multiply your own learning rate by 0.5" in notes


def installed_calculator() -> Any:
    """Megatron's own calculator, alone: importing megatron.core would need triton."""
    try:
        version = importlib.metadata.version("megatron-core")
        files = importlib.metadata.files("megatron-core") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("megatron-core is not installed")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (0, 18):
        pytest.skip(f"megatron-core {version} knows no step schedule")
    [file] = [file for file in files if file.name == "num_microbatches_calculator.py"]
    spec = importlib.util.spec_from_file_location("calculator", str(file.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_megatrons_own_calculator_takes_the_same_steps() -> None:
    calculator = installed_calculator()
    export = export_schedule(REFERENCE, "megatron", tokens_per_example=1000, micro_batch=8, data_parallel=2)
    calculator.init_num_microbatches_calculator(
        rank=0,
        global_batch_size=16,
        micro_batch_size=8,
        data_parallel_size=2,
        step_batch_size_schedule=arguments(export.text)["--step-batch-size-schedule"],
        seq_length=1000,
    )
    seen, run = 0, []
    while seen < 120_000:
        calculator.update_num_microbatches(seen, consistency_check=True)
        run.append((seen, calculator.get_current_global_batch_size()))
        seen += run[-1][1]
    assert run == list(REFERENCE.batches())
