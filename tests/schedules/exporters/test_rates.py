"""Warm-up and decay in the terms of every consumer, by its own rules written out here."""

from __future__ import annotations

import ast
import builtins
import json
import math
import shlex
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from batchopt.learning_rate_schedule import SHAPES, LearningRateSchedule, ShapeName
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import rate_points, stretches_of
from batchopt.schedules.exporters.registry import EXPORTERS, IMPORTERS, export_schedule, import_schedule, options_of
from batchopt.schedules.schedule import Schedule, Segment

SIZES = (Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256))
ONE_SIZE = (Segment(0, 64),)
GIVEN = {"tokens_per_example": 1024, "micro_batch": 8, "data_parallel": 2, "devices": 2, "examples_per_epoch": 9_600}
UNKNOWN = {
    "deepspeed": {"wsd"},
    "nanogns": {"cosine", "wsd"},
}
OF_STEPS = ("torch", "ignite", "bs-scheduler")
ANY_CURVE = {*OF_STEPS, "lightning"}
CURVE = LearningRateSchedule((0, 1_000, 50_000, 96_000), (0.2, 1.0, 0.3, 0.1))


def scheduled(shape: ShapeName, *, warmup: int = 3_200, segments: tuple[Segment, ...] = ONE_SIZE) -> Schedule:
    rates = LearningRateSchedule.of(shape, examples=96_000, warmup_examples=warmup)
    return Schedule(segments, 96_000, 0.01, rates)


def exported(name: str, schedule: Schedule) -> Export:
    needed, _ = options_of(name)
    return export_schedule(schedule, name, **{option: GIVEN[option] for option in needed})


def near(schedule: Schedule, theirs: list[float], *, within: float) -> None:
    """Rates of a consumer's steps, over the peak, are the schedule's."""
    own = [schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert theirs == pytest.approx(own[: len(theirs)], abs=within)


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_curve_that_a_consumer_does_not_know_is_refused(name: str) -> None:
    unknown = {"another curve": Schedule(ONE_SIZE, 96_000, 0.01, CURVE)}
    unknown |= {f"'{shape}'": scheduled(shape) for shape in UNKNOWN.get(name, set())}  # type: ignore[arg-type]
    for got, schedule in unknown.items():
        if name in ANY_CURVE:
            assert "LEARNING_RATES" in exported(name, schedule).text
            continue
        with pytest.raises(ValueError, match=f"knows the learning rates .*, got {got}: make learning_rate_schedule of"):
            exported(name, schedule)


@pytest.mark.parametrize("name", sorted({*EXPORTERS} - {"torch"}))
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_told_as_without_warm_up_and_decay(name: str, shape: ShapeName) -> None:
    if shape in UNKNOWN.get(name, set()):
        return
    if name == "nanogns" and shape == "constant":
        with pytest.raises(
            ValueError, match="nanoGNS knows no warm-up before a constant rate, got one of 3200 examples"
        ):
            exported(name, scheduled(shape))
        assert "decay_lr=False" in " ".join(exported(name, scheduled(shape, warmup=0)).notes)
        return
    falls = scheduled(shape, segments=SIZES)
    plain, export = exported(name, replace(falls, learning_rate_schedule=None)), exported(name, falls)
    lost = [line for line in plain.text.splitlines() if line not in export.text]
    assert all("lr" in line or "total_num_steps" in line or "scheduler" in line for line in lost)
    assert export.text != plain.text or export.notes != plain.notes


def of_megatron(text: str) -> list[float]:
    """The multipliers of one batch size, as OptimizerParamScheduler reads them at the first sample of a step."""
    words = shlex.split(text)
    given = {name: value for name, value in pairwise(words) if name.startswith("--")}
    style, end = given["--lr-decay-style"], int(given["--lr-decay-samples"])
    warmup = int(given.get("--lr-warmup-samples", 0))
    multipliers = []
    for seen in range(0, int(given["--train-samples"]), 64):
        if warmup and seen <= warmup:
            multipliers.append(seen / warmup)
        elif style == "constant":
            multipliers.append(1.0)
        elif style == "WSD":
            assert given["--lr-wsd-decay-style"] == "linear"
            falls = int(given["--lr-wsd-decay-samples"])
            multipliers.append(1.0 if seen <= end - falls else 1.0 - (seen - end + falls) / falls)
        else:
            share = (seen - warmup) / (end - warmup)
            multipliers.append(1.0 - share if style == "linear" else 0.5 * (math.cos(math.pi * share) + 1.0))
    return multipliers


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 3_200])
def test_megatron_in_samples(shape: ShapeName, warmup: int) -> None:
    schedule = scheduled(shape, warmup=warmup)
    near(schedule, of_megatron(exported("megatron", schedule).text), within=0.5 * 64 / 3_200 + 2e-4)
    ramp = exported("megatron-ramp", schedule).text
    for word in ("--lr-decay-style", "--lr-decay-samples"):
        assert ramp.partition(word)[2].split()[0] == exported("megatron", schedule).text.partition(word)[2].split()[0]
    keys = yaml.safe_load(exported("nemo", schedule).text)
    style = {"constant": "constant", "linear": "linear", "cosine": "cosine", "wsd": "WSD"}[shape]
    assert (keys["lr_decay_style"], keys["lr_warmup_samples"], keys["lr_decay_samples"]) == (style, warmup, 96_000)
    assert keys.get("lr_wsd_decay_samples") == (19_200 if shape == "wsd" else None)


