"""Which heads tell right answers from wrong ones: AUROC by layer and head."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..errors import DataError
from .heatmap import ALPHA, _size, cell_size, coloraxis, layer_head_axes, limit
from .theme import frame, look


def auroc_heatmap(table: pd.DataFrame, *, title: str = "Attention against right answers", dark: bool = False) -> go.Figure:
    """Draw AUROC per head as a heatmap centred on 0.5: layers upwards from 0, heads to the right.

    A dot marks heads with p below 0.05 after correction.

    Args:
        table: one row per head, as `ObjectAttention.auroc` returns it.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the table lacks a column.

    >>> import scale_interp as si
    >>> found = si.object_attention(si.load("demo"), si.load_questions("scenes/relation", n=16))
    >>> figure = auroc_heatmap(found.auroc())
    """
    if missing := {"layer", "head", "auroc", "low", "high", "p"} - set(table.columns):
        raise DataError(
            f"the table has no column {sorted(missing)[0]!r}: give the one that ObjectAttention.auroc() returns, with one row per head"
        )
    L, H = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    order = table.sort_values(["layer", "head"])
    values = order["auroc"].to_numpy().reshape(L, H)
    hover = order[["low", "high", "p"]].to_numpy().reshape(L, H, 3)
    lines = [
        "layer %{y}, head %{x}",
        "AUROC %{z:.3f}",
        "95%: %{customdata[0]:.3f} to %{customdata[1]:.3f}",
        "corrected p = %{customdata[2]:.2g}",
    ]
    gap = 1 if max(L, H) <= 40 else 0
    template = "<br>".join(lines) + "<extra></extra>"
    fig = go.Figure(go.Heatmap(z=values, customdata=hover, hovertemplate=template, xgap=gap, ygap=gap, coloraxis="coloraxis", name="AUROC"))
    width, height = _size(L, H)
    layers, heads = (hover[..., 2] < ALPHA).nonzero()
    reach = limit(values - 0.5)
    size = min(7.0, max(2.0, cell_size(L, H, width - 190, height - 60) * 0.3))
    dots = {"size": size, "color": [look(dark).over(share) for share in (values[layers, heads] - 0.5) / reach]}
    fig.add_trace(go.Scatter(x=heads, y=layers, mode="markers", marker=dots, hoverinfo="skip", name="significant"))
    fig.update_layout(coloraxis=coloraxis(dark, reach, "AUROC", centre=0.5))
    layer_head_axes(fig, L, H, width - 190, height - 60)
    notes = "Above 0.5: more attention where the answer is right." + (f" ● differs from 0.5 (Holm, {ALPHA})." if np.size(heads) else "")
    return frame(fig, title, notes, width=width, height=height, dark=dark)
