"""OLMo-core: `BatchSizeSchedulerCallback`, in tokens.

It multiplies the learning rate by the square root of the ratio at every switch, and cannot be told not to; it knows
integer factors only, refuses a size twice in a row, and adjusts Adam-like optimizers only. A switch to a size that is r
times as large waits until the number of batches is a multiple of r.

Warm-up and decay are counted in tokens, with ConstantWithWarmup, LinearWithWarmup, CosWithWarmup and WSD, whose decay
ends with the run; another curve cannot be given.
"""

from __future__ import annotations

import math
from itertools import pairwise

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import check_ends_with_run, known_shape
from batchopt.schedules.exporters.stages import Stage, first_rate, listed, share_of, stages_of
from batchopt.schedules.schedule import Schedule

NEAR = 0.01
"""Learning rates that differ by no more than this share are taken to be the same."""


def to_olmo_core(schedule: Schedule, *, tokens_per_example: int, micro_batch: int, data_parallel: int) -> Export:
    """Python for the configuration of an OLMo-core trainer.

    Args:
        schedule: the schedule; its batch sizes must change by integer factors.
        tokens_per_example: the sequence length.
        micro_batch: examples of `rank_microbatch_size`.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size is no integer factor of the one before, or not divisible by micro_batch x
            data_parallel, or the learning rate follows a curve that OLMo-core does not know.
    """
    check_count("tokens_per_example", tokens_per_example)
    share_of(schedule, micro_batch, data_parallel)
    stages = stages_of(schedule, sizes_only=True)
    for before, after in pairwise(stage.batch_size for stage in stages):
        if max(before, after) % min(before, after):
            raise ValueError(
                "OLMo-core: batch size can only be changed by an integer factor, "
                f"got {after} after {before}: plan with powers of two"
            )
    sizes = listed([stage.batch_size * tokens_per_example for stage in stages])
    starts = listed([f"Duration.tokens({stage.start_examples * tokens_per_example})" for stage in stages])
    lines = [
        f"rank_microbatch_size = {micro_batch * tokens_per_example}",
        f"global_batch_size = {stages[0].batch_size * tokens_per_example}",
        f"max_duration = Duration.tokens({schedule.examples * tokens_per_example})",
    ]
    rate = first_rate(schedule)
    if rate is not None:
        lines.append(f"lr = {rate!r}")
    lines += _scheduler(schedule, tokens_per_example)
    if len(stages) > 1:
        lines.append(f"BatchSizeSchedulerCallback(batch_sizes=[{sizes}], schedule=[{starts}])")
    return Export("\n".join(lines), tuple(_notes(schedule, stages)))


def _notes(schedule: Schedule, stages: list[Stage]) -> list[str]:
    notes = ["the last batch is dropped where it is not whole"]
    if schedule.learning_rate_schedule is None:
        notes.insert(0, "give the learning-rate scheduler units of tokens, or its horizon is wrong")
    if len(stages) > 1:
        notes.append(
            "an increase by a factor r waits until the number of batches is a multiple of r: it may come late by up to "
            "r - 1 batches"
        )
    wanted = [stage.multiplier / stages[0].multiplier for stage in stages]
    given = [math.sqrt(stage.batch_size / stages[0].batch_size) for stage in stages]
    if any(abs(math.log(one / other)) > NEAR for one, other in zip(wanted, given, strict=True)):
        notes.append(
            "OLMo-core rescales the learning rate by the square root of the ratio, whatever the schedule says: by "
            f"{listed([f'{x:.3g}' for x in given])} where the schedule has {listed([f'{x:.3g}' for x in wanted])}"
        )
    elif len(stages) > 1:
        notes.append("OLMo-core rescales the learning rate by the square root of the ratio, as the schedule does")
    if len(stages) != len(stages_of(schedule)):
        notes.append("changes of the learning rate without a change of batch size are lost")
    if schedule.learning_rate is None and stages[0].multiplier != 1.0:
        notes.append(f"multiply your own learning rate by {stages[0].multiplier:.6g}")
    return notes


def _scheduler(schedule: Schedule, tokens: int) -> list[str]:
    """Warm-up and decay, in tokens; nothing where they are left open."""
    shape = known_shape(schedule, "OLMo-core", ("constant", "linear", "cosine", "wsd"))
    if shape is None:
        return []
    warmup, end = shape.warmup_examples * tokens, shape.end_examples * tokens
    units = "units=SchedulerUnits.tokens"
    if shape.name == "constant":
        made = f"ConstantWithWarmup({units}, warmup={warmup})" if warmup else "ConstantScheduler()"
    elif shape.name == "wsd":
        check_ends_with_run(shape, schedule, "OLMo-core's WSD")
        decay = f"decay={shape.decay_examples * tokens}, decay_fraction=None"
        made = f"WSD({units}, warmup={max(1, warmup)}, {decay})"  # a warm-up of 0 is divided by
    else:
        kind = "LinearWithWarmup" if shape.name == "linear" else "CosWithWarmup"
        made = f"{kind}({units}, warmup={warmup}, t_max={end}, alpha_f=0.0)"
    return [f"scheduler = {made}"]