def of_levanter(text: str) -> list[float]:
    """The multipliers of steps, as OptimizerConfig.lr_scheduler makes them of optax's parts."""
    config = yaml.safe_load(text)
    steps, optimizer = config["trainer"]["num_train_steps"], config["optimizer"]

    def length(value: float) -> int:
        return int(value * steps) if value <= 1.0 else int(value)

    warmup = length(optimizer["warmup"])
    falls = length(optimizer["decay"]) if "decay" in optimizer else steps - warmup
    found = []
    for step in range(steps):
        share = max(0.0, (step - (steps - falls)) / falls)
        fall = 1.0 - share if optimizer["lr_schedule"] == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
        fall = 1.0 if optimizer["lr_schedule"] == "constant" else fall
        found.append(step / warmup if step < warmup else fall)
        assert optimizer["lr_schedule"] == "constant" or optimizer["min_lr_ratio"] == 0.0
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 64, 3_200])
def test_levanter_in_steps_of_which_one_is_no_share(shape: ShapeName, warmup: int) -> None:
    schedule = scheduled(shape, warmup=warmup)
    theirs = of_levanter(exported("levanter", schedule).text)
    assert theirs[0] == (0.0 if warmup else 1.0)
    own = [schedule.learning_rate_schedule(64 * step) for step in range(schedule.steps)]  # type: ignore[misc]
    assert theirs == pytest.approx(own, abs=3e-4)


def of_maxtext(text: str, steps: int) -> list[float]:
    """The multipliers of steps, as create_learning_rate_schedule makes them of optax's parts."""
    keys = yaml.safe_load(text)
    end = keys["learning_rate_schedule_steps"]
    warmup = int(end * keys["warmup_steps_fraction"])
    assert keys["learning_rate_final_fraction"] == 0.0
    found = []
    if keys["lr_schedule_type"] == "wsd":
        falls = int(end * keys["wsd_decay_steps_fraction"])
        assert keys["warmup_steps_fraction"] + keys["wsd_decay_steps_fraction"] <= 1.0
    for step in range(steps):
        if step < warmup:
            found.append(step / warmup)
        elif step >= end:
            found.append(0.0)
        elif keys["lr_schedule_type"] == "cosine":
            found.append(0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (end - warmup - 1))))
        else:
            found.append(1.0 if step < end - falls else 1.0 - (step - end + falls) / (falls - 1))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 3_200])
def test_maxtext_in_shares_of_the_steps(shape: ShapeName, warmup: int) -> None:
    schedule = scheduled(shape, warmup=warmup)
    near(schedule, of_maxtext(exported("maxtext", schedule).text, schedule.steps), within=0.5 * 64 / 3_200 + 1e-3)


@settings(max_examples=200, deadline=None)
@given(steps=st.integers(3, 5_000), part=st.floats(0.01, 0.4))
def test_maxtexts_shares_give_the_steps_that_were_meant(steps: int, part: float) -> None:
    warmup = max(1, round(part * steps))
    rates = LearningRateSchedule.of("linear", examples=8 * steps, warmup_examples=8 * warmup)
    text = exported("maxtext", Schedule((Segment(0, 8),), 8 * steps, 0.1, rates)).text
    keys = yaml.safe_load(text)
    assert int(keys["learning_rate_schedule_steps"] * keys["warmup_steps_fraction"]) == warmup
    assert keys["warmup_steps_fraction"] + keys["wsd_decay_steps_fraction"] <= 1.0


