"""Settings of every test, made before torch and numpy are loaded."""

from __future__ import annotations

import os

# The models are tiny, and pytest's workers are as many as the cores: a second thread in each costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A loaded machine is no failure of an algebraic law.
settings.register_profile("batchopt", deadline=None)
settings.load_profile("batchopt")


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a forecast takes seconds otherwise, a third of one for each point."""
    monkeypatch.setattr("batchopt.visualization.forecast.POINTS", 3)
