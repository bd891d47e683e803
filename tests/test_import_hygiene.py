"""What an import loads: seconds for everyone who only reads a plan."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "optuna", "sklearn", "plotly", "pydantic"}


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after a statement."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "may_load"),
    [
        ("import batchopt", set()),
        ("import batchopt; batchopt.Schedule, batchopt.Plan, batchopt.Estimate, batchopt.ProbeReport", set()),
        ("import batchopt; batchopt.Schedule.constant(8, examples=64).to_json()", {"pydantic"}),
        ("import batchopt; batchopt.Forecast", {"sklearn"}),
        ("import batchopt.cli.main", {"sklearn"}),
    ],
)
def test_an_import_loads_what_it_needs(statement: str, may_load: set[str]) -> None:
    assert loaded_by(statement) <= may_load


def test_the_check_can_fail() -> None:
    assert loaded_by("import pydantic") == {"pydantic"}


@pytest.mark.parametrize("name", ["batchopt.cli.main", "batchopt.forecasting.forecast"])
def test_neither_distributions_nor_optimizers_of_scipy_are_loaded_before_they_are_used(name: str) -> None:
    code = f"import {name}, sys; print({{'scipy.stats', 'scipy.optimize'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
