"""What contributors and their servers read: forms of issues, checks, contributing, citation."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: \d\.\d+$", name)]

# An sdist has neither of the two.
needs_github = pytest.mark.skipif(not GITHUB.exists(), reason="unpacked from an sdist")


def form(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    return fields


@needs_github
@pytest.mark.parametrize("name", ["bug", "wrong_forecast", "feature"])
def test_a_form_has_what_github_asks_for(name: str) -> None:
    fields = form(name)
    assert fields["name"]
    assert fields["description"]
    questions = [part for part in fields["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in questions} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(part["attributes"]["label"] for part in questions)
    assert len({part["id"] for part in questions}) == len(questions)


@needs_github
def test_the_facts_that_the_bug_form_asks_for_are_printed() -> None:
    text = next(part for part in form("bug")["body"] if part["id"] == "facts")["attributes"]["description"]
    code = re.search(r'python -c "\n(.*)\n"', text, re.DOTALL)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)
    assert re.findall(r"^\w+", done.stdout, re.MULTILINE)[:3] == ["batchopt", "torch", "optuna"]
    assert "threads" in done.stdout


@needs_github
def test_the_checks_run_what_ci_runs_on_every_python() -> None:
    job = yaml.safe_load((GITHUB / "workflows" / "checks.yml").read_text())["jobs"]["checks"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    assert (ROOT / ".ci" / "run").exists()


def test_distributions_are_tried_on_every_python() -> None:
    assert list(runpy.run_path(str(ROOT / "release" / "install.py"))["VERSIONS"]) == PYTHONS


def test_contributing_names_files_and_targets_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    targets = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_citation_names_the_papers_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == PROJECT["authors"]
    readme = (ROOT / "README.md").read_text()
    assert all(paper["url"] in readme for paper in citation["references"])
