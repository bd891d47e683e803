"""NeMo and Megatron-Bridge: `rampup_batch_size` beside `global_batch_size`, a linear ramp.

Written from their documentation; there is no package on PyPI whose code could check it without a GPU. Warm-up and decay
have Megatron-Bridge's names (its SchedulerConfig); its shapes are Megatron's, and it knows no other curve.
"""

from __future__ import annotations

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.megatron import STYLES
from batchopt.schedules.exporters.rates import known_shape
from batchopt.schedules.exporters.stages import first_rate, ramp_notes, ramp_of, rate_notes, share_of
from batchopt.schedules.schedule import Schedule


def to_nemo(schedule: Schedule, *, micro_batch: int, data_parallel: int) -> Export:
    """Keys of NeMo's model and trainer configuration, as YAML.

    Args:
        schedule: the schedule; its batch sizes must not fall, and must divide into micro-batches over all ranks.
        micro_batch: `micro_batch_size`, in examples.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size falls, or is not divisible by micro_batch x data_parallel, or the learning rate follows
            a curve that NeMo does not know.
    """
    share_of(schedule, micro_batch, data_parallel)
    ramp = ramp_of(schedule, "a NeMo ramp")
    lines = [f"micro_batch_size: {micro_batch}", f"global_batch_size: {(schedule(0) if ramp is None else ramp.end)}"]
    if ramp is not None:
        lines.append(f"rampup_batch_size: [{ramp.start}, {ramp.increment}, {ramp.samples}]")
    lines.append(f"train_samples: {schedule.examples}")
    lines += _decay_lines(schedule)
    rate = first_rate(schedule)
    if rate is not None:
        lines.append(f"lr: {rate!r}")
    notes = [
        "written from NeMo's documentation, not checked by its code",
        "where the horizon is given in iterations (max_steps), a ramp makes the learning rate end early: use samples",
        *([] if ramp is None else ramp_notes(schedule, ramp)),
        *rate_notes(schedule, "NeMo", "go on from a checkpoint with another rate to keep them"),
    ]
    return Export("\n".join(lines), tuple(notes))


def _decay_lines(schedule: Schedule) -> list[str]:
    """Warm-up and decay; the horizon alone where the schedule leaves them to the training."""
    shape = known_shape(schedule, "NeMo", tuple(STYLES))
    if shape is None:
        return [f"lr_decay_samples: {schedule.examples}"]
    end = schedule.examples if shape.name == "constant" else shape.end_examples
    lines = [
        f"lr_decay_style: {STYLES[shape.name]}",
        f"lr_warmup_samples: {shape.warmup_examples}",
        f"lr_decay_samples: {end}",
    ]
    if shape.name == "wsd":
        lines += ["lr_wsd_decay_style: linear", f"lr_wsd_decay_samples: {shape.decay_examples}"]
    return [*lines, "min_lr: 0.0"]
