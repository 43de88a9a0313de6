"""How long each way of sweeping over all heads takes."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .theme import LETTER, NOTE_SIZE, frame, look

if TYPE_CHECKING:
    from ..bench import Benchmark, Row

WIDTH = 860
ROW = 34
GROUP = 70


def speed(found: Sequence[Benchmark], *, dark: bool = False) -> go.Figure:
    """Draw the time of every way as a multiple of the packed sweep's: bars on a log scale, one group per model.

    Args:
        found: at least one benchmark.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no benchmarks.

    >>> from scale_interp.bench import LIMIT, OURS
    >>> from scale_interp.bench.result import Benchmark, Row
    >>> rows = (Row(OURS, 0.1, 1.0, 48, 3, 0.0), Row(LIMIT, 0.05, 0.5, 48, 3, None))
    >>> about = {"model": "demo", "n_layers": 6, "n_heads": 8, "variants": 48, "questions": 4, "tokens": 70}
    >>> figure = speed([Benchmark(rows, about | {"repeats": 3, "device": "cpu", "threads": 1}, {})])
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..bench import LIMIT, OURS

    if not found:
        raise DataError("no benchmarks: give at least one")
    colours = look(dark)
    heights = [len(b.rows) * ROW for b in found]
    tall = sum(heights) + GROUP * len(found)
    fig = make_subplots(
        rows=len(found),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=GROUP / tall if len(found) > 1 else 0,
        subplot_titles=[_group(b) for b in found],
    )
    fig.update_annotations(x=0, xanchor="left", font={"size": 14, "color": colours.ink})
    for number, b in enumerate(found, 1):
        rows = sorted(b.rows, key=lambda row: -row.ratio)
        fill = {OURS: colours.series[1], LIMIT: colours.muted}
        fig.add_trace(
            go.Bar(
                x=[row.ratio for row in rows],
                y=[_way(b, row) for row in rows],
                orientation="h",
                marker_color=[fill.get(row.way, colours.series[0]) for row in rows],
                text=[_label(row) for row in rows],
                textposition="outside",
                cliponaxis=False,
                customdata=[["" if row.largest_difference is None else f"{row.largest_difference:.1e}"] for row in rows],
                hovertemplate="%{y}<br>%{text}<br>largest difference of a score: %{customdata[0]}<extra></extra>",
                showlegend=False,
            ),
            row=number,
            col=1,
        )
    fig.add_vline(x=1, line={"color": colours.muted, "width": 1, "dash": "dot"})
    ratios = [row.ratio for b in found for row in b.rows]
    low, high = log10(min(*ratios, 0.5)) - 0.2, log10(max(ratios))
    # A quarter more, for the labels beside the bars.
    fig.update_xaxes(type="log", range=[low, high + (high - low) / 3], dtick=1)
    fig.update_xaxes(title_text="time, as a multiple of ours (log scale)", row=len(found), col=1)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    about = found[0].about
    notes = (
        f"Times include reading the prompts. Medians of {about['repeats']} repeats in one run on {about['device']}, "
        f"{about['threads']} {'thread' if about['threads'] == 1 else 'threads'}."
    )
    left = int(max(len(row.way) for b in found for row in b.rows) * LETTER * 1.1) + 40
    frame(fig, "A sweep over all heads", notes, width=WIDTH, height=tall + 60, dark=dark, left=left)
    # Space for the first group's heading, which is above the plot.
    return fig.update_layout(height=fig.layout.height + 30, margin_t=fig.layout.margin.t + 30)


def _group(b: Benchmark) -> str:
    about = b.about
    asked = "1 question" if about["questions"] == 1 else f"{about['questions']} questions"
    return (
        f"<b>{about['variants']:,} heads</b> <span style='font-size:{NOTE_SIZE}px'>"
        f"({about['n_layers']} layers x {about['n_heads']}), {asked} of {about['tokens']} tokens: {about['model']}</span>"
    )


def _way(b: Benchmark, row: Row) -> str:
    sampled = b.sampled(row)
    return f"{row.way}<br><span style='font-size:11px'>{sampled}</span>" if sampled else row.way


def _label(row: Row) -> str:
    ratio = f"{row.ratio:,.0f}" if row.ratio >= 10 else f"{row.ratio:.2f}"
    return f"{ratio}x, {row.seconds:,.0f} s" if row.seconds >= 100 else f"{ratio}x, {row.seconds:.2g} s"