def test_a_consumer_of_steps_says_how_far_it_is_from_the_schedule() -> None:
    for name, consumer in (("levanter", "Levanter"), ("maxtext", "MaxText"), ("deepspeed", "DeepSpeed")):
        [note] = [
            note for note in exported(name, scheduled("linear", segments=SIZES)).notes if "counts warm-up" in note
        ]
        assert note.startswith(f"{consumer} counts warm-up and decay in steps: since the batch size changes")
        assert not any("counts warm-up" in note for note in exported(name, scheduled("linear")).notes)
    export = exported("levanter", scheduled("linear", segments=SIZES))
    [note] = [note for note in export.notes if "counts warm-up" in note]
    schedule, theirs = scheduled("linear", segments=SIZES), of_levanter(export.text)
    seen = [seen for seen, _ in schedule.batches()]
    own = [schedule.learning_rate_schedule(n) for n in seen]  # type: ignore[misc]
    furthest = max(abs(one - other) for one, other in zip(own, theirs, strict=True))
    told = float(note.partition("up to ")[2].partition("%")[0]) / 100
    assert told == pytest.approx(furthest, abs=0.003)


@pytest.mark.parametrize("name", ["levanter", "olmo-core"])
def test_a_decay_that_ends_before_the_run_is_refused_where_it_cannot_be_given(name: str) -> None:
    rates = LearningRateSchedule.of("wsd", examples=90_000)
    with pytest.raises(ValueError, match="decay ends with the run, got one that ends at 90000 of 96000 examples"):
        exported(name, Schedule(ONE_SIZE, 96_000, 0.01, rates))
    assert "--lr-decay-samples 90000" in exported("megatron", Schedule(ONE_SIZE, 96_000, 0.01, rates)).text


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_deepspeed_names_a_scheduler_that_it_has(shape: ShapeName) -> None:
    config, _ = json.JSONDecoder().raw_decode(exported("deepspeed", scheduled(shape)).text)
    scheduler = config["scheduler"]
    assert scheduler["type"] == {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}[shape]
    params = scheduler["params"]
    assert (params["warmup_num_steps"], params["warmup_type"]) == (50, "linear")
    assert params.get("total_num_steps") == (None if shape == "constant" else 1_500)
    assert params.get("warmup_max_lr") == (None if shape == "cosine" else 0.01)
    bare = exported("deepspeed", replace(scheduled("linear", warmup=0), learning_rate=None))
    assert any("warms up over two steps at least, the schedule over 0" in note for note in bare.notes)
    assert any("add your learning rate as warmup_max_lr" in note for note in bare.notes)
    assert "scheduler" not in json.loads(exported("deepspeed", scheduled("constant", warmup=0)).text)


def test_nanogns_in_tokens() -> None:
    notes = " ".join(exported("nanogns", scheduled("linear")).notes)
    assert f"set warmup_tokens={3_200 * 1024}, lr_decay_tokens={96_000 * 1024}, min_lr=0.0" in notes


@pytest.mark.parametrize("name", OF_STEPS)
@settings(max_examples=25, deadline=None)
@given(
    curve=st.sampled_from([*SHAPES, "points"]),
    starts=st.sets(st.integers(1, 8_000), max_size=3),
    sizes=st.lists(st.integers(1, 60), min_size=4, max_size=4),
    factors=st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=4, max_size=4),
)
def test_a_function_of_the_step_is_exact(
    name: str, curve: Any, starts: set[int], sizes: list[int], factors: list[float]
) -> None:
    rates = LearningRateSchedule((0, 333, 5_000, 9_000), (0.2, 1.0, 0.3, 0.1))
    if curve != "points":
        rates = LearningRateSchedule.of(curve, examples=9_000, warmup_examples=500)
    parts = zip([0, *sorted(starts)], sizes, factors, strict=False)
    schedule = Schedule(tuple(Segment(start, 4 * size, factor) for start, size, factor in parts), 9_001, 0.1, rates)
    text = exported(name, schedule).text
    space: dict[str, Any] = {}
    exec(
        text.partition("\n\nLEARNING_RATES")[1].strip()
        + text.partition("\n\nLEARNING_RATES")[2].partition("\nrates =")[0],
        space,
    )
    function = space["learning_rate_multiplier_at"]
    own = [schedule.multiplier_of(seen, size) / factors[0] for seen, size in schedule.batches()]
    # Steps are given to a thousandth, and what rises fastest is the warm-up: at most 240 of 333 examples a step.
    assert [function(step) for step in range(schedule.steps)] == pytest.approx(own, abs=2e-3)
    assert math.isfinite(function(schedule.steps))  # LambdaLR asks once more after the last step


