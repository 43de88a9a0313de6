"""The flow between groups of tokens, layer by layer: one curve with its interval per knockout."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill
from .heatmap import layer_ticks
from .theme import frame, look

if TYPE_CHECKING:
    from ..attribution import FlowMap

WIDTH, HEIGHT = 760, 420
PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 340, 230, 3
KNOCKOUT = "knockout "
ABOVE = 28
"""Height of a panel's title in pixels."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def flow_curves(maps: Sequence[FlowMap], *, by_relation: bool = False, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw the fall of the metric by layer, one curve per knockout with a band of its 95% interval.

    Args:
        maps: knockouts by layer with the same metric, six at most.
        by_relation: whether to draw one panel per relation.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no maps or too many, a map is by head, they differ in metric or layers, or no question has a relation.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> figure = flow_curves([si.knockout(vlm, qs, window=3), si.knockout(vlm, qs, target="object", window=3)])
    """
    _require(maps)
    windows, alike = len({m.window for m in maps}), all(m.method.startswith(KNOCKOUT) for m in maps)
    names = sorted({r for m in maps for r in m.relations if r is not None}) if by_relation else []
    if by_relation and not names:
        raise DataError("by_relation=True: no question of these maps has a relation; leave it out")
    columns = min(2 if len(names) == 4 else COLUMNS, len(names)) if names else 1
    rows = ceil(len(names) / columns) if names else 1
    counts = {name: max(sum(r == name for r in m.relations) for m in maps) for name in names}
    titles = [f"{name} ({counts[name]})" for name in names] if names else None
    fig = make_subplots(rows, columns, subplot_titles=titles, shared_xaxes=True, shared_yaxes="all", **_gaps(rows, columns))
    for place in range(max(1, len(names))):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for i, one in enumerate(maps):
            called = one.method.removeprefix(KNOCKOUT) if alike else one.method
            called += f", window {one.window}" if windows > 1 else ""
            if not names:
                _curve(fig, one, called, i, dark, True, **at)
            elif names[place] in one.relations:
                _curve(fig, one.relation(names[place]), called, i, dark, place == 0, **at)
        fig.add_hline(y=0, line={"color": look(dark).muted, "width": 1}, layer="below", **at)
    axis = layer_ticks(_ticks(len(maps[0].scores)), maps[0].provenance)
    titled = {"title_text": axis.pop("title_text")}
    fig.update_xaxes(tickmode="array", **axis)
    fig.update_xaxes(**titled, row=rows)
    fig.update_yaxes(title_text=f"fall of {maps[0].unit}", col=1)
    for empty in range(len(names), rows * columns) if names else ():
        fig.update_xaxes(visible=False, row=empty // columns + 1, col=empty % columns + 1)
        fig.update_xaxes(**titled, showticklabels=True, row=empty // columns, col=empty % columns + 1)
    width, height = (WIDTH, HEIGHT) if not names else (max(WIDTH, PANEL_WIDTH * columns + 60), PANEL_HEIGHT * rows + 60)
    frame(fig, title or _title(maps), _notes(maps), width=width, height=height, dark=dark, legend=len(maps) > 1)
    if names:  # the legend is above the panels' titles
        fig.update_layout(margin_t=fig.layout.margin.t + ABOVE, height=fig.layout.height + ABOVE, legend_y=1 + ABOVE / (height - 60))
    return fig


def _gaps(rows: int, columns: int) -> dict[str, float]:
    return {"horizontal_spacing": 0.05 if columns > 1 else 0.0, "vertical_spacing": 0.24 / rows if rows > 1 else 0.0}


def _require(maps: Sequence[FlowMap]) -> None:
    if not 1 <= len(maps) <= len(DASHES):
        raise DataError(f"{len(maps)} maps: give 1 to {len(DASHES)} FlowMaps")
    if by_head := next((m for m in maps if m.by != "layer"), None):
        raise DataError(f"{by_head.method!r} is by head: give maps by layer, or draw its heads with head_heatmap")
    if len({(m.unit, len(m.scores)) for m in maps}) > 1:
        raise DataError(f"the maps differ in metric or layers ({', '.join(f'{m.unit}, {len(m.scores)}' for m in maps)}): give alike ones")


def _curve(fig: go.Figure, one: FlowMap, name: str, i: int, dark: bool, named: bool, **at: int) -> None:
    low, high = (end.numpy() for end in one.interval())
    layers, colour = list(range(len(low))), look(dark).series[i]
    band = {"x": [*layers, *layers[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "fillcolor": fill(colour, 0.16)}
    fig.add_trace(go.Scatter(**band, mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=str(i)), **at)
    fig.add_trace(
        go.Scatter(
            x=layers,
            y=one.scores.numpy(),
            customdata=list(zip(low, high, strict=True)),
            hovertemplate="layer %{x}: %{y:+.3f} [%{customdata[0]:+.3f}, %{customdata[1]:+.3f}]",
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": DASHES[i]},
            marker={"size": 7, "symbol": SYMBOLS[i]},
            name=name,
            legendgroup=str(i),
            showlegend=named,
        ),
        **at,
    )


def _ticks(L: int) -> list[int]:
    return list(range(0, L, max(1, ceil(L / 12))))


def _title(maps: Sequence[FlowMap]) -> str:
    return maps[0].method if len(maps) == 1 else "Knockout: what the answer loses when tokens do not see others"


def _notes(maps: Sequence[FlowMap]) -> str:
    windows = sorted({m.window for m in maps})
    n = sorted({len(m.effects) for m in maps})
    one = windows == [1]
    layers = "one layer" if one else f"a window of {' or '.join(map(str, windows))} layers around the named one"
    return f"All heads of {layers}; {' or '.join(map(str, n))} questions; bands: 95% interval over images."
