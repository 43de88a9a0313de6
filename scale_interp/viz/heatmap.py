"""Heatmaps of scores and scalars, layer by head."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .theme import frame, look

if TYPE_CHECKING:
    from ..adapters import ScAle
    from ..attribution import HeadMap
    from ..interventions.edit import Head

WIDTH, HEIGHT = 720, 520
ALPHA = 0.05
PANEL = 208
"""Height in pixels of each of several maps, unless the model has too many layers for it."""
LAYER = 6
"""The smallest height of a cell in pixels."""
COLUMNS = 3
SMALL = 14
"""A frame around a cell with a shorter side than this would hide the cell, so it is drawn slightly outside."""


def head_heatmap(head_map: HeadMap, *, marks: Iterable[Head] = (), title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw scores [L, H] as a heatmap: layers upwards from 0, heads to the right, colours centred on 0.

    A dot marks heads that differ from 0 (Holm, 0.05).

    Args:
        head_map: the scores.
        marks: (layer, head) pairs to outline.
        title: the figure's title; by default the method.
        dark: whether the figure is for a dark page.

    Raises:
        EditError: the map does not have a marked head.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> m = si.attribute(vlm, si.load_questions("scenes/relation", n=16))
    >>> figure = head_heatmap(m, marks=m.top(3))
    """
    outlined = _checked(marks, head_map)
    fig = go.Figure(score_trace(head_map, coloraxis="coloraxis"))
    L, H = head_map.scores.shape
    width, height = _size(L, H)
    cells = width - 190, height - 60
    _dots(fig, head_map, dark, cell=cell_size(L, H, *cells))
    fig.update_layout(coloraxis=coloraxis(dark, limit(head_map.scores.numpy()), head_map.unit))
    layer_head_axes(fig, L, H, *cells, of=head_map.provenance)
    outline(fig, outlined, dark, (cells[0] / H, cells[1] / L))
    Q = len(head_map.per_question)
    notes = f"{Q} question{'s' * (Q != 1)}.{_key([head_map], outlined)}"
    return frame(fig, title or head_map.method, notes, width=width, height=height, dark=dark)


def head_heatmaps(maps: Sequence[HeadMap], *, marks: Iterable[Head] = (), dark: bool = False) -> go.Figure:
    """Draw several maps side by side, each divided by its own largest |score| so that they share a colour scale.

    Hovering shows the scores as measured.

    Args:
        maps: at least one map.
        marks: (layer, head) pairs to outline in every map.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no maps.
        EditError: a map does not have a marked head.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> figure = head_heatmaps([si.ablate(vlm, qs), si.amplify(vlm, qs)], marks=[(3, 1)])
    """
    shares, marked = [limit(m.scores.numpy()) for m in maps], [list(marks)] * len(maps)
    axis = coloraxis(dark, 1.0, "score / largest |score| of its map")
    return panels(maps, [_subtitle(m) for m in maps], shares, axis, "Head scores by method", marks=marked, dark=dark)


def panels(
    maps: Sequence[HeadMap],
    names: Sequence[str],
    divide: Sequence[float],
    axis: dict[str, Any],
    title: str,
    *,
    marks: Sequence[Sequence[Head]],
    dark: bool,
    columns: int = COLUMNS,
) -> go.Figure:
    """Draw maps side by side on one colour axis.

    Args:
        maps: the maps.
        names: the title of each.
        divide: what the scores of each are divided by for their colour.
        axis: the colour axis, as `coloraxis` makes it.
        title: the figure's title.
        marks: the (layer, head) pairs to outline in each.
        dark: whether the figure is for a dark page.
        columns: the largest number of maps in a row.

    Raises:
        DataError: there are no maps.
        EditError: a map does not have a marked head.
    """
    if not maps:
        raise DataError("no maps: give at least one HeadMap")
    L, H = (max(m.scores.shape[axis] for m in maps) for axis in (0, 1))
    columns = min(columns if H <= 48 else 2, len(maps))
    rows = ceil(len(maps) / columns)
    lines = max(name.count("<br>") + 1 for name in names)
    high, gap, aside = max(PANEL, round(LAYER * L)), 18 * lines + 78, 64
    width = 1100 if columns == 3 or H > 48 else {1: 560, 2: 840}[columns]
    wide = (width - 190 - aside * (columns - 1)) / columns
    tall = rows * high + (rows - 1) * gap
    fig = make_subplots(
        rows, columns, subplot_titles=names, horizontal_spacing=aside / (width - 190), vertical_spacing=gap / tall if rows > 1 else 0
    )
    for i, (head_map, part, marked) in enumerate(zip(maps, divide, marks, strict=True)):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        L, H = head_map.scores.shape
        gap = int(cell_size(L, H, wide, high) >= SMALL)
        fig.add_trace(score_trace(head_map, coloraxis="coloraxis", divide=part, xgap=gap, ygap=gap), **at)
        _dots(fig, head_map, dark, cell=cell_size(L, H, wide, high), reach=part * axis["cmax"], **at)
        layer_head_axes(fig, L, H, wide, high, of=head_map.provenance, **at)
        outline(fig, _checked(marked, head_map), dark, (wide / H, high / L), **at)
    fig.update_layout(coloraxis=axis)
    notes = _key(maps, [mark for marked in marks for mark in marked]).strip()
    frame(fig, title, notes, width=width, height=tall + 60, dark=dark)
    return fig.update_layout(margin={"t": fig.layout.margin.t + 18 * lines + 6, "r": 110}, height=fig.layout.height + 18 * lines + 6)


