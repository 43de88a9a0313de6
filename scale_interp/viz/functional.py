"""Functional heads: where they are, what their removal costs, and what each function's heads do to every function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill
from .heatmap import coloraxis, limit, outline
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..adapters.steering.emphasis import Interventions
    from ..attribution.functional import FunctionalHeads
    from ..attribution.removal import RemovalCurve

ALPHA = 0.05
NAMES = {"top": "the first k", "random": "k random others", "low": "the last k", "keep": "all but the first k"}
"""What is removed."""
DASHES = {"top": "solid", "random": "dash", "low": "dot", "keep": "dashdot"}
COLUMNS = 3
LINEAR = 24
"""Above this many heads the axis of k is logarithmic, as the first few heads matter most in such curves."""
ASIDE = 0.04
"""The distance between marks of a single k."""
CROWDED = 40
"""With more layers than this, bars have thin whiskers without ends."""


def removal_curves(curves: RemovalCurve | Mapping[str, RemovalCurve], *, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw the metric against the number of removed heads with 95% bands, one panel per curve.

    Filled marks: the first k differ from k random others after Holm's correction over k.

    Args:
        curves: the result of `remove_heads_curve`, or several by name.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no curves.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> order = [(layer, head) for layer in range(6) for head in range(8)]
    >>> figure = removal_curves(si.remove_heads_curve(vlm, qs, order, ks=(1, 4), draws=2))
    """
    panels = curves if isinstance(curves, Mapping) else {"": curves}
    if not panels:
        raise DataError("no curves: give at least one RemovalCurve")
    colours = look(dark)
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=[name for name in panels if name] or None,
        shared_yaxes="all",
        horizontal_spacing=0.06,
        vertical_spacing=0.24 / rows,
    )
    for i, curve in enumerate(panels.values()):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        found = (curve.differences()["p"] < ALPHA).to_numpy()
        for number, (kind, table) in enumerate(curve.to_frame().groupby("heads", sort=False)):
            colour, x, y = colours.series[number], table["k"].to_numpy(), table[curve.metric].to_numpy()
            if len(x) == 1:
                x = x + (number - 1.5) * ASIDE
            band = np.concatenate([table["high"], table["low"][::-1]])
            fig.add_trace(
                go.Scatter(
                    x=np.concatenate([x, x[::-1]]), y=band, fill="toself", fillcolor=fill(colour, 0.13), line_width=0, mode="lines"
                ).update(hoverinfo="skip", showlegend=False, name=f"{kind} band"),
                **at,
            )
            symbols = ["circle" if kind == "top" and f else "circle-open" for f in found]
            fig.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    customdata=table[["low", "high"]],
                    hovertemplate="k = %{x:.0f}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
                    mode="lines+markers",
                    marker={"size": 8, "symbol": symbols, "color": colour},
                    line={"color": colour, "width": 2, "dash": DASHES[str(kind)]},
                    # A curve of a single k has no band.
                    error_y=_whiskers(y, table["low"], table["high"]) | {"visible": len(x) == 1},
                    name=NAMES[str(kind)],
                    legendgroup=str(kind),
                    showlegend=i == 0,
                ),
                **at,
            )
        fig.add_hline(y=float(curve.base.mean()), line={"color": colours.muted, "width": 1.5, "dash": "dot"}, **at)
        wide = curve.ks[-1] > LINEAR
        fig.update_xaxes(title_text="k, heads" + " (log scale)" * wide, type="log" if wide else "linear", **at)
        fig.update_xaxes(tickvals=_apart(curve.ks) if wide else list(curve.ks), **at)
        if len(curve.ks) == 1:
            fig.update_xaxes(range=[curve.ks[0] - 0.5, curve.ks[0] + 0.5], **at)
        fig.update_yaxes(title_text=curve.metric.replace("_", " "), **at)
    fig.update_annotations(font={"size": 14, "color": colours.ink})
    notes = "Bands: 95% over images. Dotted line: nothing removed. ● the first k differ from k random others (Holm, 0.05)."
    width, height = (620, 400) if len(panels) == 1 else (980, 320 * rows)
    frame(fig, title or "Heads removed", notes, width=width, height=height, dark=dark, legend=True)
    return _lower(fig, 22) if any(panels) else fig


def _apart(ks: Sequence[int]) -> list[int]:
    """The values of k whose labels have space on a logarithmic axis."""
    kept: list[int] = []
    for k in ks:
        if not kept or k >= 1.6 * kept[-1]:
            kept.append(k)
    return kept


def _whiskers(middle: Any, low: Any, high: Any) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": (high - middle).clip(lower=0), "arrayminus": (middle - low).clip(lower=0)}


