"""Megatron-LM and megatron-core 0.18 and later: --step-batch-size-schedule.

On the command line Megatron reads thresholds as tokens, divides them by the sequence length (rounding down), and
switches at the first step that begins at or after a threshold, as a `Schedule` does. It checks divisibility only when a
stage begins. Earlier versions know linear ramps only (--rampup-batch-size), and later ones ignore that argument.
"""

from __future__ import annotations

from batchopt._checks import check_count
from batchopt.schedules.export import Export
from batchopt.schedules.schedule import Schedule


def to_megatron(schedule: Schedule, *, tokens_per_example: int, micro_batch: int, data_parallel: int) -> Export:
    """Arguments for Megatron's command line.

    The horizon is given in samples: with --train-iters Megatron would compute it from one batch size, and the learning
    rate would not decay as far as it should. It is rounded up to whole steps, since Megatron's last step is a full one.

    Args:
        schedule: the schedule; each batch size must divide into micro-batches over all ranks.
        tokens_per_example: Megatron's --seq-length.
        micro_batch: Megatron's --micro-batch-size, in examples.
        data_parallel: number of data-parallel ranks.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel.
    """
    check_count("tokens_per_example", tokens_per_example)
    check_count("micro_batch", micro_batch)
    check_count("data_parallel", data_parallel)
    _check_divisible(schedule, micro_batch * data_parallel)
    stages = " ".join(
        f"{_count(segment.start_examples * tokens_per_example)}:{segment.batch_size}" for segment in schedule.segments
    )
    samples = _whole_steps(schedule)
    text = (
        f'--seq-length {tokens_per_example} --micro-batch-size {micro_batch} --step-batch-size-schedule "{stages}" '
        f"--train-samples {samples} --lr-decay-samples {samples}"
    )
    if schedule.learning_rate is not None:
        text += f" --lr {schedule.learning_rate * schedule.segments[0].learning_rate_multiplier!r}"
    return Export(text, _notes(schedule, samples))


def _check_divisible(schedule: Schedule, share: int) -> None:
    for segment in schedule.segments:
        if segment.batch_size % share:
            raise ValueError(
                f"every batch size must be a multiple of micro_batch x data_parallel = {share}, "
                f"got {segment.batch_size}: plan with multiple_of={share}"
            )


def _whole_steps(schedule: Schedule) -> int:
    """Examples of the run if its last step is not cut short."""
    seen = 0
    for seen, _ in schedule.batches():  # noqa: B007  (the last one is wanted)
        pass
    return seen + schedule(seen)


def _notes(schedule: Schedule, samples: int) -> tuple[str, ...]:
    notes = [
        "needs megatron-core 0.18 or later",
        "do not pass --global-batch-size, --train-iters or --decrease-batch-size-if-needed as well",
        "give a warm-up as --lr-warmup-samples; --lr-decay-samples does nothing under a constant --lr-decay-style",
    ]
    if samples != schedule.examples:
        notes.append(f"the last step is a full one: {samples} samples instead of {schedule.examples}")
    first, *later = [segment.learning_rate_multiplier for segment in schedule.segments]
    if any(multiplier != first for multiplier in later):
        shown = ", ".join(f"{multiplier / first:.3g}" for multiplier in (first, *later))
        notes.append(
            f"Megatron does not rescale the learning rate: the factors {shown} of the stages are lost; to keep them, "
            "end the run at each switch and go on from its checkpoint with that --lr and --override-opt_param-scheduler"
        )
    elif schedule.learning_rate is None and first != 1.0:
        notes.append(f"multiply your --lr by {first:.6g}")
    return tuple(notes)


def _count(tokens: int) -> str:
    """A threshold as Megatron reads it; K only where it is exact."""
    return f"{tokens // 1000}K" if tokens and tokens % 1000 == 0 else str(tokens)
