"""Methods side by side: what each gains here and costs elsewhere, and the heads that they select."""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .bars import ROW, TOLERANCE, _bars, _room
from .heatmap import LAYER, PANEL, cell_size, layer_head_axes
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..evaluation.comparison.comparison import Comparison
    from ..evaluation.comparison.head_sets import HeadSets

WIDTH = 980
WIDEST = 1000
"""The longest side of a map of marks, in pixels."""
LEAST = 7.0
"""Adjacent marks of fewer pixels cannot be told apart."""
ALPHA = 0.05
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross")


def comparison(found: Comparison, *, dark: bool = False) -> go.Figure:
    """Draw each method's paired difference from the base model with its 95% interval, on the data and on other tasks if there are any.

    A filled marker differs from 0 after Holm's correction over the methods.

    Args:
        found: the result of `compare`.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the comparison holds only the base model.

    >>> import torch, scale_interp as si
    >>> right = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> about = {"ScAle": {"setting": {"strength": 1.0}, "parameters": 54, "passes": 1.0, "grid": []}}
    >>> numbers, sets = torch.arange(4), si.HeadSets(6, 8, {})
    >>> figure = comparison(si.Comparison(("base", "ScAle"), right, numbers, right, numbers, ("count",) * 4, about, sets))
    """
    frame_ = found.to_frame().iloc[1:]
    if frame_.empty:
        raise DataError("no method to draw: the comparison holds only the base model; give one of at least one method")
    colours, names = look(dark), list(frame_["method"])
    elsewhere = bool(len(found.others))
    titles = ("the test questions", f"{len(found.others)} questions of other tasks")[: 1 + elsewhere]
    fig = make_subplots(1, len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.06)
    sure = [p < ALPHA for p in frame_["p_holm"]]
    panels = [("difference", "difference_low", "difference_high", sure)]
    if elsewhere:
        low, high = frame_["others_low"], frame_["others_high"]
        panels.append(("others_change", "others_low", "others_high", list((low > 0) | (high < 0))))
    for column, (value, low, high, full) in enumerate(panels, 1):
        colour = colours.series[column - 1]
        fig.add_trace(
            go.Scatter(
                x=frame_[value],
                y=names,
                error_x=_bars(frame_[value].tolist(), frame_[low].tolist(), frame_[high].tolist(), colour),
                customdata=frame_[["tuned", "accuracy", "parameters", "passes", "p_holm", low, high]],
                hovertemplate="<b>%{y}</b>: %{customdata[0]}<br>%{x:+.3f} [%{customdata[5]:+.3f}, %{customdata[6]:+.3f}]<br>"
                "accuracy %{customdata[1]:.3f}, corrected p = %{customdata[4]:.2g}<br>%{customdata[2]} parameters, "
                "%{customdata[3]:g} passes per answer<extra></extra>",
                mode="markers",
                marker={"size": 10, "color": [colour if s else colours.paper for s in full], "line": {"color": colour, "width": 2}},
                name=titles[column - 1],
            ),
            row=1,
            col=column,
        )
        fig.add_vline(x=0, line={"color": colours.muted, "width": 1}, row=1, col=column)
    if elsewhere:
        # After the traces, as plotly ignores a shape on a panel that is still empty.
        fig.add_vrect(x0=-TOLERANCE, x1=TOLERANCE, fillcolor=colours.band, line_width=0, layer="below", row=1, col=2)
    fig.update_xaxes(title_text="change of accuracy (95% interval)", tickformat="+.2f")
    fig.update_yaxes(categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.5])
    fig.update_yaxes(title_text="method", row=1, col=1)
    base = found.to_frame().iloc[0]
    notes = f"Base accuracy {base['accuracy']:.3f} on {len(found.right)} questions. Filled marker: corrected p < {ALPHA}"
    notes += f" (right: the interval excludes 0). Band: ±{TOLERANCE}, counted as no change." if elsewhere else "."
    fig = frame(fig, "Methods against the base model", notes, width=WIDTH, height=ROW * len(names) + 110, dark=dark, left=_room(names))
    return fig.update_layout(margin_t=fig.layout.margin.t + 24)


