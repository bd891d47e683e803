"""megatron-core up to 0.17, apex and NeMo 1: --rampup-batch-size, a linear ramp.

Batch sizes grow by equal increments after equal numbers of samples; the increment must divide the whole growth.
Megatron-core 0.18 and later accept the argument and ignore it. Warm-up and decay are given as to those.
"""

from __future__ import annotations

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.megatron import decay_arguments
from batchopt.schedules.exporters.stages import first_rate, ramp_notes, ramp_of, rate_notes, share_of
from batchopt.schedules.schedule import Schedule


def to_megatron_ramp(schedule: Schedule, *, micro_batch: int, data_parallel: int) -> Export:
    """Arguments for the command line of older Megatrons.

    Args:
        schedule: the schedule; its batch sizes must not fall, and must divide into micro-batches over all ranks.
        micro_batch: Megatron's --micro-batch-size, in examples.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size falls, or is not divisible by micro_batch x data_parallel, or the learning rate follows
            a curve that Megatron does not know.
    """
    share_of(schedule, micro_batch, data_parallel)
    ramp = ramp_of(schedule, "a Megatron ramp")
    text = f"--micro-batch-size {micro_batch} --global-batch-size {(schedule(0) if ramp is None else ramp.end)}"
    if ramp is not None:
        text += f" --rampup-batch-size {ramp.start} {ramp.increment} {ramp.samples}"
    text += f" --train-samples {schedule.examples} {' '.join(decay_arguments(schedule, schedule.examples))}"
    rate = first_rate(schedule)
    if rate is not None:
        text += f" --lr {rate!r}"
    notes = [
        "for megatron-core up to 0.17: later ones ignore --rampup-batch-size; use --to megatron there",
        "do not pass --train-iters: the learning rate would decay over the wrong horizon",
        *([] if ramp is None else ramp_notes(schedule, ramp)),
        *rate_notes(schedule, "Megatron", "end the run at a switch and go on from its checkpoint with another --lr"),
    ]
    return Export(text, tuple(notes))
