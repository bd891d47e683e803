"""Levanter (marin-levanter): `train_batch_size` as a list of steps.

It checks next to nothing of the list, so what it would get wrong is never written.

Warm-up and decay are counted in steps; the decay, linear or a cosine, ends with the run, and may begin after a stable
part. A length of 1 is read as the whole run, so one step is written as a share. Another curve cannot be given.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from batchopt.learning_rate_schedule import COSINE_POINTS, LearningRateSchedule
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import check_ends_with_run, in_steps, known_shape, step_notes
from batchopt.schedules.exporters.stages import first_rate, listed, rate_notes, share_of, stages_of
from batchopt.schedules.schedule import Schedule, Segment


def to_levanter(schedule: Schedule, *, data_parallel: int, micro_batch: int = 1) -> Export:
    """Keys of Levanter's configuration, as YAML.

    Args:
        schedule: the schedule.
        data_parallel: size of the data axis.
        micro_batch: `per_device_parallelism`.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel, or the learning rate follows a curve
            that Levanter does not know.
    """
    share_of(schedule, micro_batch, data_parallel, what="per_device_parallelism x data axis")
    stages = stages_of(schedule, sizes_only=True)
    sizes = listed([f"{{start: {stage.step}, value: {stage.batch_size}}}" for stage in stages])
    lines = ["trainer:", f"  train_batch_size: [{sizes}]", f"  num_train_steps: {schedule.steps}"]
    if micro_batch > 1:
        lines.append(f"  per_device_parallelism: {micro_batch}")
    rate = first_rate(schedule)
    rates, notes = _rates(schedule)
    if rate is not None:
        rates.insert(0, f"  learning_rate: {rate!r}")
    lines += ["optimizer:", *rates] if rates else []
    whole = stages[-1].seen + (schedule.steps - stages[-1].step) * stages[-1].batch_size
    if whole != schedule.examples:
        notes.append(f"the last step is a full one: {whole} examples instead of {schedule.examples}")
    notes += rate_notes(schedule, "Levanter", "go on from a checkpoint with another learning_rate to keep them")
    return Export("\n".join(lines), tuple(notes))


def _rates(schedule: Schedule) -> tuple[list[str], list[str]]:
    """Warm-up and decay, and what they do otherwise; nothing where they are left open."""
    shape = known_shape(schedule, "Levanter", ("constant", "linear", "cosine", "wsd"))
    if shape is None:
        return [], ["the learning rate decays over steps, which are the whole run's"]
    check_ends_with_run(shape, schedule, "Levanter")
    steps = in_steps(shape, schedule)
    lines = [
        f"  lr_schedule: {'linear' if shape.name == 'wsd' else shape.name}",
        f"  warmup: {_length(steps.warmup_examples, schedule.steps)}",
        *([f"  decay: {_length(steps.decay_examples, schedule.steps)}"] if shape.name == "wsd" else []),
        *([] if shape.name == "constant" else ["  min_lr_ratio: 0.0"]),
    ]
    return lines, step_notes(schedule, steps, "Levanter")


def _length(steps: int, whole: int) -> float:
    """A number of steps as Levanter reads it: up to 1 it takes it for a share, and rounds down."""
    return steps if steps > 1 else min(1.0, 1.5 / whole) if steps else 0


def from_levanter(text: str) -> Schedule:
    """The schedule of a Levanter configuration: of its `train_batch_size` and `num_train_steps`.

    Warm-up and decay are read where the optimizer's lr_schedule, warmup or decay is given, with Levanter's defaults for
    the others (a cosine to a tenth, after a hundredth of the run).

    Args:
        text: YAML as `to_levanter` writes it, or as Levanter's own examples have it.

    Raises:
        ValueError: a key is missing, the list does not begin at 0 or does not rise, a value is not positive, or the
            learning rate follows a curve that is not read.
    """
    try:
        configuration = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"a Levanter configuration must be YAML: {' '.join(str(error).split())}") from None
    trainer = configuration.get("trainer") if isinstance(configuration, dict) else None
    if not isinstance(trainer, dict):
        raise ValueError("a Levanter configuration must have a section `trainer`, and has none")
    missing = [key for key in ("train_batch_size", "num_train_steps") if key not in trainer]
    if missing:
        raise ValueError(f"the section `trainer` must have train_batch_size and num_train_steps, lacks {missing}")
    sizes = trainer["train_batch_size"]
    try:
        steps = int(trainer["num_train_steps"])
        stages = [(0, sizes)] if isinstance(sizes, int) else [(int(s["start"]), int(s["value"])) for s in sizes]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "train_batch_size must be a number or a list of {start: step, value: size}, and num_train_steps a number, "
            f"got {sizes!r} and {trainer['num_train_steps']!r}"
        ) from None
    optimizer = configuration.get("optimizer") or {}
    starts = [step for step, _ in stages]
    if starts[:1] != [0] or any(after <= before for before, after in pairwise(starts)):
        raise ValueError(f"train_batch_size must begin at step 0 and rise, got starts {starts}")
    if starts[-1] >= steps:
        raise ValueError(f"num_train_steps must be more than the last start, got {steps} and {starts[-1]}")
    segments, seen = [], 0
    for (step, size), end in zip(stages, [*starts[1:], steps], strict=True):
        segments.append(Segment(seen, size))
        seen += (end - step) * size
    rate = optimizer.get("learning_rate")
    schedule = Schedule(tuple(segments), seen, None if rate is None else float(rate))
    return replace(schedule, learning_rate_schedule=_rates_of(optimizer, schedule))


def _rates_of(optimizer: dict[str, Any], schedule: Schedule) -> LearningRateSchedule | None:
    """Warm-up and decay of a configuration, over examples; None where it says nothing of them."""
    if not {"lr_schedule", "warmup", "decay"} & set(optimizer):
        return None
    kind, floor = optimizer.get("lr_schedule", "cosine"), float(optimizer.get("min_lr_ratio", 0.1))
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f"lr_schedule must be constant, linear or cosine to be read, got {kind!r}")
    steps = schedule.steps
    warmup = min(steps, _steps(optimizer.get("warmup", 0.01), steps, "warmup"))
    falls = steps - warmup
    if optimizer.get("decay") is not None:
        falls = min(falls, _steps(optimizer["decay"], steps, "decay"))
    points = {0: 0.0} if warmup else {}
    points |= {warmup: 1.0, steps - falls: 1.0}
    if kind != "constant":
        for n in {round(falls * i / (COSINE_POINTS - 1)) for i in range(COSINE_POINTS)} if falls else ():
            left = 1.0 - n / falls if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * n / falls))
            points[steps - falls + n] = floor + (1.0 - floor) * left
    if kind == "linear":
        points = {n: m for n, m in points.items() if n in (0, warmup, steps - falls, steps)}
    return _over_examples(dict(sorted(points.items())), schedule)


def _over_examples(points: dict[int, float], schedule: Schedule) -> LearningRateSchedule:
    """Multipliers at steps, with straight lines between, over examples: bent where the batch size changes."""
    at, values = list(points), list(points.values())
    found: dict[int, float] = {}
    step = 0
    for segment, seen, count in schedule.stretches():
        inside = {step, *(n for n in at if step <= n <= step + count)}
        found |= {seen + (n - step) * segment.batch_size: float(np.interp(n, at, values)) for n in sorted(inside)}
        step += count
    if len({segment.batch_size for segment in schedule.segments}) == 1:
        found = {n: m for n, m in found.items() if n // schedule(0) in points}
    return LearningRateSchedule(tuple(found), tuple(found.values()))


def _steps(length: object, whole: int, name: str) -> int:
    """Steps of a length that Levanter gives in steps, or up to 1 as a share of the run."""
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 0:
        raise ValueError(f"{name} must be a number of steps, or a share of them up to 1, got {length!r}")
    return int(length * whole) if length <= 1.0 else int(length)