def function_heatmap(found: Interventions, *, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw the change of the metric [N, F] for N edits (downwards) and F functions (to the right), with the values written in.

    `*`: differs from 0 after Holm's correction over all cells. A frame marks an edit's own function.

    Args:
        found: the result of `intervene`.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> silent = si.Edit.scaling([(3, 1)], 0.0, vlm.n_layers, vlm.n_heads)
    >>> figure = function_heatmap(si.intervene(vlm, qs, {"silent": silent}, by="relation"))
    """
    table = found.to_frame()
    change, p, low, high = (
        table[part].to_numpy().reshape(len(found.names), len(found.functions)) for part in ("change", "p", "low", "high")
    )
    reach = limit(change)
    fig = go.Figure(
        go.Heatmap(
            z=change,
            customdata=np.stack([low, high, p], -1),
            hovertemplate="%{z:+.3f} [%{customdata[0]:+.3f}, %{customdata[1]:+.3f}]<br>corrected p = %{customdata[2]:.2g}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            name="change",
        )
    )
    rows, columns = np.indices(change.shape).reshape(2, -1)
    fig.add_trace(
        go.Scatter(
            x=columns,
            y=rows,
            text=[f"{c:+.2f}{'*' if q < ALPHA else ''}" for c, q in zip(change.ravel(), p.ravel(), strict=True)],
            textfont={"size": 13, "color": [look(dark).over(c / reach) for c in change.ravel()]},
            mode="text",
            hoverinfo="skip",
            name="values",
        )
    )
    own = [(i, found.functions.index(name)) for i, name in enumerate(found.names) if name in found.functions]
    outline(fig, own, dark, (88, 44))
    fig.update_layout(coloraxis=coloraxis(dark, reach, f"change of {found.metric.replace('_', ' ')}"))
    fig.update_xaxes(title_text="asked", tickvals=list(range(len(found.functions))), ticktext=_broken(found.functions), showgrid=False)
    fig.update_yaxes(
        title_text="edited: heads of" if own else "edit", tickvals=list(range(len(found.names))), ticktext=list(found.names)
    ).update_yaxes(range=[len(found.names) - 0.5, -0.5], showgrid=False)
    notes = "* differs from 0 (Holm, 0.05)." + (" □ a function's own heads." if own else "")
    left = int(max(map(len, found.names)) * LETTER * 1.15) + 60
    width, height = left + 130 + 88 * len(found.functions), 110 + 44 * len(found.names)
    return frame(fig, title or "Function by function", notes, width=width, height=height, dark=dark, left=left)


def layer_histogram(found: FunctionalHeads, *, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw the number of heads above the elbow per layer, one panel per function, with 95% intervals.

    Dotted: the mean under permuted labels.

    Args:
        found: the result of `functional_heads`.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    >>> import torch, scale_interp as si
    >>> importance, null, codes = torch.rand(4, 6, 8), torch.rand(3, 2, 6, 8), torch.tensor([0, 1, 0, 1])
    >>> names, pictures = ("counting", "visual reception"), ("scene 1", "scene 2", "scene 3", "scene 4")
    >>> found = si.FunctionalHeads(names, importance, codes, codes, torch.arange(4), null, torch.rand(3), pictures)
    >>> figure = layer_histogram(found)
    """
    colours = look(dark)
    sums, table = found.to_frame().set_index("function"), found.layers()
    columns = min(COLUMNS, len(found.functions))
    rows = ceil(len(found.functions) / columns)
    U = found.mean[0].numel()
    titles = [
        f"{f}<br>{s.heads} of {U} heads [{s.heads_low:.0f}, {s.heads_high:.0f}]" for f, s in zip(sums.index, sums.itertuples(), strict=True)
    ]
    fig = make_subplots(rows, columns, subplot_titles=titles, shared_yaxes="all", horizontal_spacing=0.05, vertical_spacing=0.34 / rows)
    for i, function in enumerate(found.functions):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        own = table[table["function"] == function]
        crowded = found.mean.shape[1] > CROWDED
        whiskers = {"color": colours.ink, "thickness": 0.8 if crowded else 1.4, "width": 0 if crowded else 4}
        fig.add_trace(
            go.Bar(
                x=own["layer"],
                y=own["heads"],
                error_y=_whiskers(own["heads"], own["low"], own["high"]) | whiskers,
                marker={"color": fill(colours.series[0], 0.55), "line": {"color": colours.series[0], "width": 0 if crowded else 1.5}},
                customdata=own[["low", "high"]],
                hovertemplate="layer %{x}: %{y} [%{customdata[0]:.0f}, %{customdata[1]:.0f}]<extra></extra>",
                name="heads above the elbow",
                showlegend=i == 0,
            ),
            **at,
        )
        fig.add_trace(
            go.Scatter(
                x=own["layer"],
                y=own["null"],
                mode="lines",
                line={"color": colours.series[1], "width": 2, "dash": "dot"},
                hovertemplate="%{y:.1f}<extra></extra>",
                name="mean under permuted labels",
                showlegend=i == 0,
            ),
            **at,
        )
        fig.update_xaxes(title_text="layer", dtick=max(1, ceil(found.mean.shape[1] / 12)), showgrid=False, **at)
        fig.update_yaxes(title_text="heads", **at)
    fig.update_annotations(font={"size": 13, "color": colours.ink})
    notes = "Whiskers: 95% over held-out images."
    frame(fig, title or "Heads above the elbow", notes, width=320 * columns + 60, height=240 * rows + 60, dark=dark, legend=True)
    return _lower(fig, 44)


def _broken(names: tuple[str, ...]) -> list[str]:
    return [name.replace(" ", "<br>") for name in names]


def _lower(fig: go.Figure, pixels: int) -> go.Figure:
    """Make space for the panels' titles between the legend and the first row."""
    margin, high = fig.layout.margin, fig.layout.height
    plot = high - margin.t - margin.b
    return fig.update_layout(margin_t=margin.t + pixels, height=high + pixels, legend_y=1 + pixels / plot)
