"""The notebook, cell by cell in a kernel, as small as it can be; only the installation is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "batchopt.ipynb"
SMALL = "PROBE_EXAMPLES, GOAL = 30_000, 1.0"

nbformat = pytest.importorskip("nbformat")


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def tagged(notebook: Any, tag: str) -> list[Any]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def test_it_is_valid_and_holds_no_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_installs_batchopt_first(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert tagged(notebook, "install") == code[:1]
    assert code[0].source == "%pip install --quiet batchopt"


def test_it_runs(notebook: Any, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    [parameters], [install] = tagged(notebook, "parameters"), tagged(notebook, "install")
    assert set(re.findall(r"^(\w+) =", parameters.source, re.MULTILINE)) == {"PROBE_EXAMPLES", "GOAL"}
    parameters.source, install.source = SMALL, ""
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = {cell.id: [*map(dict, cell.outputs)] for cell in notebook.cells if cell.cell_type == "code"}
    assert "Batch size" in shown["plan"][0]["text"]
    assert "loss at the end: predicted" in shown["training"][0]["text"]
    for name in ("forecast", "plan", "training"):
        assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in shown[name])
    right = re.match(r"([\d.]+)% of 9,000", shown["accuracy"][0]["text"])
    assert right is not None
    assert float(right[1]) > 30  # by chance one of ten
    assert (tmp_path / "schedule.json").exists()
    assert (tmp_path / "report.html").exists()