def _subtitle(head_map: HeadMap) -> str:
    scale = textwrap.wrap(f"largest |score| {float(head_map.scores.abs().max()):.3g} {head_map.unit}", 42)
    return f"{'<br>'.join(textwrap.wrap(head_map.method, 34))}<br><span style='font-size:12px'>{'<br>'.join(scale)}</span>"


def scalar_heatmap(scale: ScAle, *, dark: bool = False) -> go.Figure:
    """Draw scalars [L, H] as a heatmap centred on 1, with the MLPs' scalars in a column of their own. Grey: not learned.

    Args:
        scale: the scalars.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> figure = scalar_heatmap(si.ScAle.neutral(si.load("demo")))
    """
    fig = go.Figure(scalar_trace(scale, coloraxis="coloraxis"))
    L, H = scale.scalars.shape
    # A column as wide as one of 64 heads would be invisible.
    wide = max(1.0, H / 14)
    middle = H - 0.5 + wide
    mlp = scale.mlp_scalars.double().numpy()
    learned = scale.mlp_layers or (range(L) if (mlp != 1).any() else [])
    shown = np.full(L, np.nan)
    shown[list(learned)] = mlp[list(learned)]
    fig.add_trace(
        go.Heatmap(
            z=shown[:, None],
            x=[middle - wide / 2, middle + wide / 2],
            y=np.arange(L),
            coloraxis="coloraxis",
            hovertemplate="layer %{y}, MLP<br>scalar %{z:.4f}<extra></extra>",
            hoverongaps=False,
            name="MLPs",
        )
    )
    parts = [scale.scalars[h].item() for h in scale.heads] + shown[list(learned)].tolist()
    reach = limit(np.array(parts or [1.0]) - 1)
    fig.update_layout(coloraxis=coloraxis(dark, reach, "scalar", centre=1.0))
    width, height = _size(L, H)
    layer_head_axes(fig, L, H, width - 190, height - 60)
    for left, right in ((-0.5, H - 0.5), (middle - wide / 2, middle + wide / 2)):
        ground(fig, left, right, L, dark)
    ticks = list(fig.layout.xaxis.tickvals)
    fig.update_xaxes(tickvals=[*ticks, middle], ticktext=[*map(str, ticks), "MLP"], range=[-0.5, middle + wide / 2])
    notes = f"{scale.n_parameters} learned; 1 changes nothing."
    if len(scale.heads) < L * H or len(learned) < L:
        notes += " Grey: not learned."
    return frame(fig, "ScAle scalars", notes, width=width, height=height, dark=dark)


def score_trace(head_map: HeadMap, *, divide: float = 1.0, **options: Any) -> go.Heatmap:
    """The cells of a map, divided by a number for the colour. Hovering shows the undivided values."""
    scores = head_map.scores.numpy()
    table = head_map.to_frame()
    hover = table[["score", "low", "high", "p", "rank"]].to_numpy().reshape(*scores.shape, 5)
    lines = ["layer %{y}, head %{x}", "%{customdata[0]:+.4f} " + head_map.unit, "95%: %{customdata[1]:+.4f} to %{customdata[2]:+.4f}"]
    # A single question (or a single image) has no p-value.
    if np.isfinite(hover[..., 3]).all():
        lines.append("corrected p = %{customdata[3]:.2g}")
    lines.append(f"rank %{{customdata[4]:d}} of {scores.size}")
    gap = 1 if max(scores.shape) <= 40 else 0
    template = "<br>".join(lines) + "<extra></extra>"
    gaps = {"xgap": gap, "ygap": gap}
    return go.Heatmap(z=scores / divide, customdata=hover, hovertemplate=template, name=head_map.method, **gaps | options)


def scalar_trace(scale: ScAle, **options: Any) -> go.Heatmap:
    """The cells of a ScAle's head scalars; no value where no scalar was learned."""
    L, H = scale.scalars.shape
    z = np.full((L, H), np.nan)
    for layer, head in scale.heads:
        z[layer, head] = float(scale.scalars[layer, head])
    gap = 1 if max(L, H) <= 40 else 0
    hover = "layer %{y}, head %{x}<br>scalar %{z:.4f}<extra></extra>"
    return go.Heatmap(z=z, hovertemplate=hover, hoverongaps=False, xgap=gap, ygap=gap, name="scalars", **options)


def limit(values: np.ndarray) -> float:
    """The largest |value|, or 1 where all are 0: half of a symmetric colour range."""
    return float(np.abs(values).max(initial=0.0)) or 1.0


