"""Megatron-LM and megatron-core 0.18 and later: --step-batch-size-schedule.

On the command line Megatron reads thresholds as tokens, divides them by the sequence length (rounding down), and
switches at the first step that begins at or after a threshold, as a `Schedule` does. It checks divisibility only when a
stage begins. Earlier versions know linear ramps only (--rampup-batch-size), and later ones ignore that argument.

Warm-up and decay are counted in samples, so they end where the schedule says, whatever the batch sizes; the rate is
read at a step's first sample, so the first step of a warm-up has rate zero. Curves beyond constant, linear, cosine and
a stable rate that falls linearly cannot be given.
"""

from __future__ import annotations

import shlex
from itertools import pairwise

from batchopt._checks import check_count
from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import known_shape
from batchopt.schedules.exporters.stages import first_rate, rate_notes, share_of
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.schedules.shapes import KnownShape

STYLES: dict[ShapeName, str] = {"constant": "constant", "linear": "linear", "cosine": "cosine", "wsd": "WSD"}
"""--lr-decay-style."""
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
        ValueError: a batch size is not divisible by micro_batch x data_parallel, or the learning rate follows a curve
            that Megatron does not know.
    """
    check_count("tokens_per_example", tokens_per_example)
    share_of(schedule, micro_batch, data_parallel)
    stages = " ".join(
        f"{_count(segment.start_examples * tokens_per_example)}:{segment.batch_size}" for segment in schedule.segments
    )
    samples = _whole_steps(schedule)
    text = (
        f'--seq-length {tokens_per_example} --micro-batch-size {micro_batch} --step-batch-size-schedule "{stages}" '
        f"--train-samples {samples} {' '.join(decay_arguments(schedule, samples))}"
    )
    if schedule.learning_rate is not None:
        text += f" --lr {first_rate(schedule)!r}"
    return Export(text, _notes(schedule, samples))


def decay_arguments(schedule: Schedule, samples: int) -> list[str]:
    """Warm-up and decay for the command line; the horizon alone where the schedule leaves them to the training.

    Raises:
        ValueError: the learning rate follows a curve that Megatron does not know.
    """
    shape = known_shape(schedule, "Megatron", tuple(STYLES))
    if shape is None:
        return [f"--lr-decay-samples {samples}"]
    words = [f"--lr-decay-style {STYLES[shape.name]}"]
    if shape.warmup_examples:
        words.append(f"--lr-warmup-samples {shape.warmup_examples}")
    words.append(f"--lr-decay-samples {samples if shape.name == 'constant' else shape.end_examples}")
    if shape.name == "wsd":
        words.append(f"--lr-wsd-decay-style linear --lr-wsd-decay-samples {shape.decay_examples}")
    return [*words, *([] if shape.name == "constant" else ["--min-lr 0.0"])]


def from_megatron(text: str) -> Schedule:
    """The schedule of a Megatron command line: of --step-batch-size-schedule, --train-samples and --seq-length.

    Without --seq-length thresholds are samples, as Megatron's own calculator has it. Warm-up and decay are read where
    --lr-decay-style or --lr-warmup-samples is given.

    Raises:
        ValueError: an argument is missing, the schedule is none that Megatron would follow, or the learning rate
            follows a curve that is not read: another style, or one that ends above zero.
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
    samples = int(numbers["--train-samples"] or 0)
    return Schedule(segments, samples, numbers["--lr"], _rates_of(given, samples))


def _rates_of(given: dict[str, str], samples: int) -> LearningRateSchedule | None:
    """Warm-up and decay of a command line; None where it says nothing of them."""
    if not {"--lr-decay-style", "--lr-warmup-samples"} & set(given):
        return None
    style = given.get("--lr-decay-style", "linear")
    names = {megatrons: name for name, megatrons in STYLES.items()}
    if style not in names:
        raise ValueError(f"--lr-decay-style must be one of {', '.join(names)} to be read, got {style}")
    if style == "WSD" and given.get("--lr-wsd-decay-style") != "linear":
        raise ValueError(
            f"--lr-wsd-decay-style must be linear to be read, got {given.get('--lr-wsd-decay-style', 'none')} "
            "(exponential is Megatron's default)"
        )
    numbers = {"--lr-warmup-samples": 0.0, "--lr-decay-samples": float(samples), "--lr-wsd-decay-samples": 0.0}
    for name in (*numbers, "--min-lr"):
        try:
            numbers[name] = float(given.get(name, numbers.get(name, 0.0)))
        except ValueError:
            raise ValueError(f"{name} must be a number, got {given[name]!r}") from None
    if numbers["--min-lr"] != 0.0 and style != "constant":
        raise ValueError(f"--min-lr must be 0 to be read, got {given['--min-lr']}")
    warmup, end, falls = (int(numbers[f"--lr-{name}-samples"]) for name in ("warmup", "decay", "wsd-decay"))
    if not 0 <= warmup < end:
        raise ValueError(f"--lr-warmup-samples must be less than --lr-decay-samples, got {warmup} and {end}")
    if style == "WSD" and not 0 < falls <= end - warmup:
        raise ValueError(f"--lr-wsd-decay-samples must be from 1 to {end - warmup}, got {falls}")
    if style == "constant":
        return KnownShape("constant", warmup, warmup, 0).schedule()
    whole = style == "WSD" and falls == end - warmup
    return KnownShape("linear" if whole else names[style], warmup, end, falls).schedule()


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
    ]
    if schedule.learning_rate_schedule is None:
        notes.append(
            "give a warm-up as --lr-warmup-samples; --lr-decay-samples does nothing under a constant --lr-decay-style"
        )
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
