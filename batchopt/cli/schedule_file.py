"""Finding a schedule in the file of a schedule, or of a plan."""

from __future__ import annotations

from pathlib import Path

from batchopt._codec import read_text, record_name
from batchopt.errors import RecordError
from batchopt.planning.plan import Plan
from batchopt.schedules.schedule import Schedule


def load_schedule(path: Path) -> Schedule:
    """The schedule in a file; of a plan's file, the plan's own.

    Raises:
        RecordError: the file holds neither, or cannot be read.
    """
    try:
        text = read_text(path)
        # By the name without its version, so that a plan of a newer batchopt is told as what it is.
        is_plan = record_name(text) == Plan.SCHEMA.rpartition("/")[0]
        return Plan.from_json(text).schedule if is_plan else Schedule.from_json(text)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