def coloraxis(dark: bool, reach: float, title: str, *, centre: float = 0.0) -> dict[str, Any]:
    """A diverging colour axis from centre - reach to centre + reach."""
    scale = [list(stop) for stop in look(dark).diverging]
    bar = {"title": {"text": title, "side": "right", "font": {"size": 13}}, "outlinewidth": 0, "thickness": 14}
    return {"colorscale": scale, "cmin": centre - reach, "cmax": centre + reach, "cmid": centre, "colorbar": bar}


def layer_head_axes(fig: go.Figure, L: int, H: int, wide: float, high: float, *, of: Mapping[str, Any] | None = None, **at: int) -> None:
    """Axes with whole-numbered ticks, as many as fit into wide x high pixels; `of` is the provenance of what is drawn."""
    # Frames of small cells at the edge are drawn slightly outside.
    x, y = (3 / (pixels / count) if min(wide / H, high / L) < SMALL else 0.0 for pixels, count in ((wide, H), (high, L)))
    fig.update_xaxes(title_text="head", tickvals=spaced(H, wide, 26), range=[-0.5 - x, H - 0.5 + x], showgrid=False, **at)
    layers = layer_ticks(spaced(L, high, 18), of or {})
    fig.update_yaxes(**layers, range=[-0.5 - y, L - 0.5 + y], showgrid=False, **at)


def layer_ticks(ticks: Sequence[int], of: Mapping[str, Any]) -> dict[str, Any]:
    """The ticks and the title of an axis of layers."""
    if not of.get("layer_numbers"):
        return {"title_text": "layer", "tickvals": list(ticks)}
    return {"title_text": "layer (in the decoder)", "tickvals": list(ticks), "ticktext": layer_names(ticks, of)}


def layer_names(layers: Sequence[int], of: Mapping[str, Any]) -> list[str]:
    """Layers by their numbers in maps and edits; in a hybrid, with those in the decoder in brackets. `of` is a result's provenance."""
    numbers = of.get("layer_numbers")
    return [f"{i} ({numbers[i]})" if numbers else str(i) for i in layers]


def spaced(count: int, pixels: float, room: float) -> list[int]:
    """Every so many of `count` places on an axis of so many pixels that each tick has its room."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, count) if pixels * s / count >= room or s >= count)
    return list(range(0, count, step))


def _size(L: int, H: int) -> tuple[int, int]:
    """Width and height of a figure of one map: the same for all but the smallest models, whose cells would be too large."""
    return min(WIDTH, 190 + max(260, 100 * H)), min(max(HEIGHT, 60 + LAYER * L), 60 + max(140, 100 * L))


def ground(fig: go.Figure, left: float, right: float, L: int, dark: bool, **at: int) -> None:
    """Grey behind the cells, which shows where a heatmap has no value."""
    fig.add_shape(type="rect", x0=left, x1=right, y0=-0.5, y1=L - 0.5, fillcolor=look(dark).empty, line_width=0, layer="below", **at)


def cell_size(L: int, H: int, wide: float, high: float) -> float:
    """The shorter side of a cell in pixels."""
    return min(wide / H, high / L)


def outline(fig: go.Figure, marks: Iterable[Head], dark: bool, cell: tuple[float, float], **at: int) -> None:
    """Draw a frame around each marked cell.

    Args:
        fig: the figure to draw on.
        marks: (layer, head) pairs.
        dark: whether the figure is for a dark page.
        cell: width and height of a cell in pixels.
        at: row and column of the panel.
    """
    edge = {"color": look(dark).ink, "width": 2}
    x, y = ((2 / side if min(cell) < SMALL else 0.0) for side in cell)
    for layer, head in marks:
        box = {"x0": head - 0.5 - x, "x1": head + 0.5 + x, "y0": layer - 0.5 - y, "y1": layer + 0.5 + y}
        fig.add_shape(type="rect", **box, line=edge, **at)


def _dots(fig: go.Figure, head_map: HeadMap, dark: bool, cell: float, reach: float | None = None, **at: int) -> None:
    scores, found = head_map.scores.numpy(), head_map.significant(ALPHA).numpy()
    layers, heads = found.nonzero()
    colours = [look(dark).over(s) for s in scores[found] / (reach or limit(scores))]
    marker = {"size": min(7.0, max(2.0, cell * 0.3)), "color": colours}
    fig.add_trace(go.Scatter(x=heads, y=layers, mode="markers", marker=marker, hoverinfo="skip", name="significant"), **at)


def _checked(marks: Iterable[Head], head_map: HeadMap) -> list[Head]:
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..interventions.edit import check_heads

    L, H = head_map.scores.shape
    return check_heads(marks, L, H)


def _key(maps: Sequence[HeadMap], marks: Sequence[Head]) -> str:
    found = dict.fromkeys(m.significance for m in maps if m.significant(ALPHA).any())
    return "".join(f" ● {test.format(alpha=ALPHA)}." for test in found) + (" □ marked." if marks else "")
