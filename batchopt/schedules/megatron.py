"""Megatron-LM and megatron-core 0.18 and later: --step-batch-size-schedule.

On the command line Megatron reads thresholds as tokens, divides them by the sequence length, and switches at the first
step that begins at or after a threshold, as a `Schedule` does. It checks divisibility only when a stage begins.
"""

from __future__ import annotations

from batchopt._checks import check_count
from batchopt.schedules.schedule import Schedule

_THOUSAND = 1000


def to_megatron(
    schedule: Schedule, *, tokens_per_example: int, micro_batch: int, data_parallel: int
) -> tuple[str, tuple[str, ...]]:
    """Arguments for Megatron's command line, and notes on what they leave out.

    Args:
        schedule: the schedule; each batch size must divide into micro-batches over all ranks.
        tokens_per_example: Megatron's --seq-length.
        micro_batch: Megatron's --micro-batch-size.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel.
    """
    for name, value in (
        ("tokens_per_example", tokens_per_example),
        ("micro_batch", micro_batch),
        ("data_parallel", data_parallel),
    ):
        check_count(name, value)
    share = micro_batch * data_parallel
    for segment in schedule.segments:
        if segment.batch_size % share:
            raise ValueError(
                f"every batch size must be a multiple of micro_batch x data_parallel = {share}, got {segment.batch_size}: "
                f"plan with multiple_of={share}"
            )
    stages = " ".join(
        f"{_tokens(segment.start_examples * tokens_per_example)}:{segment.batch_size}" for segment in schedule.segments
    )
    text = (
        f'--seq-length {tokens_per_example} --micro-batch-size {micro_batch} --step-batch-size-schedule "{stages}" '
        f"--train-samples {schedule.examples} --lr-decay-samples {schedule.examples}"
    )
    return text, _notes(schedule)


def _notes(schedule: Schedule) -> tuple[str, ...]:
    notes = [
        "do not pass --global-batch-size, --rampup-batch-size or --decrease-batch-size-if-needed as well",
        "the horizon is given in samples: with --train-iters Megatron would compute it from the first batch size",
    ]
    multipliers = [segment.learning_rate_multiplier for segment in schedule.segments]
    if any(multiplier != 1.0 for multiplier in multipliers):
        shown = ", ".join(f"{multiplier:.3g}" for multiplier in multipliers)
        notes.append(f"Megatron does not rescale the learning rate: the multipliers {shown} of the stages are lost")
    if schedule.learning_rate is not None:
        notes.append(f"set --lr {schedule.learning_rate:.6g}")
    return tuple(notes)


def _tokens(count: int) -> str:
    """A threshold as Megatron reads it; K only where it is exact."""
    return f"{count // _THOUSAND}K" if count and count % _THOUSAND == 0 else str(count)
