"""One HTML page that holds a whole analysis and needs no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ..data.question import Question
from ..data.question_card import question_card
from ..errors import DataError

Item: TypeAlias = str | go.Figure | Callable[..., go.Figure] | pd.DataFrame | Question | tuple[Question, str]

# The policy makes the promise that nothing is fetched a matter of the browser's, not of our care.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1a1d23; --muted: #565d6b; --paper: #f6f7f9; --panel: #ffffff; --line: #dfe2e7; --link: #0062a3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --muted: #a8b0bd; --paper: #111419; --panel: #1a1e25; --line: #333a45; --link: #7cc0f5 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1140px; margin: 0 auto; padding: 32px 20px 64px; overflow-wrap: anywhere }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 16px }
h2 { font-size: 21px; line-height: 1.3; margin: 44px 0 12px; padding-top: 12px; border-top: 1px solid var(--line) }
p { max-width: 75ch; margin: 0 0 14px; white-space: pre-line }
a { color: var(--link) }
nav ol { margin: 0; padding-left: 1.5em }
.panel { overflow-x: auto; margin: 0 0 18px; border: 1px solid var(--line); border-radius: 8px; background: var(--panel) }
.figure.light { background: #fff; color-scheme: only light }
.figure.both { background: #fff }
@media (prefers-color-scheme: dark) { .figure.both { background: #15181e } }
.figure > div { width: max-content; margin: 0 auto }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 14px; margin: 0 0 18px }
.cards article { background: var(--panel) }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: 7px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
tr:last-child > * { border-bottom: 0 }
thead th { color: var(--muted); font-weight: 600; white-space: nowrap }
.text { min-width: 12em }
.number { text-align: right; white-space: nowrap }
.meta td { overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px }
.meta th { width: 13em; font-weight: 600 }
@media (max-width: 600px) { main { padding: 20px 12px 40px } h1 { font-size: 24px } .meta th { width: 8em } }
"""
# Plotly's full row of buttons would cover the titles.
CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
SWITCH = """
const figures = [], dark = matchMedia("(prefers-color-scheme: dark)"), finger = matchMedia("(pointer: coarse)").matches;
function draw({id, light, dark: night}) {
  const f = dark.matches && night || light;
  Plotly.newPlot(id, f.data, finger ? {...f.layout, dragmode: false} : f.layout, CONFIG);
}
dark.addEventListener("change", () => figures.forEach(draw));
""".replace("CONFIG", json.dumps(CONFIG))
"""Draws the figures, and those that there are two of anew where the reader turns the light on or off.

A finger on a figure moves the page, as otherwise nobody could scroll past it on a phone.
"""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: paragraphs of plain text, figures, tables, questions (alone, or with a note).

    A function that takes `dark` and draws a figure is shown as the reader's screen is, dark or light; a figure stays as it is drawn.

    >>> Section("Result", ["No head stands out."]).heading
    'Result'
    """

    heading: str
    body: Sequence[Item]


def write_report(path: str | Path, *, title: str, sections: Sequence[Section], meta: Mapping[str, Any]) -> None:
    """Write one self-contained HTML page: contents, sections, and `meta` as a table of provenance at the end.

    plotly.js is embedded once; nothing is fetched. Neighbouring questions stand side by side as cards.
    Raises DataError for an item that is no paragraph, figure, table or question; then nothing is written.

    >>> import tempfile
    >>> write_report(f"{tempfile.mkdtemp()}/report.html", title="Heads", sections=[Section("Result", ["None."])], meta={"seed": 0})
    """
    # Here and not above: this module would make `import scale_interp.viz` wait for torch.
    from ..core.files import write_bytes

    numbers = count(1)
    parts = [(f"section-{i}", section.heading, _body(section.body, numbers)) for i, section in enumerate(sections, 1)]
    parts.append(("provenance", "Provenance", _meta(meta)))
    contents = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in parts)
    articles = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>{body}</section>' for anchor, heading, body in parts
    )
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script><script>{SWITCH}</script></head>"
        f'<body><main><h1>{escape(title)}</h1><nav aria-label="Contents"><ol>{contents}</ol></nav>{articles}</main></body></html>\n'
    )
    write_bytes(Path(path), page.encode())


def _body(items: Sequence[Item], numbers: count[int]) -> str:
    out: list[str] = []
    cards: list[str] = []
    for item in [*items, None]:
        if isinstance(item, Question | tuple):
            cards.append(question_card(*item) if isinstance(item, tuple) else question_card(item))
            continue
        if cards:
            out.append(f'<div class="cards">{"".join(cards)}</div>')
            cards = []
        if item is not None:
            out.append(_item(item, numbers))
    return "".join(out)


def _item(item: Any, numbers: count[int]) -> str:
    if isinstance(item, str):
        return f"<p>{escape(item)}</p>"
    if isinstance(item, pd.DataFrame):
        return _table(item)
    if callable(item):
        return _figure(item(dark=False), item(dark=True), f"figure-{next(numbers)}")
    if isinstance(item, go.Figure):
        return _figure(item, None, f"figure-{next(numbers)}")
    raise DataError(f"a section holds a {type(item).__name__}: give str, plotly Figure, pandas DataFrame or Question")


def _figure(light: go.Figure, dark: go.Figure | None, anchor: str) -> str:
    # In a script only "<" could end it.
    modes = [str(figure.to_json()).replace("<", "\\u003c") if figure is not None else "null" for figure in (light, dark)]
    size = f"width:{light.layout.width}px;height:{light.layout.height}px" if light.layout.width and light.layout.height else ""
    return (
        f'<div class="panel figure {"light" if dark is None else "both"}" role="figure" aria-label="{_name(light)}" tabindex="0">'
        f'<div id="{anchor}" style="{size}"></div></div>'
        f'<script>figures.push({{id: "{anchor}", light: {modes[0]}, dark: {modes[1]}}}); draw(figures.at(-1))</script>'
    )


def _name(figure: go.Figure) -> str:
    return escape(str(figure.layout.title.text or "figure").replace("<br>", " "))


def _table(frame: pd.DataFrame) -> str:
    # The numbers that a selection of rows leaves behind are no content.
    counted = frame.index.name is None and pd.api.types.is_integer_dtype(frame.index)
    frame = frame.reset_index(drop=counted)
    for column in frame.select_dtypes("float"):
        # pandas makes floats of whole numbers where one is missing.
        if frame[column].isna().any() and (frame[column].dropna() % 1 == 0).all():
            frame[column] = frame[column].astype("Int64")
    kinds = ["number" if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool else "text" for c in frame.columns]
    head = "".join(f'<th scope="col" class="{kind}">{escape(str(c))}</th>' for c, kind in zip(frame.columns, kinds, strict=True))
    rows = (
        "".join(f'<td class="{kind}">{escape(_cell(v))}</td>' for v, kind in zip(row, kinds, strict=True))
        for row in frame.itertuples(index=False, name=None)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="panel" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if not pd.api.types.is_float(value):
        return str(value)
    # Three decimals would show a small p-value as 0.
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"


def _meta(meta: Mapping[str, Any]) -> str:
    if not meta:
        return "<p>None given.</p>"
    rows = "".join(f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(_plain(v))}</td></tr>' for k, v in meta.items())
    return f'<div class="panel meta"><table><tbody>{rows}</tbody></table></div>'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
