"""ScAle and its baselines, the cost of a gain, and how few scalars it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from .bars import ROW, TOLERANCE, WIDTH
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..evaluation.baselines import Baselines
    from ..evaluation.retention import RetentionCurve, SparsityPath

SYMBOLS = ("circle", "diamond", "square")


def baselines(found: Baselines, *, dark: bool = False) -> go.Figure:
    """Draw the gain over the base model, and the change on other tasks where it was measured: one row per method.

    Args:
        found: the result of `compare_baselines`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> row = {"gain": 0.25, "low": 0.1, "high": 0.4, "p_corrected": 0.01, "seconds": 2.0}
    >>> rows = (row | {"method": "ScAle", "parameters": 54}, row | {"method": "LoRA r=1", "parameters": 13056})
    >>> figure = baselines(si.Baselines(rows, {"base": {"accuracy": 0.5}}))
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..evaluation.baselines import SCALE

    colours = look(dark)
    rows = sorted(found.rows, key=lambda row: row["parameters"])
    names = [f"{row['method']} ({row['parameters']:,})" for row in rows]
    points = [colours.series[1] if row["method"] == SCALE else colours.series[0] for row in rows]
    panels = [("gain", "", "gain in accuracy")]
    if "others_change" in rows[0]:
        panels.append(("others_change", "others_change_", "change on other tasks"))
    fig = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.06)
    for column, (value, start, title) in enumerate(panels, 1):
        at = {"row": 1, "col": column}
        for row, name, colour in zip(rows, names, points, strict=True):
            fig.add_trace(
                go.Scatter(
                    x=[row[value]],
                    y=[name],
                    error_x=_whiskers([row], value, start) | {"color": colour},
                    mode="markers",
                    marker={"size": 10, "color": colour, "symbol": "diamond" if row["method"] == SCALE else "circle"},
                    name=row["method"],
                    hovertemplate=_about(row, value, start) + "<extra></extra>",
                ),
                **at,
            )
        # After the traces, as plotly ignores a shape on a panel that is still empty.
        if value == "others_change":
            fig.add_vrect(x0=-TOLERANCE, x1=TOLERANCE, fillcolor=colours.band, line_width=0, layer="below", **at)
        fig.add_vline(x=0, line={"color": colours.muted, "width": 1}, **at)
        ends = [0.0, *(row[f"{start}{end}"] for row in rows for end in ("low", "high"))]
        pad = 0.08 * (max(ends) - min(ends)) or 0.01
        fig.update_xaxes(title_text=title, tickformat="+.2f", range=[min(ends) - pad, max(ends) + pad], **at)
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1], range=[-0.5, len(names) - 0.5], showgrid=False)
    notes = f"Base accuracy {found.about['base']['accuracy']:.3f}; 95% intervals; in brackets the number of parameters."
    if len(panels) > 1:
        notes += f" Band: ±{TOLERANCE}, counted as no change."
    left = int(max(map(len, names)) * LETTER * 1.1) + 30
    width = WIDTH if len(panels) == 1 else WIDTH + 200
    return frame(fig, "ScAle and its baselines on one budget", notes, width=width, height=ROW * len(rows) + 80, dark=dark, left=left)


def _about(row: Mapping[str, Any], value: str, start: str) -> str:
    lines = [
        f"<b>{row['method']}</b>, {row['parameters']:,} parameters, {row['seconds']:.1f} s",
        f"{row[value]:+.3f} [{row[f'{start}low']:+.3f}, {row[f'{start}high']:+.3f}], corrected p = {row[f'{start}p_corrected']:.2g}",
    ]
    return "<br>".join(lines)


