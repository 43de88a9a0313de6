"""How a notebook shows results: one line that says what the result is, above a small table in the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice
from typing import Any, ClassVar

MOST = 8
LONGEST = 120
"""The most characters of a cell; longer text is cut."""
RIGHT, LEFT = "text-align:right;padding:2px 8px", "text-align:left;padding:2px 8px"


class NotebookView:
    """A result that a notebook shows as its repr above the first rows of its content.

    >>> class Two(NotebookView):
    ...     def __repr__(self):
    ...         return "<Two: 1 < 2>"
    ...     def _notebook_rows(self):
    ...         return [{"head": (3, 1), "score": 0.25}]
    >>> "Two: 1 &lt; 2" in Two()._repr_html_(), "0.250" in Two()._repr_html_()
    (True, True)
    """

    most: ClassVar[int] = MOST
    """The number of rows shown."""

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        """The rows of the table, the most informative first. They must be quick to compute."""
        return ()

    def _repr_html_(self) -> str:
        return notebook_html(repr(self).removeprefix("<").removesuffix(">"), self._notebook_rows(), self.most)


class FigureView(NotebookView):
    """A result that a notebook shows as a plotly figure if it can, and otherwise as its table and repr."""

    def plot(self, **options: Any) -> Any:
        """A plotly figure."""
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return {"text/plain": repr(self), "text/html": self._repr_html_()} | dict(self.plot()._repr_mimebundle_(include, exclude))


def notebook_html(title: str, rows: Iterable[Mapping[str, Any]], most: int = MOST) -> str:
    """A line and a table of the first rows as HTML, escaped and in the page's own colours.

    Args:
        title: The line.
        rows: One mapping per row, from column names to values.
        most: The largest number of rows.

    Returns:
        The HTML.
    """
    found = list(islice(rows, most))
    line = f"<p style='margin:0 0 4px;overflow-wrap:anywhere'>{escape(title)}</p>"
    if not found:
        return f"<div>{line}</div>"
    names = list(dict.fromkeys(name for row in found for name in row))
    # Columns of numbers are aligned to the right.
    side = {name: RIGHT if all(isinstance(row.get(name), int | float | None) for row in found) else LEFT for name in names}
    head = "".join(f"<th style='{side[name]}'>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td style='{side[n]}'>{escape(_cell(row.get(n)))}</td>" for n in names) + "</tr>" for row in found)
    table = f"<table style='border-collapse:collapse'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div style='overflow-x:auto'>{line}{table}</div>"


def _cell(value: Any) -> str:
    if value is None or value != value:  # nan
        return ""
    text = str(value)
    if isinstance(value, float):
        text = f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
