"""Megatron-LM and megatron-core 0.18 and later: --step-batch-size-schedule.

On the command line Megatron reads thresholds as tokens, divides them by the sequence length (rounding down), and
switches at the first step that begins at or after a threshold, as a `Schedule` does. It checks divisibility only when a
stage begins. Earlier versions know linear ramps only (--rampup-batch-size), and later ones ignore that argument.
"""

from __future__ import annotations

import shlex
from itertools import pairwise

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.stages import first_rate, rate_notes, share_of
from batchopt.schedules.schedule import Schedule, Segment

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


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
    share_of(schedule, micro_batch, data_parallel)
    stages = " ".join(
        f"{_count(segment.start_examples * tokens_per_example)}:{segment.batch_size}" for segment in schedule.segments
    )
    samples = _whole_steps(schedule)
    text = (
        f'--seq-length {tokens_per_example} --micro-batch-size {micro_batch} --step-batch-size-schedule "{stages}" '
        f"--train-samples {samples} --lr-decay-samples {samples}"
    )
    if schedule.learning_rate is not None:
        text += f" --lr {first_rate(schedule)!r}"
    return Export(text, _notes(schedule, samples))


def from_megatron(text: str) -> Schedule:
    """The schedule of a Megatron command line: of --step-batch-size-schedule, --train-samples and --seq-length.

    Without --seq-length thresholds are samples, as Megatron's own calculator has it.

    Raises:
        ValueError: an argument is missing, or the schedule is none that Megatron would follow.
    """
    words = shlex.split("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    given = {name: value for name, value in pairwise(words) if name.startswith("--")}
    missing = [name for name in ("--step-batch-size-schedule", "--train-samples") if name not in given]
    if missing:
        raise ValueError(f"a Megatron command line with a schedule must have {' and '.join(missing)}")
    per_example = int(given.get("--seq-length", 1))
    stages = []
    for entry in given["--step-batch-size-schedule"].replace(",", " ").split():
        threshold, _, size = entry.partition(":")
        try:
            stages.append((int(_tokens(threshold)) // per_example, int(size)))
        except ValueError:
            raise ValueError(f"an entry of --step-batch-size-schedule must be THRESHOLD:SIZE, got {entry!r}") from None
    stages.sort()
    if not stages or stages[0][0] != 0:
        raise ValueError(f"the first threshold must be 0, got {stages[0][0] if stages else 'none'}")
    numbers = {}
    for name in ("--train-samples", "--lr"):
        try:
            numbers[name] = float(given[name]) if name in given else None
        except ValueError:
            raise ValueError(f"{name} must be a number, got {given[name]!r}") from None
    segments = tuple(Segment(start, size) for start, size in stages)
    return Schedule(segments, int(numbers["--train-samples"] or 0), numbers["--lr"])


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
    remedy = (
        "to keep them, end the run at each switch and go on from its checkpoint with that --lr and "
        "--override-opt_param-scheduler"
    )
    return (*notes, *rate_notes(schedule, "Megatron", remedy))


def _count(tokens: int) -> str:
    """A threshold as Megatron reads it; K only where it is exact."""
    return f"{tokens // 1000}K" if tokens and tokens % 1000 == 0 else str(tokens)


def _tokens(text: str) -> float:
    unit = _UNITS.get(text[-1:].upper())
    return float(text) if unit is None else float(text[:-1]) * unit
