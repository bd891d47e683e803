"""Pieces of an HTML page. All text that comes in is escaped here, and nowhere else is HTML put together."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from batchopt.report.captions import HOW_TO_READ

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CONTENT_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The page may run what it holds and load nothing: it is the same offline."""

_STYLE = """
:root { --ink: #1a1a1a; --soft: #5b6470; --line: #dde1e6; --tint: #f6f7f9; --doubt: #d55e00; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; margin: 0 0 4px; }
h2 { font-size: 1.35rem; margin: 48px 0 8px; padding-top: 14px; border-top: 2px solid var(--line); }
p { margin: 8px 0; max-width: 75ch; }
p.soft, figcaption { color: var(--soft); }
nav { margin: 12px 0 0; font-size: 0.95rem; }
nav a { color: var(--accent); margin-right: 14px; white-space: nowrap; }
ul { margin: 8px 0; padding-left: 22px; max-width: 75ch; }
li { margin: 4px 0; }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 4px; white-space: nowrap; }
thead th { vertical-align: bottom; }
th, td { padding: 5px 18px 5px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.chosen td { background: var(--tint); font-weight: 600; }
.doubts { border-left: 4px solid var(--doubt); background: #fdf4ee; padding: 8px 18px; margin: 14px 0; }
figure { margin: 20px 0 28px; }
figcaption { font-size: 0.92rem; max-width: 80ch; }
.pair { display: flex; flex-wrap: wrap; gap: 0 36px; }
@media print {
  body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { break-after: avoid; }
  figure, table, .doubts { break-inside: avoid; }
}
"""

_CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]}
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;/=>?@^_`{|}~"
"""Of base 85 as Python writes it, with a slash for the angle bracket, which HTML would read as its own."""
_DRAW = """
(async () => {
  const packed = document.getElementById("plotly"), text = packed.textContent, words = text.length / 5;
  const digits = Object.fromEntries([...DIGITS].map((digit, value) => [digit, value]));
  const bytes = new DataView(new ArrayBuffer(4 * words));
  for (let word = 0; word < words; word++) {
    let value = 0;
    for (let k = 0; k < 5; k++) value = 85 * value + digits[text[5 * word + k]];
    bytes.setUint32(4 * word, value);
  }
  const zipped = new Blob([bytes.buffer.slice(0, Number(packed.dataset.bytes))]);
  const script = document.createElement("script");
  script.textContent = await new Response(zipped.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
  for (const held of document.querySelectorAll("script[data-figure]")) {
    const figure = JSON.parse(held.textContent);
    Plotly.newPlot(held.dataset.figure, figure.data, figure.layout, CONFIG);
  }
})().catch((error) => {
  for (const place of document.querySelectorAll("div.figure"))
    place.textContent = "This figure needs a browser of 2023 or later (" + error + ").";
});
"""
"""Unpacks plotly's script, which is five megabytes as it is and two like this, and draws what the page holds."""


class Section(NamedTuple):
    """A part of the page: its title and its HTML."""

    title: str
    body: str


def page(title: str, intro: str, sections: Sequence[Section]) -> str:
    """The whole page, with plotly's script in it if a section holds a figure."""
    scripts = _scripts() if any("<figure" in section.body for section in sections) else ""
    links = "".join(f'<a href="#{_anchor(section)}">{html.escape(section.title)}</a>' for section in sections)
    body = "\n".join(
        f'<section id="{_anchor(section)}"><h2>{html.escape(section.title)}</h2>\n{section.body}</section>'
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{intro}
<nav>{links}</nav>
{body}
</main>
{scripts}
</body>
</html>
"""


def paragraph(text: str, *, soft: bool = False) -> str:
    """A paragraph of plain text; `soft` for what matters less."""
    return f'<p class="soft">{html.escape(text)}</p>\n' if soft else f"<p>{html.escape(text)}</p>\n"


def bullets(items: Iterable[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>\n"


def doubts(items: Iterable[str]) -> str:
    """A list of sentences that warn."""
    return f'<div class="doubts">{bullets(items)}</div>\n'


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, chosen: int | None = None) -> str:
    """A small table of text cells; row number `chosen` stands out. Nothing where there are no rows."""
    lines = [
        f"<tr{' class=' + chr(34) + 'chosen' + chr(34) if i == chosen else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    if not lines:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    caption = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{caption}{head}<tbody>{"".join(lines)}</tbody></table></div>\n'


def side_by_side(*blocks: str) -> str:
    """Blocks beside each other where the page is wide enough."""
    return f'<div class="pair">{"".join(blocks)}</div>\n'


def figure(drawing: go.Figure, *, name: str) -> str:
    """A plotly figure with a sentence on how to read it.

    Args:
        drawing: the figure.
        name: its key in `HOW_TO_READ`, unique on the page.
    """
    place, height = f"figure-{name}", drawing.layout.height or 460
    # A slash or an exclamation mark after an angle bracket would end the script.
    content = drawing.to_json().replace("<", "\\u003c")
    return (
        f'<figure><div id="{place}" class="figure" style="height: {height}px"></div>'
        f'<script type="application/json" data-figure="{place}">{content}</script>'
        f"<figcaption>{html.escape(HOW_TO_READ[name])}</figcaption></figure>\n"
    )


@cache
def _scripts() -> str:
    import plotly.offline

    zipped = gzip.compress(plotly.offline.get_plotlyjs().encode(), 9, mtime=0)
    packed = base64.b85encode(zipped, pad=True).decode().replace("<", "/")
    draw = re.sub("DIGITS|CONFIG", lambda name: json.dumps({"DIGITS": _DIGITS, "CONFIG": _CONFIG}[name[0]]), _DRAW)
    return (
        f'<script type="text/plain" id="plotly" data-bytes="{len(zipped)}">{packed}</script>\n<script>{draw}</script>'
    )


def _anchor(section: Section) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in section.title.lower())
