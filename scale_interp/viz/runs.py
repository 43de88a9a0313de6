"""Two runs side by side: their accuracies and gains, and their head maps on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .bars import ROW, _bars, _room
from .heatmap import coloraxis, limit, panels
from .theme import frame, look

if TYPE_CHECKING:
    from ..attribution import HeadMap
    from ..interventions.edit import Head

Rows: TypeAlias = Sequence[Mapping[str, Any]]
WIDTH = 980
SYMBOLS = ("circle", "diamond")
ASIDE = 0.14


def gains_of_runs(rows: Rows, names: tuple[str, str], *, dark: bool = False) -> go.Figure:
    """Draw the gain of every fit in both runs, and the second's accuracy minus the first's where it is known, with 95% intervals.

    Args:
        rows: one row per fit, as in `ComparedRuns.answers`.
        names: the names of the two runs.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no rows.

    >>> row = {"fit": "ScAle", "accuracy_1": 0.5, "gain_1": 0.2, "low_1": 0.1, "high_1": 0.3, "accuracy_2": 0.5}
    >>> figure = gains_of_runs([row | {"gain_2": 0.25, "low_2": 0.1, "high_2": 0.4}], ("first", "second"))
    """
    if not rows:
        raise DataError("no fits: give the rows of ComparedRuns.answers")
    colours, fits = look(dark), [str(row["fit"]) for row in rows]
    paired = "difference" in rows[0]
    titles = ["gain over the run's own base model", "accuracy, second run minus first"]
    fig = make_subplots(1, 1 + paired, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles[: 1 + paired])
    drawn = [(1, name, f"gain_{i + 1}", f"low_{i + 1}", f"high_{i + 1}", i) for i, name in enumerate(names)]
    if paired:
        drawn.append((2, titles[1], "difference", "difference_low", "difference_high", 2))
    for column, name, value, low, high, i in drawn:
        known = [(at, row) for at, row in enumerate(rows) if np.isfinite(row[value])]
        middle, lows, highs = ([float(row[part]) for _, row in known] for part in (value, low, high))
        aside = 0.0 if i == 2 else (i - 0.5) * 2 * ASIDE
        fig.add_trace(
            go.Scatter(
                x=middle,
                y=[at + aside for at, _ in known],
                error_x=_bars(middle, lows, highs, colours.series[i]),
                customdata=[[row["fit"], row[low], row[high]] for _, row in known],
                hovertemplate="%{customdata[0]}<br>%{x:+.3f} [%{customdata[1]:+.3f}, %{customdata[2]:+.3f}]",
                mode="markers",
                marker={"size": 10, "color": colours.series[i], "symbol": SYMBOLS[i % 2]},
                name=name,
                showlegend=i < 2,
            ),
            row=1,
            col=column,
        )
        fig.add_vline(x=0, line={"color": colours.muted, "width": 1}, layer="below", row=1, col=column)
    fig.update_xaxes(title_text="change of accuracy", tickformat="+.2f")
    fig.update_yaxes(tickvals=list(range(len(fits))), ticktext=fits, range=[len(fits) - 0.5, -0.5], showgrid=False)
    base = ", ".join(f"{rows[0][f'accuracy_{i}']:.3f} in {name}" for i, name in enumerate(names, 1))
    notes = f"Whiskers: 95% interval{', right: paired' if paired else ''}. Accuracy of the base model: {base}."
    height = ROW * len(fits) + 110
    frame(fig, "Both runs' gains", notes, width=WIDTH, height=height, dark=dark, legend=True, left=_room(fits))
    margin = fig.layout.margin.t + 24
    return fig.update_layout(margin_t=margin, height=fig.layout.height + 24, legend_y=1 + 30 / (height - 60))


def maps_of_runs(
    pairs: Sequence[tuple[HeadMap, HeadMap]], names: tuple[str, str], *, marks: Sequence[Sequence[Head]] = ((), ()), dark: bool = False
) -> go.Figure:
    """Draw both runs' maps of every method side by side, each pair on one colour scale.

    A single pair keeps the scores' own scale; of several pairs each is divided by the larger of its two largest |scores|.

    Args:
        pairs: the two runs' maps of each method.
        names: the names of the two runs.
        marks: the (layer, head) pairs to outline in each run's maps.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no pairs.
        EditError: a map does not have a marked head.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> pair = si.attribute(vlm, qs[:4]), si.attribute(vlm, qs[4:])
    >>> figure = maps_of_runs([pair], ("first", "second"))
    """
    if not pairs:
        raise DataError("no maps: give at least one pair of HeadMaps")
    reaches = [max(limit(m.scores.numpy()) for m in pair) for pair in pairs]
    alone = len(pairs) == 1
    axis = coloraxis(dark, reaches[0], pairs[0][0].unit) if alone else coloraxis(dark, 1.0, "score / largest |score| of both runs")
    divide = [1.0 if alone else reach for reach in reaches for _ in range(2)]
    titles = [
        f"{pair[0].method}<br><span style='font-size:12px'>{name}{'' if alone else f', scale ±{reach:.3g} {pair[0].unit}'}</span>"
        for pair, reach in zip(pairs, reaches, strict=True)
        for name in names
    ]
    flat, outlined = [m for pair in pairs for m in pair], [list(own) for _ in pairs for own in marks]
    return panels(flat, titles, divide, axis, "Head scores of both runs", marks=outlined, columns=2, dark=dark)