def head_overlap(sets: HeadSets, *, dark: bool = False) -> go.Figure:
    """Draw the Jaccard overlap of every two head sets.

    `*`: the two share more heads than two random sets of these sizes would (hypergeometric, corrected p < 0.05).

    Args:
        sets: at least two head sets.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are fewer than two sets.

    >>> import scale_interp as si
    >>> sets = si.HeadSets(6, 8, {"patching": ((3, 1), (2, 0)), "gradient": ((3, 1), (4, 2))})
    >>> figure = head_overlap(sets)
    """
    names = list(sets.sets)
    if len(names) < 2:
        raise DataError(f"{len(names)} head set(s): give at least two")
    colours, table = look(dark), sets.matrix()
    sure = {frozenset((row.a, row.b)) for row in sets.overlap().itertuples() if row.p_holm < ALPHA}
    ticks = [f"{name} ({len(sets.sets[name])})" for name in names]
    n = len(names)
    z = table.to_numpy().copy()
    z[np.triu_indices(n)] = np.nan
    scale = [[0.0, colours.diverging[2][1]], [0.5, colours.diverging[3][1]], [1.0, colours.diverging[4][1]]]
    bar = {"title": {"text": "shared / in either", "side": "right", "font": {"size": 13}}, "outlinewidth": 0, "thickness": 14}
    fig = go.Figure(
        go.Heatmap(
            z=z[1:, :-1],
            x=ticks[:-1],
            y=ticks[1:],
            zmin=0,
            zmax=1,
            colorscale=scale,
            colorbar=bar,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate="%{y}<br>%{x}<br>Jaccard %{z:.2f}<extra></extra>",
        )
    )
    for i in range(1, n):
        for j in range(i):
            star = "*" if frozenset((names[i], names[j])) in sure else ""
            ink = colours.over(z[i, j])
            fig.add_annotation(x=ticks[j], y=ticks[i], text=f"{z[i, j]:.2f}{star}", showarrow=False, font={"color": ink, "size": 12})
    fig.update_xaxes(showgrid=False, tickangle=-40)
    fig.update_yaxes(showgrid=False, autorange="reversed")
    U = sets.n_layers * sets.n_heads
    notes = f"Number of heads in brackets, of {U}. * more than two random sets of these sizes share (hypergeometric, Holm, {ALPHA})."
    left = _room(ticks)
    return frame(fig, "Overlap of head sets", notes, width=left + 62 * n + 150, height=44 * n + 160, dark=dark, left=left)


def head_marks(sets: HeadSets, *, dark: bool = False) -> go.Figure:
    """Draw the heads of the model, layer by head: one mark for every set that a head is in, on a grey that deepens with their number.

    Models with many heads get one panel per set.

    Args:
        sets: the head sets.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no sets.

    >>> import scale_interp as si
    >>> sets = si.HeadSets(6, 8, {"patching": ((3, 1), (2, 0)), "gradient": ((3, 1), (4, 2))})
    >>> figure = head_marks(sets)
    """
    names = list(sets.sets)
    if not names:
        raise DataError("no head sets: give at least one")
    colours, (L, H) = look(dark), (sets.n_layers, sets.n_heads)
    wide, high = max(520, min(WIDEST, 92 * H)), max(360, min(WIDEST, 70 * L))
    columns = ceil(sqrt(len(names)))
    rows = ceil(len(names) / columns)
    size = 0.62 * cell_size(L, H, wide, high) / max(columns, rows)
    if size < LEAST:
        return _panels(sets, dark)
    fig = go.Figure(_counts(sets, dark))
    for i, name in enumerate(names):
        aside, up = ((i % columns) + 0.5) / columns - 0.5, 0.5 - ((i // columns) + 0.5) / rows
        heads = sets.sets[name]
        marker: dict[str, Any] = {"size": min(13.0, size), "color": colours.series[i % len(colours.series)]}
        marker["symbol"] = SYMBOLS[i % len(SYMBOLS)]
        if i >= len(colours.series):
            marker |= {"symbol": f"{SYMBOLS[i % len(SYMBOLS)]}-open", "line": {"width": 2}}
        x, y = [head + aside * 0.86 for _, head in heads], [layer + up * 0.86 for layer, _ in heads]
        fig.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, hoverinfo="skip", name=f"{name} ({len(heads)})"))
    layer_head_axes(fig, L, H, wide, high)
    edge = {"color": colours.muted, "width": 1}
    for line in range(H + 1):
        fig.add_shape(type="line", x0=line - 0.5, x1=line - 0.5, y0=-0.5, y1=L - 0.5, line=edge, opacity=0.35, layer="below")
    for line in range(L + 1):
        fig.add_shape(type="line", y0=line - 0.5, y1=line - 0.5, x0=-0.5, x1=H - 0.5, line=edge, opacity=0.35, layer="below")
    width = max(wide + 104, int(LETTER * 90))
    notes = f"Each set has its place in a cell. {_grey(sets)}"
    return frame(fig, "Heads that the methods select", notes, width=width, height=high + 60, dark=dark, legend=True)


