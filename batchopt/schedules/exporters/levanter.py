"""Levanter (marin-levanter): `train_batch_size` as a list of steps.

It checks next to nothing of the list, so what it would get wrong is never written.
"""

from __future__ import annotations

from itertools import pairwise

import yaml

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.stages import first_rate, listed, rate_notes, share_of, stages_of
from batchopt.schedules.schedule import Schedule, Segment


def to_levanter(schedule: Schedule, *, data_parallel: int, micro_batch: int = 1) -> Export:
    """Keys of Levanter's configuration, as YAML.

    Args:
        schedule: the schedule.
        data_parallel: size of the data axis.
        micro_batch: `per_device_parallelism`.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel.
    """
    share_of(schedule, micro_batch, data_parallel, what="per_device_parallelism x data axis")
    stages = stages_of(schedule, sizes_only=True)
    sizes = listed([f"{{start: {stage.step}, value: {stage.batch_size}}}" for stage in stages])
    lines = ["trainer:", f"  train_batch_size: [{sizes}]", f"  num_train_steps: {schedule.steps}"]
    if micro_batch > 1:
        lines.append(f"  per_device_parallelism: {micro_batch}")
    rate = first_rate(schedule)
    if rate is not None:
        lines += ["optimizer:", f"  learning_rate: {rate!r}"]
    notes = ["the learning rate decays over steps, which are the whole run's"]
    whole = stages[-1].seen + (schedule.steps - stages[-1].step) * stages[-1].batch_size
    if whole != schedule.examples:
        notes.append(f"the last step is a full one: {whole} examples instead of {schedule.examples}")
    notes += rate_notes(schedule, "Levanter", "go on from a checkpoint with another learning_rate to keep them")
    return Export("\n".join(lines), tuple(notes))


def from_levanter(text: str) -> Schedule:
    """The schedule of a Levanter configuration: of its `train_batch_size` and `num_train_steps`.

    Args:
        text: YAML as `to_levanter` writes it, or as Levanter's own examples have it.

    Raises:
        ValueError: a key is missing, the list does not begin at 0 or does not rise, or a value is not positive.
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
    return Schedule(tuple(segments), seen, None if rate is None else float(rate))
