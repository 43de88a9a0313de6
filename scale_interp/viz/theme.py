"""One look for all figures: colours, fonts, and the frame with title and notes."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from math import ceil

import plotly.graph_objects as go

from .colour import between, readable

FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
FONT_SIZE = 14
NOTE_SIZE = 13
LETTER = 6.6
"""Mean width of a letter of NOTE_SIZE in pixels, to wrap notes and to leave space for labels."""


@dataclass(frozen=True)
class Look:
    """The colours of one mode; `diverging` has its neutral colour in the middle.

    `series` began as Okabe and Ito's colours and was adjusted until each has a contrast of 3 to the paper and every two are 12 apart
    (CIEDE2000), also as seen without red, green or blue cones (Machado et al. 2009, doi 10.1109/TVCG.2009.113).
    """

    ink: str
    muted: str
    grid: str
    paper: str
    empty: str
    band: str
    series: tuple[str, ...]
    diverging: tuple[tuple[float, str], ...]
    depth: tuple[float, float]
    """The part of the sequential scale that stands out from the paper."""

    def over(self, share: float) -> str:
        """The colour of text and dots on a cell of this share (-1 to 1) of the diverging colour range."""
        return readable(between(self.diverging, (share + 1) / 2))


LIGHT = Look(
    ink="#1a1d23",
    muted="#565d6b",
    grid="#e3e6eb",
    paper="#ffffff",
    empty="#dfe2e7",
    band="rgba(86, 93, 107, 0.14)",
    series=("#1a6caf", "#ab4d00", "#16976b", "#ae84a9", "#bb8000", "#2496ff", "#585d6a"),
    diverging=((0.0, "#08478c"), (0.25, "#63a5d8"), (0.5, "#f8f8f8"), (0.75, "#f2994a"), (1.0, "#983a05")),
    depth=(0.0, 0.55),
)
DARK = Look(
    ink="#e8eaee",
    muted="#a8b0bd",
    grid="#2d333d",
    paper="#15181e",
    empty="#3a404b",
    band="rgba(168, 176, 189, 0.16)",
    series=("#65a2cc", "#fb9a51", "#29d6a5", "#ffbcde", "#f8eb2f", "#8970ff", "#94a0a5"),
    diverging=((0.0, "#a6d0ff"), (0.25, "#2f78c4"), (0.5, "#1f242c"), (0.75, "#c96d1c"), (1.0, "#ffc993")),
    depth=(0.4, 1.0),
)


def look(dark: bool) -> Look:
    """The colours of the dark or the light mode."""
    return DARK if dark else LIGHT


def frame(
    fig: go.Figure, title: str, notes: str = "", *, width: int, height: int, dark: bool, legend: bool = False, left: int = 80
) -> go.Figure:
    """Give a figure its size, template and title, with notes below the title.

    Args:
        fig: the figure, which is changed.
        title: the title.
        notes: sentences, wrapped to the width.
        width: of the whole figure in pixels.
        height: in pixels, before space for title, notes and legend is added.
        dark: whether the figure is for a dark page.
        legend: whether there is one.
        left: space for the vertical axis in pixels.
    """
    colours = look(dark)
    heading = textwrap.wrap(title, int((width - 40) / (LETTER * 1.35)), break_on_hyphens=False) or [""]
    # A symbol stays on the line of the words that explain it.
    kept = notes.replace("● ", "●\u00a0").replace("□ ", "□\u00a0")
    lines = textwrap.wrap(kept, int((width - 40) / LETTER), break_on_hyphens=False)
    top = 26 + 23 * len(heading) + 18 * len(lines) + (12 + 22 * _legend_rows(fig, width - left - 24) if legend else 12)
    fig.update_layout(
        template=_template(colours),
        width=width,
        height=height + top,
        margin={"t": top, "l": left, "r": 24, "b": 60},
        title={
            "text": "<br>".join(heading),
            "subtitle": {"text": "<br>".join(lines), "font": {"size": NOTE_SIZE, "color": colours.muted}},
            "x": 0,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            # plotly places the last line of a title where it would place a single one.
            "pad": {"l": 20, "t": 18 + 23 * (len(heading) - 1)},
            "font": {"size": 18, "color": colours.ink},
        },
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "tracegroupgap": 0},
    )
    return fig


def _legend_rows(fig: go.Figure, wide: int) -> int:
    names = [trace.name for trace in fig.data if trace.showlegend is not False]
    longest = max((len(name) for name in names), default=0) * LETTER * 1.15 + 48
    return ceil(len(names) / max(1, int(wide / longest)))


def _template(colours: Look) -> go.layout.Template:
    axis = {
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zeroline": False,
        "automargin": True,
        "ticks": "",
        "title": {"standoff": 10, "font": {"size": FONT_SIZE}},
        "tickfont": {"size": 13},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": FONT_SIZE, "color": colours.ink},
            "paper_bgcolor": colours.paper,
            "plot_bgcolor": colours.paper,
            "colorway": list(colours.series),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
            "annotationdefaults": {"font": {"size": 13, "color": colours.ink}},
        }
    )
