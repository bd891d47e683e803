"""Settings of every test, made before torch and numpy are loaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# The models are tiny, and pytest's workers are as many as the cores: a second thread in each costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from made_once import FOLDER

# A loaded machine is no failure of an algebraic law.
settings.register_profile("batchopt", deadline=None)
settings.load_profile("batchopt")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker inherits the variable
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="batchopt-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without this, the search for doctests imports each module that tests share once more, under another name."""
    is_shared = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_shared else None


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a forecast takes seconds otherwise, a third of one for each point."""
    monkeypatch.setattr("batchopt.visualization.forecast.POINTS", 3)
