"""Check a built site: every link leads to a file and an anchor, and no page loads anything from the network.

python docs/scripts/check_site.py out/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
"""What a browser fetches by itself; a link of an `a` it follows only when asked."""
NOT_FETCHED = {"canonical", "alternate", "next", "prev"}
"""Kinds of `link` that only name an address."""


class _Page(HTMLParser):
    """Addresses and anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        for name in ("href", "src"):
            if name not in found or found.get("rel") in NOT_FETCHED:
                continue
            (self.loaded if (tag, name) in LOADED else self.links).append(found[name])


def faults_of(site: Path) -> list[str]:
    """What is wrong with a site, a line each."""
    pages: dict[Path, _Page] = {}
    for file in sorted(site.rglob("*.html")):
        pages[file.resolve()] = page = _Page()
        page.feed(file.read_text())
    faults = [] if pages else [f"{site} holds no page: build it first"]
    for file, page in pages.items():
        where = file.relative_to(site.resolve())
        faults += [f"{where} loads {address}" for address in page.loaded if _is_outside(address)]
        if file.name == "404.html":  # its links are from the root of a server
            continue
        for address in page.links + page.loaded:
            if not _is_outside(address) and not address.startswith(("mailto:", "data:", "javascript:")):
                faults += _fault_of(address, file, where, pages)
    return faults


def _is_outside(address: str) -> bool:
    return address.startswith(("http://", "https://", "//"))


def _fault_of(address: str, file: Path, where: Path, pages: dict[Path, _Page]) -> list[str]:
    path, anchor = urldefrag(address)
    target = (file.parent / unquote(path)).resolve() if path else file
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return [f"{where} links to {address}, which is not there"]
    if anchor and target in pages and unquote(anchor) not in pages[target].anchors:
        return [f"{where} links to {address}, and there is no such anchor"]
    return []


if __name__ == "__main__":
    found = faults_of(Path(sys.argv[1]))
    sys.stderr.write("".join(f"{fault}\n" for fault in found))
    sys.exit(1 if found else 0)
