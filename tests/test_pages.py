"""The code on the pages of the documentation runs, a page's blocks one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
FIRST = DOCS / "tutorials/pytorch.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(page for page in DOCS.rglob("*.md") if BLOCK.search(page.read_text()))
CONTINUES = re.compile(r"continues\s+\[the first tutorial\]\([^)]*pytorch\.md\)")


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's blocks in a namespace, each at its own line of the page, so that a traceback leads there."""
    text = page.read_text()
    torch.manual_seed(0)
    for block in BLOCK.finditer(text):
        above = text.count("\n", 0, block.start(1))
        exec(compile("\n" * above + block.group(1), str(page), "exec"), names)
    return names


def fresh() -> dict[str, Any]:
    # As in a script: joblib's processes are sent what __main__ defines.
    return {"__name__": "__main__"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first tutorial leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        return run(FIRST, fresh())


def test_the_first_tutorial_runs(first: dict[str, Any]) -> None:
    assert first["plan"].goal.loss == 0.35


@pytest.mark.parametrize("page", [p for p in PAGES if p != FIRST], ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_code_of_a_page_runs(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict(request.getfixturevalue("first")) if CONTINUES.search(page.read_text()) else fresh()
    monkeypatch.chdir(tmp_path)
    run(page, names)
