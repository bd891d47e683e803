"""Schedules in the syntax of training frameworks.

An exporter is one file with one function, and a line in `EXPORTERS`. It checks units, divisibility and order at export,
because most consumers fail when a stage begins, in the middle of a run, or not at all.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from batchopt._checks import check_one_of
from batchopt.schedules.export import Export
from batchopt.schedules.megatron import to_megatron
from batchopt.schedules.schedule import Schedule

__all__ = ["EXPORTERS", "Export", "Exporter", "export_schedule"]


class Exporter(Protocol):
    """A function of a schedule and of what its consumer has to know, by keyword."""

    def __call__(self, schedule: Schedule, *args: Any, **options: Any) -> Export:
        """The schedule for the consumer."""
        ...


EXPORTERS: dict[str, Exporter] = {"megatron": to_megatron}


def export_schedule(schedule: Schedule, to: str, **options: int) -> Export:
    """A schedule in the syntax of `to`, a key of `EXPORTERS`.

    Args:
        schedule: the schedule.
        to: the consumer.
        **options: what the consumer needs to know; see its exporter.

    Raises:
        ValueError: an unknown consumer, a missing option, or a schedule that the consumer cannot follow.
        TypeError: an option that the exporter does not know.

    Example:
        >>> schedule = Schedule.constant(64, examples=6_400)
        >>> export = export_schedule(schedule, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2)
        >>> export.text.partition("--step")[2]
        '-batch-size-schedule "0:64" --train-samples 6400 --lr-decay-samples 6400'
    """
    check_one_of("to", to, tuple(EXPORTERS))
    exporter = EXPORTERS[to]
    takes = dict(list(inspect.signature(exporter).parameters.items())[1:])
    for name in options:
        if name not in takes:
            raise TypeError(f"{to} takes the options {', '.join(takes)}, got {name}")
    missing = [name for name, option in takes.items() if option.default is option.empty and name not in options]
    if missing:
        raise ValueError(f"{to} needs {', '.join(missing)}")
    return exporter(schedule, **options)
