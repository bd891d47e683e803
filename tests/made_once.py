"""What takes seconds to make is made once, for all of pytest's workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock  # torch depends on it

from batchopt._codec import Record

FOLDER = "BATCHOPT_TESTS_MADE"
"""The variable that names the folder of this session, which `conftest.py` makes and removes."""


R = TypeVar("R", bound=Record)


def folder_of_session() -> Path | None:
    """The folder that all workers share; None in a process that pytest did not start."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def record(kind: type[R], name: str, make: Callable[[], R]) -> R:
    """The record of that name, as every worker reads it; the first to ask makes it, and others wait."""
    folder = folder_of_session()
    if folder is None:
        return make()
    file = folder / f"{name}.json"
    once(file, lambda: make().save(file))
    return kind.load(file)


def once(place: Path, make: Callable[[], object]) -> None:
    """Call it in the first worker to come here; the others wait until it has ended well."""
    done = place.with_name(f"{place.name}.done")
    with FileLock(f"{place}.lock"):
        if not done.exists():
            make()
            done.touch()
