"""Hooks of `mkdocs build`: pages of the repository that lie beside docs/, and the `--help` of every command.

Links on pages are written as they hold in the repository. Those that lead out of docs/ are changed here to the page
that the site has of the same file, or to plain text where it has none.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "benchmarks/README.md", "studies/README.md", "studies/*/README.md")
"""Files that are pages of the site as well, at their own place."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
HELP = re.compile(r"^<!-- help: ([\w-]+) -->$", re.MULTILINE)
COLUMNS = "110"
"""Width of a help text."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages beside docs/."""
    from mkdocs.structure.files import File

    for place in pages_beside():
        files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Change links out of docs/, and fill in help texts."""
    return with_help(with_links(markdown, page.file.src_uri))


def pages_beside() -> list[str]:
    """Their places in the repository."""
    found = (path for pattern in BESIDE for path in REPOSITORY.glob(pattern))
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in found)


def with_links(markdown: str, place: str) -> str:
    """The text of a page whose links lead to pages of the site.

    Args:
        markdown: as it is in the repository.
        place: of the page in the site.
    """
    beside = pages_beside()
    folder = posixpath.dirname(place if place in beside else f"docs/{place}")

    def changed(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        file = posixpath.normpath(posixpath.join(folder, target))
        if file not in beside and not file.startswith("docs/"):
            return text
        there = file if file in beside else file.removeprefix("docs/")
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    return LINK.sub(changed, markdown)


def with_help(markdown: str) -> str:
    """The text of a page with `<!-- help: COMMAND -->` replaced by what `batchopt COMMAND --help` prints."""
    if not HELP.search(markdown):
        return markdown
    return HELP.sub(lambda marker: f"```text\n{help_of(marker[1])}```", markdown)


def help_of(command: str) -> str:
    """What `batchopt COMMAND --help` prints.

    Raises:
        KeyError: there is no such command.
    """
    import argparse

    from batchopt.cli.main import _parser

    os.environ["COLUMNS"] = COLUMNS  # argparse takes the terminal's width from here
    (verbs,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    text: str = verbs.choices[command].format_help()
    return text