def test_what_is_exported_for_torch_runs_as_it_is() -> None:
    """With a data set and an optimizer, and nothing else: no file, and no import."""
    schedule = scheduled("cosine", segments=(Segment(0, 64), Segment(10_000, 128, 1.5), Segment(50_000, 256, 2.0)))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    space: dict[str, Any] = {"optimizer": optimizer, "dataset": TensorDataset(torch.arange(1_000))}
    exec(exported("torch", schedule).text, space)
    assert (space["total_steps"], space["lr"]) == (schedule.steps, 0.01)
    taken, sizes = [], []
    for (batch,) in space["loader"]:
        sizes.append(len(batch))
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        space["rates"].step()
    assert sizes == [size for _, size in schedule.batches()]
    near(schedule, [rate / 0.01 for rate in taken], within=1e-4)


@pytest.mark.parametrize("name", OF_STEPS)
def test_what_is_exported_in_python_imports_what_it_names(name: str) -> None:
    tree = ast.parse(exported(name, scheduled("wsd")).text)
    imported = {alias.asname or alias.name.partition(".")[0] for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert used - made - imported - set(dir(builtins)) <= {"dataset", "optimizer", "trainer"}


def test_lightning_takes_the_curve_over_its_own_steps() -> None:
    schedule = scheduled("linear", segments=(Segment(0, 64), Segment(48_000, 128, 1.5)))
    text = exported("lightning", schedule).text
    assert "{0: 8, 5: 16}" in text
    space: dict[str, Any] = {}
    exec(text[text.index("LEARNING_RATES") : text.index("\nrates =")], space)
    function = space["learning_rate_multiplier_at"]
    own = [schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert [function(step) for step in range(1_125)] == pytest.approx(own, abs=1e-3)


def test_points_of_a_cut_last_step() -> None:
    rates = LearningRateSchedule((0, 100), (1.0, 0.0))
    schedule = Schedule((Segment(0, 30),), 100, None, rates)
    assert rate_points(rates, stretches_of(schedule)) == [(0.0, 1.0), (3.0, 0.1), (4.0, 0.0)]


@pytest.mark.parametrize("source", IMPORTERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 3_200])
def test_importers_read_it_back(source: str, shape: ShapeName, warmup: int) -> None:
    schedule = scheduled(shape, warmup=warmup)
    again = import_schedule(exported(source, schedule).text, source)
    assert again.segments == schedule.segments
    own, read = schedule.learning_rate_schedule, again.learning_rate_schedule
    assert own is not None
    assert read is not None
    assert [read(n) for n in range(0, 96_001, 320)] == pytest.approx([own(n) for n in range(0, 96_001, 320)], abs=1e-3)
    if source == "megatron":
        assert again == schedule
    bare = import_schedule(exported(source, replace(schedule, learning_rate_schedule=None)).text, source)
    assert bare.learning_rate_schedule is None


def test_levanter_is_read_with_its_own_defaults() -> None:
    trainer = "trainer:\n  train_batch_size: [{start: 0, value: 10}, {start: 50, value: 30}]\n  num_train_steps: 100\n"
    rates = import_schedule(f"{trainer}optimizer:\n  warmup: 0.1\n", "levanter").learning_rate_schedule
    assert rates is not None
    examples = [10 * step if step < 50 else 500 + 30 * (step - 50) for step in range(101)]
    for step, n in enumerate(examples):
        share = max(0.0, (step - 10) / 90)
        wanted = step / 10 if step < 10 else 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * share))
        assert rates(n) == pytest.approx(wanted, abs=2e-3)
    for wrong, message in (
        ("lr_schedule: inv_sqrt", "lr_schedule must be constant, linear or cosine to be read, got 'inv_sqrt'"),
        ("warmup: [1]", r"warmup must be a number of steps, or a share of them up to 1, got \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            import_schedule(f"{trainer}optimizer:\n  {wrong}\n", "levanter")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--lr-decay-style inverse-square-root",
            "must be one of constant, linear, cosine, WSD to be read, got inverse",
        ),
        ("--lr-decay-style WSD --lr-wsd-decay-samples 10", "--lr-wsd-decay-style must be linear to be read, got none"),
        ("--lr-decay-style linear --min-lr 0.001", "--min-lr must be 0 to be read, got 0.001"),
        ("--lr-warmup-samples 900", "--lr-warmup-samples must be less than --lr-decay-samples, got 900 and 900"),
        ("--lr-warmup-samples many", "--lr-warmup-samples must be a number, got 'many'"),
        (
            "--lr-decay-style WSD --lr-wsd-decay-style linear --lr-wsd-decay-samples 0",
            "--lr-wsd-decay-samples must be from 1 to 900, got 0",
        ),
        (
            "--lr-decay-style linear --lr-decay-samples 1000",
            "must end within the run, got its last point at 1000 of 900",
        ),
    ],
)
def test_megatron_that_is_not_read(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_schedule(f'--step-batch-size-schedule "0:9" --train-samples 900 {words}', "megatron")
