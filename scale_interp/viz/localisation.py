"""How well methods find known heads, and how good their rankings are: dots with intervals, and faithfulness curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill
from .theme import frame, look

if TYPE_CHECKING:
    from ..evaluation import Faithfulness, Localisation

PANEL, ROW = 270, 30
MARKS = {"auroc": ("AUROC", "circle", -0.13), "precision": ("precision at k", "diamond-open", 0.13)}


def localisation(found: Mapping[str, Localisation], *, dark: bool = False) -> go.Figure:
    """Draw AUROC and precision at k of every method, one panel per model, with 95% intervals over draws.

    Args:
        found: model's name -> Localisation, all of the same methods.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are none, or the models were scored by different methods.

    >>> import torch, scale_interp as si
    >>> scores, nothing = torch.rand(1, 2, 6, 8), torch.full((1, 2), float("nan"))
    >>> figure = localisation({"demo": si.Localisation(("mine",), ((3, 1),), scores, nothing, nothing)})
    """
    if not found or len({f.methods for f in found.values()}) > 1:
        raise DataError("give at least one Localisation, all of the same methods")
    colours = look(dark)
    methods = next(iter(found.values())).methods
    titles = [f"{name}: {len(f.known)} of {f.scores[0, 0].numel()} heads" if name else "" for name, f in found.items()]
    fig = make_subplots(1, len(found), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    for column, f in enumerate(found.values(), 1):
        table = f.to_frame()
        for i, (key, (name, symbol, aside)) in enumerate(MARKS.items()):
            fig.add_trace(
                go.Scatter(
                    x=table[key],
                    y=np.arange(len(methods)) + aside,
                    mode="markers",
                    name=name,
                    legendgroup=key,
                    showlegend=column == 1,
                    marker={"size": 9, "symbol": symbol, "color": colours.series[i], "line": {"width": 1.5}},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": (table[f"{key}_high"] - table[key]).clip(0),
                        "arrayminus": (table[key] - table[f"{key}_low"]).clip(0),
                        "thickness": 1.4,
                        "width": 3,
                    },
                    customdata=np.stack([table["method"], table[f"{key}_low"], table[f"{key}_high"]], 1),
                    hovertemplate=f"%{{customdata[0]}}<br>{name} %{{x:.3f}} [%{{customdata[1]:.3f}}, %{{customdata[2]:.3f}}]",
                ),
                row=1,
                col=column,
            )
        fig.add_vline(x=0.5, line={"color": colours.muted, "width": 1, "dash": "dot"}, layer="below", row=1, col=column)
    fig.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.25, 0.5, 0.75, 1])
    fig.update_yaxes(range=[len(methods) - 0.5, -0.5], tickvals=list(range(len(methods))))
    fig.update_yaxes(ticktext=list(methods), col=1)
    draws = next(iter(found.values())).scores.shape[1]
    notes = f"Whiskers: 95% interval over {draws} draws of questions. Dotted: an AUROC of chance. k: the number of known heads."
    width, height = max(640, 190 + PANEL * len(found)), 70 + ROW * len(methods)
    frame(fig, "Do methods find the heads that are known to matter?", notes, width=width, height=height, dark=dark, legend=True, left=170)
    return fig.update_layout(margin_t=fig.layout.margin.t + 24, legend={"y": 1 + 34 / height})


def faithfulness_curves(found: Mapping[str, Faithfulness], *, dark: bool = False) -> go.Figure:
    """Draw the faithfulness of rankings when only their first k heads are kept (solid) and when these are removed (dashed), with 95% bands.

    Args:
        found: ranking's name -> Faithfulness.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no curves.

    >>> import torch, scale_interp as si
    >>> keep, remove = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    >>> found = si.Faithfulness((0, 24, 48), "logit_diff", keep, remove, torch.tensor([0]))
    >>> figure = faithfulness_curves({"patching": found})
    """
    if not found:
        raise DataError("no curves: give at least one Faithfulness")
    colours = look(dark)
    fig = go.Figure()
    for i, (name, f) in enumerate(found.items()):
        colour, table = colours.series[i % len(colours.series)], f.to_frame()
        for which, dash in (("keep", "solid"), ("remove", "dash")):
            edge = np.concatenate([table[f"{which}_high"], table[f"{which}_low"][::-1]])
            fig.add_trace(
                go.Scatter(
                    x=np.concatenate([table["k"], table["k"][::-1]]),
                    y=edge,
                    fill="toself",
                    line={"width": 0},
                    mode="lines",
                    fillcolor=fill(colour, 0.14),
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
            fig.add_trace(
                go.Scatter(
                    x=table["k"],
                    y=table[which],
                    mode="lines+markers",
                    marker={"size": 5},
                    line={"color": colour, "dash": dash, "width": 2},
                    name=f"{name}, {which}",
                    hovertemplate=f"{name}, {which} %{{x}}: %{{y:.3f}}<extra></extra>",
                )
            )
    for level in (0, 1):
        fig.add_hline(y=level, line={"color": colours.muted, "width": 1, "dash": "dot"}, layer="below")
    fig.update_xaxes(title_text="heads kept, or removed (k)")
    fig.update_yaxes(title_text="faithfulness")
    areas = "; ".join(f"{name}: CPR {f.cpr:.2f}, CMD {f.cmd:.2f}" for name, f in found.items())
    notes = f"Solid: only the first k heads kept. Dashed: these removed. 1: the intact model, 0: all heads silenced. {areas}."
    return frame(fig, "Faithfulness of rankings of heads", notes, width=760, height=420, dark=dark, legend=True)
