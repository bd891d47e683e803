"""MaxText: `enable_rampup_batch_size`, a linear ramp of the batch size of each device.

Written from its documentation; MaxText is not on PyPI in a form whose code could check it on a CPU. Warm-up and
decay are shares of its steps (`lr_schedule_type` cosine or wsd, whose decay may be all of the run or none of it); after
the end of a decay the rate is zero. Other curves cannot be given.
"""

from __future__ import annotations

import math

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.rates import in_steps, known_shape, step_notes
from batchopt.schedules.exporters.stages import Ramp, check_divisible, first_rate, ramp_notes, ramp_of, rate_notes
from batchopt.schedules.schedule import Schedule


def to_maxtext(schedule: Schedule, *, devices: int) -> Export:
    """Keys of MaxText's configuration, as YAML.

    Args:
        schedule: the schedule; its batch sizes must not fall, and must divide over the devices.
        devices: number of devices that share a batch.

    Raises:
        ValueError: a batch size falls, or is not divisible by the devices, or the learning rate follows a curve that
            MaxText does not know.
    """
    check_count("devices", devices)
    check_divisible(schedule, devices, "devices")
    ramp = ramp_of(schedule, "a MaxText ramp")
    lines = [f"per_device_batch_size: {(schedule(0) if ramp is None else ramp.end) / devices}"]
    if ramp is not None:
        lines += [
            "enable_rampup_batch_size: True",
            f"per_device_batch_size_start: {ramp.start / devices}",
            f"per_device_batch_size_increment: {ramp.increment / devices}",
            f"global_rampup_samples: {ramp.samples}",
        ]
    lines.append(f"steps: {schedule.steps if ramp is None else ramp.steps(schedule.examples)}")
    rate = first_rate(schedule)
    if rate is not None:
        lines.append(f"learning_rate: {rate!r}")
    rates, lost = _rates(schedule, ramp)
    lines += rates
    notes = [
        "written from MaxText's documentation, not checked by its code",
        "the learning rate decays over steps: those given here are the whole run's, with its ramp",
        *lost,
        *([] if ramp is None else ramp_notes(schedule, ramp)),
        *rate_notes(schedule, "MaxText", "go on from a checkpoint with another learning_rate to keep them"),
    ]
    return Export("\n".join(lines), tuple(notes))


def _rates(schedule: Schedule, ramp: Ramp | None) -> tuple[list[str], list[str]]:
    """Warm-up and decay as shares of the steps, and what they do otherwise; nothing where they are left open."""
    shape = known_shape(schedule, "MaxText", ("constant", "linear", "cosine", "wsd"))
    if shape is None:
        return [], []
    of_schedule = in_steps(shape, schedule)
    warmup, end, falls = of_schedule.warmup_examples, of_schedule.end_examples, of_schedule.decay_examples
    if shape.name == "constant":
        end = schedule.steps
    if ramp is not None:
        end = ramp.steps(schedule.examples if shape.name == "constant" else shape.end_examples)
        warmup = ramp.steps(shape.warmup_examples)
        falls = min(end - warmup, end - ramp.steps(shape.end_examples - shape.decay_examples)) if falls else 0
    lines = [
        f"lr_schedule_type: {'cosine' if shape.name == 'cosine' else 'wsd'}",
        f"learning_rate_schedule_steps: {end}",
        f"warmup_steps_fraction: {_share(warmup, end)}",
        "learning_rate_final_fraction: 0.0",
    ]
    if shape.name != "cosine":
        share = 1.0 - _share(warmup, end) if shape.name == "linear" else _share(falls, end)
        lines += [f"wsd_decay_steps_fraction: {share}", "wsd_decay_style: linear"]
    return lines, step_notes(schedule, of_schedule, "MaxText")


def _share(steps: int, whole: int) -> float:
    """A share of the steps that MaxText, which rounds down, reads as so many."""
    share = steps / whole
    return share if int(whole * share) == steps else math.nextafter(share, 2.0)
