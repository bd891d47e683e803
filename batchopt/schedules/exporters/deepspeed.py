"""DeepSpeed: `engine.set_train_batch_size`, called in the loop.

DeepSpeed steps whenever its count of micro-batches is a multiple of the accumulation steps, and does not reset that
count at a change: a switch at any other moment mis-scales a gradient, silently. So the code that is exported switches
only where the count is a multiple of the new accumulation steps.

Its schedulers count steps, warm up over two at least, and are a step late: the first two steps of a warm-up have rate
zero. They hold the rate after the warm-up (WarmupLR) or let it fall to the end, linearly (WarmupDecayLR) or as a cosine
(WarmupCosineLR); a stable part before a decay, or another curve, cannot be given.
"""

from __future__ import annotations

import json
from typing import Any

from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import in_steps, known_shape, step_notes
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
        ValueError: a batch size is not divisible by micro_batch x data_parallel, or the learning rate follows a curve
            that DeepSpeed does not know.
    """
    share = share_of(schedule, micro_batch, data_parallel)
    stages = stages_of(schedule, sizes_only=True)
    first = stages[0].batch_size
    config: dict[str, Any] = {
        "train_batch_size": first,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": first // share,
    }
    scheduler, told = _scheduler(schedule)
    if scheduler:
        config["scheduler"] = scheduler
    rate = first_rate(schedule)
    if rate is not None:
        config["optimizer"] = {"params": {"lr": rate}}
    merge = "merge these keys into your configuration"
    lost = [*told, *rate_notes(schedule, "DeepSpeed", "set the optimizer's lr at the switch to keep them")]
    if len(stages) == 1:
        return Export(json.dumps(config, indent=2), (merge, *lost))
    code = _CODE.format(sizes=[(stage.start_examples, stage.batch_size) for stage in stages], share=share)
    notes = [
        merge,
        "a switch waits until the count of micro-batches is a multiple of the new accumulation steps: it comes late by "
        "fewer micro-batches than that",
        *lost,
    ]
    if schedule.learning_rate_schedule is None:
        notes.append(
            f"give the learning-rate scheduler {schedule.steps} steps: the number that the first batch size gives is "
            "wrong"
        )
    return Export(f"{json.dumps(config, indent=2)}\n{code}", tuple(notes))


def _scheduler(schedule: Schedule) -> tuple[dict[str, Any], list[str]]:
    """The configuration's section `scheduler`, and what it does otherwise; the horizon alone where all is left open."""
    shape = known_shape(schedule, "DeepSpeed", ("constant", "linear", "cosine"))
    if shape is None:
        return {"params": {"total_num_steps": schedule.steps}}, []
    if shape.name == "constant" and not shape.warmup_examples:
        return {}, ["a constant learning rate: leave the section `scheduler` out"]
    steps, rate = in_steps(shape, schedule), first_rate(schedule)
    warmup = max(2, steps.warmup_examples)
    params: dict[str, Any] = {"warmup_num_steps": warmup, "warmup_type": "linear"}
    notes = ["the first two steps of the warm-up have rate zero"]
    if warmup > steps.warmup_examples:
        notes = [f"DeepSpeed warms up over two steps at least, the schedule over {steps.warmup_examples}"]
    if shape.name == "cosine":
        params |= {"total_num_steps": steps.end_examples, "warmup_min_ratio": 0.0, "cos_min_ratio": 0.0}
    else:
        params |= {"warmup_min_lr": 0.0} | ({} if rate is None else {"warmup_max_lr": rate})
        params |= {"total_num_steps": steps.end_examples} if shape.name == "linear" else {}
        if rate is None:
            notes.append("add your learning rate as warmup_max_lr: WarmupDecayLR takes 0.001 without it")
    kind = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}[shape.name]
    return {"type": kind, "params": params}, [*notes, *step_notes(schedule, steps, "DeepSpeed")]
