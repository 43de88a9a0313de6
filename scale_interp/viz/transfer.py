"""Gains of scalars fitted on one task and tested on another, as a heatmap with its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from .heatmap import coloraxis, limit
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..evaluation.transfer_matrix import Transfer

CELL = 76, 40
ALPHA = 0.05


def transfer_heatmap(found: Transfer, *, dark: bool = False) -> go.Figure:
    """Draw the gain in accuracy: one row per task that was fitted on, one column per task that was tested. Bold: differs from 0 (Holm).

    Args:
        found: the result of `transfer`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> cell = {"base": 0.5, "accuracy": 0.75, "gain": 0.25, "low": 0.1, "high": 0.4, "p": 0.001, "p_corrected": 0.002}
    >>> figure = transfer_heatmap(si.Transfer(tuple(cell | {"fitted_on": "relation", "tested_on": task} for task in ("relation", "count"))))
    """
    colours, fitted, tested = look(dark), found.fitted, found.tested
    cells = {(row["fitted_on"], row["tested_on"]): row for row in found.rows}
    z = found.matrix().to_numpy()
    reach = limit(z)
    fig = go.Figure(
        go.Heatmap(
            z=z,
            customdata=[[[cells[a, b][k] for k in ("low", "high", "p_corrected", "base", "accuracy")] for b in tested] for a in fitted],
            hovertemplate="fitted on %{y}, tested on %{x}<br>%{z:+.3f} [%{customdata[0]:+.3f}, %{customdata[1]:+.3f}]"
            "<br>accuracy %{customdata[3]:.3f} → %{customdata[4]:.3f}<br>corrected p = %{customdata[2]:.2g}<extra></extra>",
            x=list(range(len(tested))),
            y=list(range(len(fitted))),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    edge = {"color": colours.ink, "width": 2}
    values, own = [], []
    for i, a in enumerate(fitted):
        for j, b in enumerate(tested):
            row = cells[a, b]
            value = f"{row['gain']:+.2f}"
            text = f"<b>{value}</b>" if row["p_corrected"] < ALPHA else value
            font = {"size": 13, "color": colours.over(row["gain"] / reach)}
            values.append({"x": j, "y": i, "text": text, "showarrow": False, "font": font})
            if a == b:
                own.append({"type": "rect", "x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5, "line": edge})
    fig.update_layout(annotations=values, shapes=own)
    bases = [next(cells[a, b]["base"] for a in fitted) for b in tested]
    titles = [f"{name}<br><span style='font-size:12px'>base {base:.2f}</span>" for name, base in zip(tested, bases, strict=True)]
    fig.update_layout(coloraxis=coloraxis(dark, reach, "gain in accuracy"))
    fig.update_xaxes(title_text="tested on", tickvals=list(range(len(tested))), ticktext=titles, tickangle=0, showgrid=False)
    fig.update_yaxes(
        title_text="fitted on", tickvals=list(range(len(fitted))), ticktext=fitted, range=[len(fitted) - 0.5, -0.5], showgrid=False
    )
    wide = max(CELL[0], int(max(map(len, tested)) * LETTER * 1.15) + 10)
    notes = f"□: the task itself. Bold: differs from 0 (Holm over all cells, {ALPHA}). Hover, or see the table, for intervals."
    left = int(max(map(len, fitted)) * LETTER * 1.1) + 60
    width, height = left + wide * len(tested) + 120, CELL[1] * len(fitted) + 110
    return frame(fig, "Scalars fitted on one task, tested on others", notes, width=max(width, 560), height=height, dark=dark, left=left)
