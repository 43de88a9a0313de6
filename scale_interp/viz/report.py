"""One HTML page that holds a whole analysis and needs no network. Its layout is in templates/report.html.jinja."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..core.template import render
from ..data.question import Question
from ..data.question_card import question_card
from ..errors import DataError

Item: TypeAlias = str | go.Figure | Callable[..., go.Figure] | pd.DataFrame | Question | tuple[Question, str]
Block: TypeAlias = dict[str, Any]
"""What the template shows: its kind (paragraph, figure, table or questions) and its content."""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it.

    Args:
        heading: plain text.
        body: paragraphs of plain text, figures, tables and questions (alone, or as a pair with a note). A figure is shown as it is
            drawn; a function that takes `dark` and returns a figure is drawn as the reader's screen is, dark or light.

    >>> Section("Result", ["No head stands out."]).heading
    'Result'
    """

    heading: str
    body: Sequence[Item]


def write_report(path: str | Path, *, title: str, sections: Sequence[Section], meta: Mapping[str, Any]) -> None:
    """Write one self-contained HTML page: contents, sections, and a table of provenance at the end.

    plotly.js is embedded once and nothing is fetched. Neighbouring questions are shown side by side as cards.

    Args:
        path: the file to write; its folder is made where it is missing.
        title: the page's heading.
        sections: what the page shows, in this order.
        meta: provenance, one row per entry.

    Raises:
        DataError: an item is not a paragraph, figure, table or question. Nothing is written then.

    >>> import tempfile
    >>> write_report(f"{tempfile.mkdtemp()}/report.html", title="Heads", sections=[Section("Result", ["None."])], meta={"seed": 0})
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..core.files import write_bytes

    numbers = count(1)
    page = render(
        "scale_interp.viz",
        "report.html.jinja",
        title=title,
        sections=[{"heading": section.heading, "blocks": _blocks(section.body, numbers)} for section in sections],
        meta={name: _plain(value) for name, value in meta.items()},
        plotly=Markup(get_plotlyjs()),
    )
    write_bytes(Path(path), page.encode())


def _blocks(items: Sequence[Item], numbers: count[int]) -> list[Block]:
    out: list[Block] = []
    for item in items:
        if isinstance(item, Question | tuple):
            if not out or out[-1]["kind"] != "questions":
                out.append({"kind": "questions", "cards": []})
            out[-1]["cards"].append(question_card(*item) if isinstance(item, tuple) else question_card(item))
        else:
            out.append(_block(item, numbers))
    return out


def _block(item: Any, numbers: count[int]) -> Block:
    if isinstance(item, str):
        return {"kind": "paragraph", "text": item}
    if isinstance(item, pd.DataFrame):
        return _table(item)
    if callable(item):
        return _figure(item(dark=False), item(dark=True), next(numbers))
    if isinstance(item, go.Figure):
        return _figure(item, None, next(numbers))
    raise DataError(f"a section holds a {type(item).__name__}: give str, plotly Figure, pandas DataFrame or Question")


def _figure(light: go.Figure, dark: go.Figure | None, number: int) -> Block:
    # In a script only "<" could end it.
    modes = [Markup(str(figure.to_json()).replace("<", "\\u003c") if figure is not None else "null") for figure in (light, dark)]
    size = (light.layout.width, light.layout.height)
    return {
        "kind": "figure",
        "id": f"figure-{number}",
        "name": str(light.layout.title.text or "figure").replace("<br>", " "),
        "modes": "light" if dark is None else "both",
        "size": size if all(size) else None,
        "light": modes[0],
        "dark": modes[1],
    }


def _table(frame: pd.DataFrame) -> Block:
    # The numbers that a selection of rows leaves in the index are not content.
    counted = frame.index.name is None and pd.api.types.is_integer_dtype(frame.index)
    frame = frame.reset_index(drop=counted)
    for column in frame.select_dtypes("float"):
        # pandas makes floats of whole numbers where one is missing.
        if frame[column].isna().any() and (frame[column].dropna() % 1 == 0).all():
            frame[column] = frame[column].astype("Int64")
    kinds = ["number" if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool else "text" for c in frame.columns]
    rows = [list(zip(map(_cell, row), kinds, strict=True)) for row in frame.itertuples(index=False, name=None)]
    return {"kind": "table", "head": list(zip(map(str, frame.columns), kinds, strict=True)), "rows": rows}


def _cell(value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if not pd.api.types.is_float(value):
        return str(value)
    # Three decimals would show a small p-value as 0.
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
