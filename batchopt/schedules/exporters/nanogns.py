"""nanoGNS: `grad_accum_schedule.txt`, lines of tokens and accumulation steps, with straight lines between them.

Written from its documentation; the repository is a script, not a package. Its learning rate falls linearly in tokens,
after a linear warm-up, or is constant without one; nothing else can be given.
"""

from __future__ import annotations

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import known_shape
from batchopt.schedules.exporters.stages import rate_notes, share_of, stages_of
from batchopt.schedules.schedule import Schedule


def to_nanogns(schedule: Schedule, *, tokens_per_example: int, micro_batch: int, data_parallel: int = 1) -> Export:
    """The lines of `grad_accum_schedule.txt`.

    Args:
        schedule: the schedule.
        tokens_per_example: the sequence length.
        micro_batch: examples per device and pass.
        data_parallel: number of devices.

    Raises:
        ValueError: a batch size is not divisible by micro_batch x data_parallel, or the learning rate follows a curve
            that nanoGNS does not know.
    """
    check_count("tokens_per_example", tokens_per_example)
    share = share_of(schedule, micro_batch, data_parallel)
    lines, before = [], None
    for stage in stages_of(schedule, sizes_only=True):
        tokens, accumulation = stage.start_examples * tokens_per_example, stage.batch_size // share
        if before is not None:  # no slope: the value before holds up to the switch
            lines.append(f"{tokens - 1}, {before}")
        lines.append(f"{tokens}, {accumulation}")
        before = accumulation
    lines.append(f"{schedule.examples * tokens_per_example}, {before}")
    notes = [
        "written from nanoGNS's documentation, not checked by its code",
        f"the run ends by tokens or iterations: set max_tokens to {schedule.examples * tokens_per_example} and "
        f"max_iters to {schedule.steps}",
        _rates(schedule, tokens_per_example),
        *rate_notes(schedule, "nanoGNS", "go on from a checkpoint with another learning rate to keep them"),
    ]
    return Export("\n".join(lines), tuple(notes))


def _rates(schedule: Schedule, tokens: int) -> str:
    """Which settings give warm-up and decay: the file has no place for them."""
    shape = known_shape(schedule, "nanoGNS", ("constant", "linear"))
    if shape is None:
        return f"its learning rate decays over tokens: set lr_decay_tokens to {schedule.examples * tokens}"
    if shape.name == "constant" and shape.warmup_examples:
        raise ValueError(
            f"nanoGNS knows no warm-up before a constant rate, got one of {shape.warmup_examples} examples: let the "
            "rate fall ('linear'), or leave the warm-up out"
        )
    if shape.name == "constant":
        return "set decay_lr=False for the constant learning rate"
    given = {
        "warmup_tokens": shape.warmup_examples * tokens,
        "lr_decay_tokens": shape.end_examples * tokens,
        "min_lr": 0.0,
    }
    return f"set {', '.join(f'{name}={value}' for name, value in given.items())} for warm-up and decay"
