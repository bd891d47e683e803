"""What the documents promise."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_example_of_the_readme_runs() -> None:
    result = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, optionflags=doctest.REPORT_ONLY_FIRST_FAILURE
    )
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_first_screen_of_the_readme_names_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert re.findall(r"^make \w+", first_screen, re.MULTILINE) == ["make demo", "make test"]
    assert "PYTHON=" in first_screen


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "studies/README.md"])
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    file = ROOT / document
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()) if "://" not in link]
    # The picture is made by hand from a demo's report.
    missing = [link for link in links if not (file.parent / link).exists() and link != "docs/report.png"]
    assert missing == []


def test_commands_in_the_readme_are_understood() -> None:
    from batchopt.cli.main import _parser

    lines = re.findall(r"^batchopt (.+?)(?:\s{2,}#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        assert _parser().parse_args(line.split()).verb == line.split()[0]
