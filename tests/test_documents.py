"""What the documents promise."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import batchopt
from batchopt.cli.main import _VERBS, _parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "benchmarks/README.md")]
STUDIES = sorted((ROOT / "studies").rglob("README.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def script(name: str) -> ModuleType:
    """A script of docs/scripts/, imported."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places_in(nav: Any) -> list[str]:
    """Pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [place for part in (nav.values() if isinstance(nav, dict) else nav) for place in places_in(part)]


def anchors_of(file: Path) -> set[str]:
    """Anchors of a page's headings, as MkDocs makes them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


def test_the_example_of_the_readme_runs() -> None:
    result = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, optionflags=doctest.REPORT_ONLY_FIRST_FAILURE
    )
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_first_screen_of_the_readme_names_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert re.findall(r"^make \w+", first_screen, re.MULTILINE) == ["make demo", "make test"]
    assert "PYTHON=" in first_screen


@pytest.mark.parametrize("document", [*OTHERS, *STUDIES, *PAGES], ids=name_of)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    missing = []
    for link in LINK.findall(CODE.sub("", document.read_text())):
        target, _, anchor = link.partition("#")
        file = document.parent / target if target else document
        if "://" in link:
            continue
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            missing.append(link)
    assert missing == []


def test_the_navigation_names_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = places_in(site["nav"])
    assert len(named) == len(set(named))
    ours = {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert ours <= set(named)
    assert set(named) - ours <= set(script("site_hooks").pages_beside())


@pytest.mark.parametrize("document", [ROOT / "README.md", *PAGES], ids=name_of)
def test_commands_on_a_page_are_understood(document: Path) -> None:
    code = "\n".join(CODE.findall(document.read_text()))
    for line in re.findall(r"^batchopt (.+?)(?:\s+# .*)?$", code, re.MULTILINE):
        assert _parser().parse_args(line.split()).verb == line.split()[0]


def test_every_command_has_its_section_and_its_help() -> None:
    page = (DOCS / "command-line.md").read_text()
    verbs = [module.__name__.rpartition(".")[2] for module in _VERBS]
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == verbs
    filled = script("site_hooks").with_help(page)
    for module, verb in zip(_VERBS, verbs, strict=True):
        assert f"\n```text\nusage: batchopt {verb} " in filled
        assert module.SUMMARY in filled


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    told = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(told) == len(set(told))
    public = {f"batchopt.{name}" for name in batchopt.__all__ if name != "__version__"}
    assert public == {name for name in told if name.count(".") == 1}


def test_links_on_the_site_lead_to_its_own_pages() -> None:
    with_links = script("site_hooks").with_links
    text = "[a](../../benchmarks/README.md#b), [c](../scale.md), ![d](../x.png), [e](https://x.y), [f](../../Makefile)"
    assert with_links(text, "concepts/law.md") == (
        "[a](../benchmarks/README.md#b), [c](../scale.md), ![d](../x.png), [e](https://x.y), f"
    )
    assert with_links("[a](../docs/scale.md), [b](problem.py)", "studies/README.md") == "[a](../scale.md), b"
    assert with_links("[a](../docs/scale.md)", "benchmarks/README.md") == "[a](../scale.md)"


def test_a_site_that_loads_from_the_network_or_has_dead_links_is_refused(tmp_path: Path) -> None:
    faults_of = script("check_site").faults_of
    page = '<a href="b.html#x">b</a> <a href="https://x.y">x</a> <img src="p.png"> <h1 id="here"></h1>'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<h1 id="x"></h1> <a href="a.html#here">a</a>')
    (tmp_path / "p.png").touch()
    assert faults_of(tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="https://x.y/z.js"></script> <a href="c.html">c</a>')
    assert faults_of(tmp_path) == [
        "a.html links to b.html#x, and there is no such anchor",
        "b.html loads https://x.y/z.js",
        "b.html links to c.html, which is not there",
    ]


def test_the_picture_of_the_gain_shows_what_its_captions_say() -> None:
    gain = script("gain")
    plans, searches = gain.plan_costs(), gain.search_costs()
    assert sum(cost < 1.2 for cost in plans["planned by batchopt"]) == 7
    assert sum(cost < 1.5 for cost in plans["planned by batchopt"]) == 10
    ours, rivals, _ = searches.values()
    assert sum(own < rival for own, rival in zip(ours, rivals, strict=True)) == 9
    assert "seven of eleven" in (DOCS / "index.md").read_text()
