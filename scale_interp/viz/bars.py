"""Accuracies, gains and changes with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from ..errors import DataError
from .colour import fill
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..evaluation.accuracy import Evaluation
    from ..evaluation.falsification.suite import Falsification

WIDTH = 760
ROW = 36
TOLERANCE = 0.03
"""A change of accuracy on another task up to this size counts as none."""


def controls(falsification: Falsification, *, dark: bool = False) -> go.Figure:
    """Draw the gain over the base model of ScAle (first, highlighted) and of every control, with 95% intervals and the verdict.

    Args:
        falsification: the suite's result.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> row = {"control": "ScAle", "accuracy": 0.8, "gain": 0.3, "low": -0.1, "high": 0.6, "p_corrected": 0.2}
    >>> figure = controls(si.Falsification(0.5, (row,), 0, 0, "5e1f" * 16, {}, {}))
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..evaluation.falsification.suite import FULL

    colours = look(dark)
    rows = sorted(falsification.rows, key=lambda row: row["control"] != FULL)
    names = [row["control"] for row in rows]
    points = [colours.series[1] if name == FULL else colours.series[0] for name in names]
    fig = go.Figure()
    for row, colour in zip(rows, points, strict=True):
        fig.add_trace(
            go.Scatter(
                x=[row["gain"]],
                y=[row["control"]],
                error_x=_bars([row["gain"]], [row["low"]], [row["high"]], colour),
                mode="markers",
                marker={
                    "size": 11 if row["control"] == FULL else 9,
                    "color": colour,
                    "symbol": "diamond" if row["control"] == FULL else "circle",
                },
                name=row["control"],
                hovertemplate=_about(row) + "<extra></extra>",
            )
        )
    fig.add_vline(x=0, line={"color": colours.muted, "width": 1})
    fig.update_xaxes(title_text="gain in accuracy over the base model (95% interval)", tickformat="+.2f")
    ticks = [f"<b>{name}</b>" if name == FULL else name for name in names]
    fig.update_yaxes(
        title_text="control", tickvals=names, ticktext=ticks, categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.5]
    )
    notes = f"Base accuracy {falsification.base_accuracy:.3f}. {falsification.verdict}"
    return frame(fig, "Gain of ScAle and its controls", notes, width=WIDTH, height=ROW * len(rows) + 80, dark=dark, left=_room(names))


def _about(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{row['control']}</b>",
        f"accuracy {row['accuracy']:.3f}",
        f"gain {row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        f"corrected p = {row['p_corrected']:.2g}",
    ]
    if "full_minus" in row:
        lines.append(f"ScAle is {row['full_minus']:+.3f} better, corrected p = {row['full_minus_p_corrected']:.2g}")
    return "<br>".join(lines)


def accuracy_by(evaluations: Mapping[str, Evaluation], key: str, *, dark: bool = False) -> go.Figure:
    """Draw accuracy for each value of a field of the questions, one bar per evaluation, with 95% intervals.

    Args:
        evaluations: name -> Evaluation.
        key: the field, such as "relation" or "task".
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no evaluations, or no question has the field.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> figure = accuracy_by({"base": si.evaluate(vlm, qs)}, "relation")
    """
    if not evaluations:
        raise DataError("no evaluations: give at least one, name -> Evaluation")
    colours = look(dark)
    fig = go.Figure()
    tables = {name: evaluation.by(key) for name, evaluation in evaluations.items()}
    for i, (name, table) in enumerate(tables.items()):
        colour = colours.series[i % len(colours.series)]
        fig.add_trace(
            go.Bar(
                x=table[key],
                y=table["accuracy"],
                error_y=_bars(table["accuracy"], table["low"], table["high"], colours.ink),
                customdata=table[["low", "high", "n"]],
                hovertemplate="%{x}<br>accuracy %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>%{customdata[2]} questions",
                # Translucent, so that the whiskers stand out from the bars.
                marker={"color": fill(colour, 0.55), "line": {"color": colour, "width": 1.5}},
                name=name,
            )
        )
    values = sorted({value for table in tables.values() for value in table[key]})
    choices = {len(q.choices) for evaluation in evaluations.values() for q in evaluation.questions}
    notes = "Whiskers: 95% interval."
    if len(choices) == 1:
        fig.add_hline(y=1 / choices.pop(), line={"color": colours.muted, "width": 1.5, "dash": "dot"})
        notes += " Dotted: chance."
    fig.update_layout(barmode="group", bargap=0.25)
    fig.update_xaxes(title_text=key.replace("_", " "), type="category", categoryorder="array", categoryarray=values, showgrid=False)
    fig.update_yaxes(title_text="accuracy", range=[0, 1.02], tickformat=".1f")
    width = int(np.clip(180 + len(values) * (40 + 26 * len(evaluations)), 560, 1060))
    return frame(fig, f"Accuracy by {key.replace('_', ' ')}", notes, width=width, height=420, dark=dark, legend=True)


