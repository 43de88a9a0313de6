"""Figures of token groups: which tokens they are, and scores by layer and group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill, readable
from .heatmap import ALPHA, coloraxis, layer_ticks, limit, spaced
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..attribution import PositionMap
    from ..data import Question
    from ..vlm.vlm import VLM

CELL, ROW, LINE = 84, 34, 27
"""Pixels: the width and height of a heatmap's cell, and the height of a line of tokens."""
MIDDLE, LEAST_ROW = 560, 14
"""Cells are lower where a heatmap would be higher than this, down to the least."""
CHANGED = {"resid": "residual stream before a layer", "attn": "attention output", "mlp": "MLP output"}
WORDS = ("subject", "object", "options", "separators", "last")
"""Groups of words in the order of their colours; other words are plain."""


def position_heatmap(pm: PositionMap, *, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw scores by layer and token group: layers upwards from 0, colours centred on 0.

    A dot marks scores that differ from 0 (Holm, 0.05). Hovering shows the interval.

    Args:
        pm: the scores.
        title: the figure's title; by default the method and what was changed.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> pairs = si.contrasts(si.load_questions("scenes/relation", n=2))
    >>> figure = position_heatmap(si.patch_positions(si.load("demo"), pairs, groups=("image", "last")))
    """
    return position_heatmaps([pm], [title or _name(pm)], dark=dark)


def position_heatmaps(maps: Sequence[PositionMap], names: Sequence[str] | None = None, *, dark: bool = False) -> go.Figure:
    """Draw several maps side by side on one colour scale, such as the two axes of a relation.

    Args:
        maps: at least one map.
        names: a title for each; by default what was changed.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no maps, or there is another number of names.

    >>> import scale_interp as si
    >>> pairs = si.contrasts(si.load_questions("scenes/relation", n=8))
    >>> pm = si.patch_positions(si.load("demo"), pairs, groups=("image", "last"))
    >>> figure = position_heatmaps([pm.only("left", "right"), pm.only("above", "below")], ["left or right", "above or below"])
    """
    names = names if names is not None else [_name(m) for m in maps]
    if not maps or len(names) != len(maps):
        raise DataError(f"{len(maps)} maps and {len(names)} names: give at least one map, and a name for each")
    fig = make_subplots(1, len(maps), subplot_titles=names if len(maps) > 1 else None, shared_yaxes=True, horizontal_spacing=0.04)
    reach, most = max(limit(m.scores.numpy()) for m in maps), max(len(m.scores) for m in maps)
    high = max(180, min(ROW * most, max(MIDDLE, LEAST_ROW * most)))
    for column, m in enumerate(maps, 1):
        L, G = m.scores.shape
        hover = m.to_frame()[["score", "low", "high", "p"]].to_numpy().reshape(L, G, 4)
        lines = ["layer %{y}, %{x}", "%{customdata[0]:+.4f} " + m.unit, "95%: %{customdata[1]:+.4f} to %{customdata[2]:+.4f}"]
        lines += ["corrected p = %{customdata[3]:.2g}"] if np.isfinite(hover[..., 3]).all() else []
        cells = go.Heatmap(
            z=m.scores.numpy(),
            x=list(m.positions),
            y=list(range(L)),
            customdata=hover,
            hovertemplate="<br>".join(lines) + "<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            name=m.component,
        )
        fig.add_trace(cells, row=1, col=column)
        layers, groups = m.significant(ALPHA).numpy().nonzero()
        colours = [look(dark).over(s) for s in m.scores.numpy()[layers, groups] / reach]
        dots = go.Scatter(
            x=[m.positions[g] for g in groups],
            y=layers,
            mode="markers",
            marker={"size": 6, "color": colours},
            hoverinfo="skip",
            name="significant",
        )
        fig.add_trace(dots, row=1, col=column)
        fig.update_xaxes(tickangle=-35, showgrid=False, range=[-0.5, G - 0.5], row=1, col=column)
        axis = {"range": [-0.5, L - 0.5]} | layer_ticks(spaced(L, high, 18), m.provenance) | ({} if column == 1 else {"title_text": None})
        fig.update_yaxes(showgrid=False, **axis, row=1, col=column)
    fig.update_layout(coloraxis=coloraxis(dark, reach, maps[0].unit))
    questions = ", ".join(dict.fromkeys(str(len(m.per_question)) for m in maps))
    notes = f"{questions} questions. ● differs from 0 (Holm, {ALPHA})."
    wide = 190 + sum(max(260, CELL * len(m.positions)) for m in maps)
    heading = names[0] if len(maps) == 1 else "Scores by layer and token group"
    frame(fig, heading, notes, width=min(wide, 1400), height=high + 120, dark=dark)
    return fig.update_layout(margin={"b": 110, "r": 110, "t": fig.layout.margin.t + (24 if len(maps) > 1 else 0)})


def _name(pm: PositionMap) -> str:
    return f"{pm.method}, {CHANGED.get(pm.component, pm.component)}"


def token_groups(vlm: VLM, question: Question, *, spans: dict[str, Any] | None = None, dark: bool = False) -> go.Figure:
    """Draw which tokens of a prompt are what: patches over the first image, and the prompt's words in the colours of their groups.

    Args:
        vlm: the model.
        question: the question.
        spans: further groups, as in `vlm.token_groups`.
        dark: whether the figure is for a dark page.

    >>> import scale_interp as si
    >>> figure = token_groups(si.load("demo"), si.load_questions("scenes/relation", n=1)[0])
    """
    groups, colours = vlm.token_groups(question, spans), look(dark)
    boxes = [f"box:{role}" for role in ("subject", "object") if f"box:{role}" in groups]
    words = [name for name in (*WORDS, *(spans or {})) if name in groups]
    shade = {name: colours.series[i % len(colours.series)] for i, name in enumerate(words)}
    shade |= {name: shade.get(name.removeprefix("box:"), colours.series[-1]) for name in boxes}
    fig = go.Figure()
    top = _draw_patches(fig, vlm, question, groups, boxes, shade) if question.image_sources else 0
    wide = 760
    lines = _lines(vlm, question, groups, words, wide - 60)
    for row, line in enumerate(lines):
        x = 0.0
        for text, name in line:
            style = {"bgcolor": shade[name], "font": {"color": readable(shade[name])}} if name else {}
            note = {"text": text, "hovertext": name or "text", "showarrow": False, "xanchor": "left", "yanchor": "top"} | style
            fig.add_annotation(**note, x=x, y=-(row * LINE) - 8, xref="x2", yref="y2", borderpad=2)
            x += _width(text)
    for name in (*words, *boxes):
        marker = {"size": 11, "color": shade[name], "symbol": "square"}
        fig.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=f"{name} ({len(groups[name])})", showlegend=True))
    text_high = LINE * len(lines) + 20
    share = text_high / (text_high + top) if top else 1.0
    fig.add_trace(
        go.Scatter(x=[0], y=[0], xaxis="x2", yaxis="y2", mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False)
    )
    fig.update_layout(
        xaxis2={"range": [0, wide - 60], "visible": False, "anchor": "y2"},
        yaxis2={"range": [-text_high, 0], "visible": False, "anchor": "x2", "domain": [0, share]},
        yaxis={"domain": [share, 1]},
    )
    sizes = {name: len(groups.get(name, ())) for name in ("image", "question", "template")}
    counts = f"{sizes['image']} image tokens, {sizes['question']} of the question, {sizes['template']} of the template."
    frame(fig, f"Token groups: {question.text}", counts, width=wide, height=text_high + top + 20, dark=dark, legend=True, left=20)
    return fig.update_layout(margin_b=20)


def _draw_patches(
    fig: go.Figure, vlm: VLM, question: Question, groups: dict[str, list[int]], boxes: list[str], shade: dict[str, str]
) -> int:
    """The first image with the patches of each box, on its finest grid; returns the image's height in pixels."""
    from ..attribution.attention.grid import patch_grid

    image = question.images[0]
    width, height = image.size
    fig.add_layout_image(source=image, x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below")
    if boxes:
        raster = patch_grid(vlm, question).finest[0]
        edges = raster.boxes().flatten(0, 1).tolist()
        for token, (left, upper, right, lower) in zip(raster.tokens.flatten().tolist(), edges, strict=True):
            for name in boxes:
                if token in groups[name]:
                    line = {"color": shade[name], "width": 2}
                    fig.add_shape(type="rect", x0=left, y0=upper, x1=right, y1=lower, line=line, fillcolor=fill(shade[name], 0.25))
    fig.update_xaxes(range=[0, width], visible=False, constrain="domain")
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain")
    return max(160, round(320 * height / max(width, height)))


def _lines(vlm: VLM, question: Question, groups: dict[str, list[int]], words: list[str], wide: int) -> list[list[tuple[str, str]]]:
    """The prompt's tokens with the name of their group, in lines of this many pixels; a run of image tokens is one entry."""
    ids = vlm.encode(question)["input_ids"][0].tolist()
    of_image, named = set(groups.get("image", ())), {t: name for name in reversed(words) for t in groups[name]}
    entries: list[tuple[str, str]] = []
    run = 0
    for t, i in enumerate(ids):
        if t in of_image:
            run += 1
        if run and (t not in of_image or t == len(ids) - 1):
            entries.append((f"[{run} image tokens]", ""))
            run = 0
        if t not in of_image:
            text = vlm.tokenizer.decode([i]).replace("\n", "⏎").replace("<", "&lt;").strip() or "␣"
            entries.append((text, named.get(t, "")))
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for entry in entries:
        if lines[-1] and used + _width(entry[0]) > wide:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += _width(entry[0])
    return lines


def _width(text: str) -> float:
    return LETTER * 1.1 * len(text.replace("&lt;", "<")) + 12
