"""Accuracy against the weight on attention to the image, and the grid of a tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from ..errors import DataError
from .theme import frame, look

if TYPE_CHECKING:
    import pandas as pd

    from ..evaluation.attention_scaling.answers import Tuned
    from ..evaluation.attention_scaling.weight_curve import ScalingCurve

WIDTH, HEIGHT = 760, 420
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
ASIDE = 0.006
"""Curves are shifted by this share of the axis, so that their whiskers do not cover each other."""


def scaling_curves(curves: Mapping[str, ScalingCurve], *, dark: bool = False) -> go.Figure:
    """Draw the change of accuracy by the weight of ScalingVis, one line per curve, with 95% intervals of the paired difference.

    Args:
        curves: name -> ScalingCurve, six at most.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no curves, or too many.

    >>> import scale_interp as si
    >>> from scale_interp.evaluation.attention_scaling.weight_curve import scaling_curve
    >>> curve = scaling_curve(si.load("demo"), si.load_questions("scenes/relation", n=8), (0.5, 2.0))
    >>> figure = scaling_curves({"relation": curve})
    """
    if not 1 <= len(curves) <= len(SYMBOLS):
        raise DataError(f"{len(curves)} curves: give 1 to {len(SYMBOLS)}, name -> ScalingCurve")
    colours, fig = look(dark), go.Figure()
    weights = sorted({1.0, *(w for curve in curves.values() for w in curve.weights)})
    place = np.log2 if weights[0] > 0 else np.asarray
    span = float(place(weights[-1]) - place(weights[0])) or 1.0
    for i, (name, curve) in enumerate(curves.items()):
        table = curve.to_frame()
        aside = (i - (len(curves) - 1) / 2) * ASIDE * span
        points = table[["weight", "difference", "low", "high", "accuracy"]].to_numpy()
        if 1.0 not in curve.weights:  # no edit: its change is 0 without being measured
            points = np.vstack([points, [1.0, 0.0, 0.0, 0.0, float(curve.base.mean())]])
        weight, change, low, high, _ = points = points[points[:, 0].argsort()].T
        fig.add_trace(
            go.Scatter(
                x=place(weight) + aside,
                y=change,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (high - change).clip(0),
                    "arrayminus": (change - low).clip(0),
                    "thickness": 1.4,
                    "width": 4,
                },
                customdata=points.T,
                hovertemplate="weight %{customdata[0]:g}: accuracy %{customdata[4]:.3f}, "
                "%{customdata[1]:+.3f} [%{customdata[2]:+.3f}, %{customdata[3]:+.3f}]",
                mode="lines+markers",
                line={"color": colours.series[i], "width": 2},
                marker={"size": 8, "symbol": SYMBOLS[i]},
                name=f"{name + ': ' if name else ''}{float(curve.base.mean()):.3f} at weight 1",
            )
        )
    for draw, at in ((fig.add_hline, {"y": 0}), (fig.add_vline, {"x": float(place(1.0))})):
        draw(**at, line={"color": colours.muted, "width": 1}, layer="below")
    fig.update_xaxes(
        title_text="weight on the attention logits to the image",
        tickvals=list(map(float, place(weights))),
        ticktext=[f"{w:g}" for w in weights],
    )
    fig.update_yaxes(title_text="change of accuracy", tickformat="+.2f")
    Q = sorted({len(curve.base) for curve in curves.values()})
    notes = f"{' or '.join(map(str, Q))} questions; whiskers: 95% interval of the paired difference from weight 1."
    return frame(fig, "Attention to the image, smoothed or sharpened", notes, width=WIDTH, height=HEIGHT, dark=dark, legend=True)


def tuning_grid(tuned: Tuned, *, dark: bool = False) -> go.Figure:
    """Draw the accuracy on the validation questions at every setting that was tried; a ring marks the chosen one.

    AdaptVis has one line per pair of weights over the threshold; ScalingVis has one line over the weight.

    Args:
        tuned: the result of a tuning.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> grid = ({"weight": 0.5, "accuracy": 0.6}, {"weight": 1.5, "accuracy": 0.75})
    >>> figure = tuning_grid(si.Tuned(si.AttentionScale(1.5), grid, base=0.7, passes=16, groups=("scene 1",)))
    """
    colours, table, fig = look(dark), tuned.to_frame(), go.Figure()
    adaptive = "threshold" in table
    over = "threshold" if adaptive else "weight"
    lines: list[tuple[str, pd.DataFrame]] = [("accuracy", table)]
    if adaptive:
        lines = [(f"{a:g} below, {b:g} above", rows) for (a, b), rows in table.groupby(["weight_low", "weight_high"], sort=False)]
    for i, (name, part) in enumerate(lines):
        rows = part.sort_values(over)
        fig.add_trace(
            go.Scatter(
                x=rows[over],
                y=rows["accuracy"],
                mode="lines+markers",
                line={"color": colours.series[i % len(colours.series)], "width": 2},
                marker={"size": 6, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                name=name,
                hovertemplate=f"{over} %{{x:.3g}}: %{{y:.3f}}",
            )
        )
    chosen = [float(getattr(tuned.method, over))]
    ring = {"size": 16, "symbol": "circle-open", "color": colours.ink, "line": {"width": 2}}
    fig.add_trace(go.Scatter(x=chosen, y=[tuned.accuracy], mode="markers", marker=ring, name="chosen", hoverinfo="skip", showlegend=False))
    fig.add_hline(y=tuned.base, line={"color": colours.muted, "width": 1.5, "dash": "dash"})
    fig.update_xaxes(title_text="confidence threshold" if adaptive else "weight on the attention logits to the image")
    fig.update_yaxes(title_text="accuracy")
    name = "AdaptVis" if adaptive else "ScalingVis"
    notes = (
        f"{tuned.provenance.get('n', '?')} validation questions. Dashed: without scaling. Ringed: chosen; its accuracy is the largest of "
    )
    notes += f"{len(table)} and so too high for other questions."
    return frame(fig, f"{name}, tuned", notes, width=WIDTH, height=HEIGHT, dark=dark, legend=adaptive)