def retention(rows: Sequence[Mapping[str, Any]], *, dark: bool = False) -> go.Figure:
    """Draw the change of accuracy on other tasks, one dot per fit. The band of ±0.03 counts as no change.

    Args:
        rows: mappings with "task", "fit", "change", "low" and "high".
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no rows, or a row lacks one of these.

    >>> figure = retention([{"task": "count", "fit": "ScAle", "change": -0.01, "low": -0.02, "high": 0.0}])
    """
    wanted = {"task", "fit", "change", "low", "high"}
    if not rows:
        raise DataError("no rows: give at least one change")
    for row in rows:
        if missing := wanted - row.keys():
            raise DataError(f"a row lacks {', '.join(sorted(missing))}: {dict(row)}")
    colours = look(dark)
    tasks, fits = (list(dict.fromkeys(str(row[part]) for row in rows)) for part in ("task", "fit"))
    fig = go.Figure()
    fig.add_vrect(x0=-TOLERANCE, x1=TOLERANCE, fillcolor=colours.band, line_width=0, layer="below")
    fig.add_vline(x=0, line={"color": colours.muted, "width": 1})
    for i, fit in enumerate(fits):
        mine = [row for row in rows if str(row["fit"]) == fit]
        change, low, high = ([float(row[part]) for row in mine] for part in ("change", "low", "high"))
        colour = colours.series[i % len(colours.series)]
        aside = (i - (len(fits) - 1) / 2) * 0.7 / len(fits)
        fig.add_trace(
            go.Scatter(
                x=change,
                y=[tasks.index(str(row["task"])) + aside for row in mine],
                error_x=_bars(change, low, high, colour),
                customdata=[[str(row["task"]), row["low"], row["high"]] for row in mine],
                hovertemplate="%{customdata[0]}<br>%{x:+.3f} [%{customdata[1]:+.3f}, %{customdata[2]:+.3f}]",
                mode="markers",
                marker={"size": 9, "color": colour, "symbol": ("circle", "diamond", "square", "triangle-up", "x")[i % 5]},
                name=fit,
            )
        )
    fig.update_xaxes(title_text="change of accuracy (95% interval)", tickformat="+.2f")
    fig.update_yaxes(title_text="task", tickvals=list(range(len(tasks))), ticktext=tasks, range=[len(tasks) - 0.5, -0.5], showgrid=False)
    height = len(tasks) * max(ROW, 16 * len(fits)) + 80
    return frame(
        fig,
        "Other tasks",
        f"Band: ±{TOLERANCE}, counted as no change.",
        width=WIDTH,
        height=height,
        dark=dark,
        legend=True,
        left=_room(tasks),
    )


def _room(names: Sequence[str]) -> int:
    return int(max(map(len, names)) * LETTER * 1.1) + 60


def _bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> dict[str, Any]:
    m, lo, hi = (np.asarray(v, float) for v in (middle, low, high))
    # Percentile intervals of very few questions can miss the mean; an error bar cannot be negative.
    up, down = (hi - m).clip(0), (m - lo).clip(0)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.6, "width": 4}
