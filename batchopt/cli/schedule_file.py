"""Finding a schedule in the file of a schedule, or of a plan."""

from __future__ import annotations

from pathlib import Path

from batchopt._codec import record_name
from batchopt.planning.plan import Plan
from batchopt.schedules.schedule import Schedule


def load_schedule(path: Path) -> Schedule:
    """The schedule in a file; of a plan's file, the plan's own.

    Raises:
        RecordError: the file holds neither, or cannot be read.
    """
    # By the name without its version, so that a plan of a newer batchopt is told as what it is.
    is_plan = record_name(path) == Plan.SCHEMA.rpartition("/")[0]
    return Plan.load(path).schedule if is_plan else Schedule.load(path)
