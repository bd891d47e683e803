"""MaxText: `enable_rampup_batch_size`, a linear ramp of the batch size of each device.

Written from its documentation; MaxText is not on PyPI in a form whose code could check it on a CPU.
"""

from __future__ import annotations

from batchopt._checks import check_count
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.stages import check_divisible, first_rate, ramp_notes, ramp_of, rate_notes
from batchopt.schedules.schedule import Schedule


def to_maxtext(schedule: Schedule, *, devices: int) -> Export:
    """Keys of MaxText's configuration, as YAML.

    Args:
        schedule: the schedule; its batch sizes must not fall, and must divide over the devices.
        devices: number of devices that share a batch.

    Raises:
        ValueError: a batch size falls, or is not divisible by the devices.
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
    notes = [
        "written from MaxText's documentation, not checked by its code",
        "the learning rate decays over steps: those given here are the whole run's, with its ramp",
        *([] if ramp is None else ramp_notes(schedule, ramp)),
        *rate_notes(schedule, "MaxText", "go on from a checkpoint with another learning_rate to keep them"),
    ]
    return Export("\n".join(lines), tuple(notes))
