"""Which frameworks a schedule can be exported to, and which formats can be read back.

An exporter is one file with one function, and a line in `EXPORTERS`. It checks units, divisibility and order at export,
because most consumers fail when a stage begins, in the middle of a run, or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from batchopt._checks import check_one_of
from batchopt.schedules.exporters.deepspeed import to_deepspeed
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.levanter import from_levanter, to_levanter
from batchopt.schedules.exporters.lightning import to_lightning
from batchopt.schedules.exporters.loops import to_bs_scheduler, to_ignite, to_torch
from batchopt.schedules.exporters.maxtext import to_maxtext
from batchopt.schedules.exporters.megatron import from_megatron, to_megatron
from batchopt.schedules.exporters.megatron_ramp import to_megatron_ramp
from batchopt.schedules.exporters.nanogns import to_nanogns
from batchopt.schedules.exporters.nemo import to_nemo
from batchopt.schedules.exporters.olmo_core import to_olmo_core
from batchopt.schedules.schedule import Schedule, check_schedule

__all__ = ["EXPORTERS", "IMPORTERS", "Export", "Exporter", "export_schedule", "import_schedule", "options_of"]


class Exporter(Protocol):
    """A function of a schedule and of what its consumer has to know, by keyword."""

    def __call__(self, schedule: Schedule, *args: Any, **options: Any) -> Export:
        """The schedule for the consumer."""
        ...


EXPORTERS: dict[str, Exporter] = {
    "megatron": to_megatron,
    "megatron-ramp": to_megatron_ramp,
    "nemo": to_nemo,
    "olmo-core": to_olmo_core,
    "levanter": to_levanter,
    "maxtext": to_maxtext,
    "deepspeed": to_deepspeed,
    "lightning": to_lightning,
    "ignite": to_ignite,
    "bs-scheduler": to_bs_scheduler,
    "torch": to_torch,
    "nanogns": to_nanogns,
}
IMPORTERS: dict[str, Callable[[str], Schedule]] = {"megatron": from_megatron, "levanter": from_levanter}
"""Formats that hold all of a schedule but its learning-rate multipliers."""


def options_of(to: str) -> tuple[list[str], list[str]]:
    """The options that the exporter of `to` needs, and those that it may take as well."""
    options = list(inspect.signature(EXPORTERS[to]).parameters.values())[1:]
    needed = [option.name for option in options if option.default is option.empty]
    return needed, [option.name for option in options if option.name not in needed]


def export_schedule(schedule: Schedule, to: str, **options: int) -> Export:
    """A schedule in the syntax of `to`, a key of `EXPORTERS`.

    Args:
        schedule: the schedule.
        to: the consumer.
        **options: what the consumer needs to know; see its exporter.

    Raises:
        ValueError: an unknown consumer, a missing option, or a schedule that the consumer cannot follow.
        TypeError: something else than a schedule, or an option that the exporter does not know.

    Example:
        >>> schedule = Schedule.constant(64, examples=6_400)
        >>> export = export_schedule(schedule, "megatron", tokens_per_example=1024, micro_batch=8, data_parallel=2)
        >>> export.text.partition("--step")[2]
        '-batch-size-schedule "0:64" --train-samples 6400 --lr-decay-samples 6400'
    """
    check_schedule(schedule)
    check_one_of("to", to, tuple(EXPORTERS))
    needed, more = options_of(to)
    for name in options:
        if name not in needed + more:
            raise TypeError(f"{to} takes the options {', '.join(needed + more)}, got {name}")
    missing = [name for name in needed if name not in options]
    if missing:
        raise ValueError(f"{to} needs {', '.join(missing)}")
    return EXPORTERS[to](schedule, **options)


def import_schedule(text: str, source: str) -> Schedule:
    """The schedule that a configuration of `source`, a key of `IMPORTERS`, states.

    Args:
        text: a command line or configuration, as its exporter writes it.
        source: the framework.

    Raises:
        ValueError: an unknown framework, or a text that states no schedule.

    Example:
        >>> text = '--step-batch-size-schedule "0:64 10K:128" --train-samples 20000'
        >>> import_schedule(text, "megatron").steps
        235
    """
    check_one_of("source", source, tuple(IMPORTERS))
    return IMPORTERS[source](text)
