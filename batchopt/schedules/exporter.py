"""Schedules in the syntax of training frameworks.

An exporter is one file with one function, and a line in `EXPORTERS`. It checks units, divisibility and order at export,
because most consumers fail when a stage begins, in the middle of a run, or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from batchopt._checks import check_one_of
from batchopt.schedules.megatron import to_megatron
from batchopt.schedules.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Export:
    """A schedule for one consumer.

    Attributes:
        text: what to paste.
        notes: what the consumer does not do, and who rescales the learning rate.
    """

    text: str
    notes: tuple[str, ...]


Exporter = Callable[..., tuple[str, tuple[str, ...]]]

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
    """
    check_one_of("to", to, tuple(EXPORTERS))
    exporter = EXPORTERS[to]
    parameters = inspect.signature(exporter).parameters
    for name in options:
        if name not in parameters:
            known = ", ".join(name for name in parameters if name != "schedule")
            raise TypeError(f"{to} takes the options {known}, got {name}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in (*options, "schedule")]
    if missing:
        raise ValueError(f"{to} needs {', '.join(missing)}")
    text, notes = exporter(schedule, **options)
    return Export(text, notes)
