"""Curves: the losses of a fit, and the study of rescaled units without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from ..errors import DataError
from .theme import frame, look

if TYPE_CHECKING:
    import pandas as pd

    from ..adapters import ScAle
    from ..attribution.rescaling import Rescaling

WIDTH, HEIGHT = 760, 420
NAMED = 8
"""How many units get a colour and an interval; more could not be told apart."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def training_curve(scale: ScAle, *, dark: bool = False) -> go.Figure:
    """Draw training and validation loss by epoch, with the selected epoch marked.

    If questions were retained, their divergence is drawn below.

    Args:
        scale: scalars with the history of their fit.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the scalars do not come from a fit.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=16)
    >>> figure = training_curve(si.fit_scale(vlm, train, epochs=1))
    """
    if not scale.history:
        raise DataError("this ScAle has no history of a fit: give one that fit_scale returned")
    colours = look(dark)
    epochs = [row["epoch"] for row in scale.history]
    known = [("train_loss", "training", 1), ("validation_loss", "validation", 1), ("retain_kl", "retained questions", 2)]
    curves = [curve for curve in known if curve[0] in scale.history[0]]
    panels = curves[-1][2]
    fig = make_subplots(panels, 1, shared_xaxes=True, vertical_spacing=0.1, row_heights=[0.68, 0.32][:panels])
    for i, (key, name, row) in enumerate(curves):
        trace = go.Scatter(
            x=epochs,
            y=[entry[key] for entry in scale.history],
            mode="lines+markers",
            name=name,
            line={"color": colours.series[i], "width": 2, "dash": ("solid", "solid", "dot")[i]},
            marker={"size": 5},
            hovertemplate="epoch %{x}: %{y:.4f}",
        )
        fig.add_trace(trace, row=row, col=1)
    best = scale.settings.get("best_epoch")
    notes = ""
    if best is not None:
        fig.add_vline(x=best, line={"color": colours.muted, "width": 1.5, "dash": "dash"})
        notes = f"Dashed: epoch {best}, whose scalars were selected" + (" (before any training)." if best == 0 else ".")
    fig.update_xaxes(title_text="epoch", row=panels, col=1)
    fig.update_yaxes(title_text="cross-entropy (nats)", row=1, col=1)
    if panels == 2:
        fig.update_yaxes(title_text="KL (nats)", rangemode="tozero", row=2, col=1)
    return frame(fig, "Fit of the scalars", notes, width=WIDTH, height=HEIGHT + 120 * (panels - 1), dark=dark, legend=True)


def rescaling(study: Rescaling, *, dark: bool = False) -> go.Figure:
    """Draw the change of the metric by factor, one line per unit.

    The eight units with the largest changes are coloured and have 95% intervals.

    Args:
        study: the result of `rescale`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> figure = rescaling(si.rescale(vlm, qs, factors=(0.0, 2.0)))
    """
    colours = look(dark)
    table = study.to_frame()
    order = table.assign(size=table["change"].abs()).groupby("unit")["size"].max().reindex(list(study.units))
    named = set(order.sort_values(ascending=False, kind="stable").index[:NAMED])
    shades = sample_colorscale("Viridis", np.linspace(*colours.depth, max(2, len(named))).tolist())
    span = max(*study.factors, 1.0) - min(*study.factors, 1.0)
    fig = go.Figure()
    for unit in sorted(study.units, key=lambda u: u in named):
        rows = table[table["unit"] == unit].sort_values("factor")
        if unit in named:
            place = [u for u in study.units if u in named].index(unit)
            shade, line, symbol, aside = shades[place], 2.0, SYMBOLS[place % len(SYMBOLS)], (place - (len(named) - 1) / 2) * span * 0.004
        else:
            shade, line, symbol, aside = colours.muted, 0.8, "circle", 0.0
        # A factor of 1 is no edit: its change is 0 without being measured.
        known = [] if (rows["factor"] == 1).any() else [(1.0, 0.0, 0.0, 0.0)]
        points = np.array(sorted([*rows[["factor", "change", "low", "high"]].itertuples(index=False, name=None), *known]))
        factor, change, low, high = points.T
        whiskers = {"type": "data", "symmetric": False, "array": (high - change).clip(0), "arrayminus": (change - low).clip(0)}
        name = f"{study.unit} {unit}"
        fig.add_trace(
            go.Scatter(
                x=factor + aside,
                y=change,
                customdata=points[:, [0, 2, 3]],
                hovertemplate="×%{customdata[0]:g}: %{y:+.4f} [%{customdata[1]:+.4f}, %{customdata[2]:+.4f}]",
                error_y=whiskers | {"visible": unit in named, "thickness": 1.2, "width": 3},
                mode="lines+markers",
                marker={"size": 7 if unit in named else 3, "symbol": symbol},
                line={"color": shade, "width": line},
                opacity=1.0 if unit in named else 0.4,
                name=name,
                showlegend=unit in named,
            )
        )
    for draw, at in ((fig.add_hline, {"y": 0}), (fig.add_vline, {"x": 1})):
        draw(**at, line={"color": colours.muted, "width": 1}, layer="below")
    fig.update_xaxes(title_text="factor", tickvals=sorted({*study.factors, 1.0}))
    fig.update_yaxes(title_text=f"change of {study.metric.replace('_', ' ')}")
    rest = len(study.units) - len(named)
    notes = "Whiskers: 95% interval, set a little apart." + (f" Grey: the {rest} other units." if rest else "")
    part = {"head": "one head", "layer": "all heads of one layer", "mlp": "one MLP"}[study.unit]
    return frame(fig, f"Rescaling {part} without training", notes, width=WIDTH, height=HEIGHT, dark=dark, legend=True)


def epoch_accuracy(epochs: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """Draw the accuracy on test and training questions by epoch, one colour per part that was fitted.

    Args:
        epochs: one row per part and epoch, with the columns part, epoch, train_accuracy, test_accuracy and untrained_accuracy.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: for a table without rows.

    >>> import pandas as pd
    >>> figure = epoch_accuracy(pd.DataFrame([{"part": "heads", "epoch": 0, "train_accuracy": 0.3, "test_accuracy": 0.25,
    ...     "untrained_accuracy": 0.2}]))
    """
    if epochs.empty:
        raise DataError("no epochs: give a table with one row per part and epoch")
    fig, colours = go.Figure(), look(dark)
    lines = (
        ("test_accuracy", "test", "solid"),
        ("untrained_accuracy", "test, images not trained on", "dash"),
        ("train_accuracy", "training", "dot"),
    )
    for i, (part, rows) in enumerate(epochs.groupby("part", sort=False)):
        for column, name, dash in lines:
            if rows[column].isna().all():
                continue
            fig.add_scatter(
                x=rows["epoch"],
                y=rows[column],
                mode="lines+markers",
                name=f"{part}: {name}",
                line={"color": colours.series[i], "width": 2, "dash": dash},
                marker={"size": 5},
                hovertemplate="epoch %{x}: %{y:.3f}",
            )
    fig.update_xaxes(title_text="epoch")
    fig.update_yaxes(title_text="accuracy")
    return frame(fig, "Accuracy after each epoch", "Epoch 0 is the unedited model.", width=WIDTH, height=HEIGHT, dark=dark, legend=True)