def retention_curve(curve: RetentionCurve, *, dark: bool = False) -> go.Figure:
    """Draw the gain on the task against the change elsewhere, one point per weight of the penalty, both with 95% intervals.

    Args:
        curve: the result of `retention_curve`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> gain = {"gain": 0.25, "low": 0.1, "high": 0.4, "accuracy": 0.75}
    >>> elsewhere = {"others_change": -0.02, "others_change_low": -0.05, "others_change_high": 0.01, "others_accuracy": 0.9}
    >>> figure = retention_curve(si.RetentionCurve(tuple({"weight": w} | gain | elsewhere for w in (0.0, 3.0))))
    """
    colours, rows = look(dark), curve.rows
    shades = sample_colorscale("Viridis", np.linspace(*colours.depth, max(2, len(rows))).tolist())
    fig = go.Figure()
    way = {"x": [row["gain"] for row in rows], "y": [row["others_change"] for row in rows]}
    fig.add_trace(go.Scatter(**way, mode="lines", line={"color": colours.muted, "width": 1.2}, hoverinfo="skip", showlegend=False))
    for i, (row, shade) in enumerate(zip(rows, shades, strict=True)):
        fig.add_trace(
            go.Scatter(
                x=[row["gain"]],
                y=[row["others_change"]],
                error_x=_whiskers([row], "gain", "") | {"color": shade},
                error_y=_whiskers([row], "others_change", "others_change_") | {"color": shade},
                mode="markers",
                marker={"size": 10, "color": shade, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                hovertemplate=f"weight {row['weight']:g}<br>gain {row['gain']:+.3f}, accuracy {row['accuracy']:.3f}"
                f"<br>elsewhere {row['others_change']:+.3f}, accuracy {row['others_accuracy']:.3f}<extra></extra>",
                name=f"weight {row['weight']:g}",
            )
        )
    for level, dash in ((0.0, "solid"), (-TOLERANCE, "dot")):
        fig.add_hline(y=level, line={"color": colours.muted, "width": 1, "dash": dash}, layer="below")
    fig.update_xaxes(title_text="gain in accuracy on the task", tickformat="+.2f")
    fig.update_yaxes(title_text="change of accuracy elsewhere", tickformat="+.2f")
    notes = f"Weight of the penalty on moving other answers. Whiskers: 95% interval. Dotted: a loss of {TOLERANCE}."
    return frame(fig, "What a gain costs elsewhere", notes, width=WIDTH, height=440, dark=dark, legend=True)


def sparsity_path(path: SparsityPath, *, dark: bool = False) -> go.Figure:
    """Draw the gain by the number of scalars that differ from 1: fits under an L1 penalty, cuts of the full fit, and fits of few heads.

    Args:
        path: the result of `sparsity_path`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> gain = {"gain": 0.25, "low": 0.1, "high": 0.4, "accuracy": 0.75}
    >>> rows = tuple({"path": path, "value": float(k), "moved": k} | gain for path in ("cut", "refit") for k in (1, 4))
    >>> figure = sparsity_path(si.SparsityPath(rows, {"heads": 48, "threshold": 0.05, "base": 0.5}))
    """
    colours = look(dark)
    fig = go.Figure()
    named = (("refit", "k heads fitted alone"), ("cut", "the k furthest from 1, cut from the full fit"), ("l1", "left by an L1 penalty"))
    for i, (kind, name) in enumerate(named):
        rows = sorted((r for r in path.rows if r["path"] == kind), key=lambda r: r["moved"])
        # Counts are on a logarithmic axis that has a place for 0; the three paths are drawn slightly apart.
        x = [np.log2(r["moved"] + 1) + (i - 1) * 0.05 for r in rows]
        fig.add_trace(
            go.Scatter(
                x=x,
                y=[r["gain"] for r in rows],
                error_y=_whiskers(rows, "gain", "") | {"color": colours.series[i]},
                customdata=[[r["moved"], r["value"], r["accuracy"], r["low"], r["high"]] for r in rows],
                hovertemplate="%{customdata[0]} scalars ("
                + ("penalty" if kind == "l1" else "k")
                + " %{customdata[1]:g})<br>gain %{y:+.3f} [%{customdata[3]:+.3f}, %{customdata[4]:+.3f}], accuracy %{customdata[2]:.3f}",
                mode="lines+markers",
                line={"color": colours.series[i], "width": 1.5, "dash": ("solid", "dash", "dot")[i]},
                marker={"size": 8, "symbol": SYMBOLS[i]},
                name=name,
            )
        )
    fig.add_hline(y=0, line={"color": colours.muted, "width": 1}, layer="below")
    counts = sorted({r["moved"] for r in path.rows if r["path"] != "l1"} | {0, path.about["heads"]})
    fig.update_xaxes(title_text="scalars that differ from 1", tickvals=[np.log2(c + 1) for c in counts], ticktext=list(map(str, counts)))
    fig.update_yaxes(title_text="gain in accuracy", tickformat="+.2f")
    notes = (
        f"Whiskers: 95% interval. A scalar counts as different beyond {path.about['threshold']:g}. Base accuracy {path.about['base']:.3f}."
    )
    return frame(fig, "How few scalars suffice", notes, width=WIDTH, height=420, dark=dark, legend=True)


def _whiskers(rows: Sequence[Mapping[str, Any]], value: str, start: str) -> dict[str, Any]:
    middle, low, high = (np.array([row[name] for row in rows], float) for name in (value, f"{start}low", f"{start}high"))
    return {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low, "thickness": 1.4, "width": 4}
