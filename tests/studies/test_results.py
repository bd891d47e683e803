"""The table of what the studies found."""

from __future__ import annotations

import runpy
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_page_holds_the_table_of_the_results_that_are_kept() -> None:
    lines = runpy.run_path(str(STUDIES / "results.py"))["table"]().splitlines()
    assert len(lines) == 2 + len(list(STUDIES.glob("*/result-*.json")))
    page = (STUDIES / "README.md").read_text()
    assert all(line in page for line in lines)