def _panels(sets: HeadSets, dark: bool) -> go.Figure:
    """One panel per set, for models whose cells are too small to hold several marks."""
    colours, (L, H), names = look(dark), (sets.n_layers, sets.n_heads), list(sets.sets)
    columns = min(3 if H <= 48 else 2, len(names))
    rows, high, gap, aside = ceil(len(names) / columns), max(PANEL, LAYER * L), 90, 56
    plot = 1060 - 104
    wide, tall = (plot - aside * (columns - 1)) / columns, rows * high + (rows - 1) * gap
    titles = [f"{name} ({len(heads)})" for name, heads in sets.sets.items()]
    fig = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=aside / plot, vertical_spacing=gap / tall if rows > 1 else 0
    )
    for i, name in enumerate(names):
        at: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        fig.add_trace(_counts(sets, dark), **at)
        marker = {"size": 6, "color": colours.series[i % len(colours.series)], "symbol": SYMBOLS[i % len(SYMBOLS)]}
        layers, heads = zip(*sets.sets[name], strict=True) if sets.sets[name] else ((), ())
        fig.add_trace(go.Scatter(x=heads, y=layers, mode="markers", marker=marker, hoverinfo="skip", name=name, showlegend=False), **at)
        layer_head_axes(fig, L, H, wide, high, **at)
    fig.update_xaxes(showline=True, mirror=True).update_yaxes(showline=True, mirror=True)
    frame(fig, "Heads that the methods select", _grey(sets), width=1060, height=tall + 60, dark=dark)
    return fig.update_layout(margin_t=fig.layout.margin.t + 24, height=fig.layout.height + 24)


def _counts(sets: HeadSets, dark: bool) -> go.Heatmap:
    """The cells, in a grey that deepens with the number of sets that a head is in."""
    colours, (L, H), counts = look(dark), (sets.n_layers, sets.n_heads), sets.counts()
    gap = 1 if max(L, H) <= 40 else 0
    hover = [
        [", ".join(n for n, heads in sets.sets.items() if (layer, head) in heads) or "none" for head in range(H)] for layer in range(L)
    ]
    return go.Heatmap(
        z=counts,
        zmin=0,
        zmax=max(1, int(counts.max())),
        colorscale=[[0.0, colours.paper], [1.0, colours.grid if dark else colours.empty]],
        showscale=False,
        xgap=gap,
        ygap=gap,
        customdata=hover,
        hovertemplate="layer %{y}, head %{x}<br>%{z} sets: %{customdata}<extra></extra>",
        name="sets",
        showlegend=False,
    )


def _grey(sets: HeadSets) -> str:
    return f"Grey: in more sets, up to {int(sets.counts().max())} of {len(sets.sets)}."
