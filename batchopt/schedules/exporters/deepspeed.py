"""DeepSpeed: `engine.set_train_batch_size`, called in the loop.

DeepSpeed steps whenever its count of micro-batches is a multiple of the accumulation steps, and does not reset that
count at a change: a switch at any other moment mis-scales a gradient, silently. So the code that is exported switches
only where the count is a multiple of the new accumulation steps.
"""

from __future__ import annotations

import json

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.stages import first_rate, rate_notes, share_of, stages_of
from batchopt.schedules.schedule import Schedule

_CODE = """\
BATCH_SIZES = {sizes}  # (examples seen, batch size)

def follow_schedule(engine, examples_seen):
    \"\"\"Call after every engine.step(), with the examples that the optimizer's steps have seen.\"\"\"
    size = [size for start, size in BATCH_SIZES if examples_seen >= start][-1]
    if size != engine.train_batch_size() and engine.micro_steps % (size // {share}) == 0:
        engine.set_train_batch_size(size)"""


def to_deepspeed(schedule: Schedule, *, micro_batch: int, data_parallel: int) -> Export:
    """The configuration's batch keys, as JSON, and Python for the loop.

    Args:
        schedule: the schedule.
        micro_batch: `train_micro_batch_size_per_gpu`, in examples.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel.
    """
    share = share_of(schedule, micro_batch, data_parallel)
    stages = stages_of(schedule, sizes_only=True)
    first = stages[0].batch_size
    config = {
        "train_batch_size": first,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": first // share,
        "scheduler": {"params": {"total_num_steps": schedule.steps}},
    }
    rate = first_rate(schedule)
    if rate is not None:
        config["optimizer"] = {"params": {"lr": rate}}
    merge = "merge these keys into your configuration"
    lost = rate_notes(schedule, "DeepSpeed", "set the optimizer's lr at the switch to keep them")
    if len(stages) == 1:
        return Export(json.dumps(config, indent=2), (merge, *lost))
    code = _CODE.format(sizes=[(stage.start_examples, stage.batch_size) for stage in stages], share=share)
    notes = [
        merge,
        "a switch waits until the count of micro-batches is a multiple of the new accumulation steps: it comes late by "
        "fewer micro-batches than that",
        f"give the learning-rate scheduler {schedule.steps} steps: the number that the first batch size gives is wrong",
        *lost,
    ]
    return Export(f"{json.dumps(config, indent=2)}\n{code}", tuple(notes))
