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


# First of all hooks: pytest-xdist reads the marks in its own.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a fixture of ours makes for a session or a module takes long: the tests that share it run in one worker."""
    for item in items:
        made = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        places = {fixture.scope: fixture.baseid for fixture in made if fixture.baseid.startswith("tests/")}
        place = places.get("session", places.get("module"))
        if place is not None:
            item.add_marker(pytest.mark.xdist_group(place))


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a forecast takes seconds otherwise, a third of one for each point."""
    monkeypatch.setattr("batchopt.visualization.forecast.POINTS", 3)
