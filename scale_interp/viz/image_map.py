"""What each patch of an image counts for: the image, and beside it one heatmap over its patches for each map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .heatmap import coloraxis, limit
from .theme import frame, look

if TYPE_CHECKING:
    from ..attribution import ImageMap
    from ..attribution.attention.grid import PatchGrid
    from ..data import Question

SIDE, TITLE, MOST = 290, 30, 4
"""Pixels of a panel's width and of its title; maps in one figure."""


def image_maps(
    maps: Sequence[ImageMap],
    question: Question,
    grid: PatchGrid,
    names: Sequence[str] | None = None,
    *,
    picture: int = 0,
    dark: bool = False,
) -> go.Figure:
    """Draw a question's image and, on one colour scale centred on 0, the score of each of its patches in each map.

    Boxes of the objects in `question.about` are outlined; they are in the question's first image.

    Args:
        maps: up to four maps that have the question.
        question: the question.
        grid: which part of the image each token shows, as `patch_grid` returns it for this question.
        names: a title for each map; by default its method.
        picture: index of the image, where the question has several.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no maps or too many, there is another number of names, the maps differ in unit, or they do not have this
            question or image.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=2)
    >>> figure = image_maps([si.knockout_image(vlm, qs)], qs[0], si.patch_grid(vlm, qs[0]))
    """
    names = names if names is not None else [m.method for m in maps]
    if not 1 <= len(maps) <= MOST or len(names) != len(maps):
        raise DataError(f"{len(maps)} maps and {len(names)} names: give 1 to {MOST} maps, and a name for each")
    if len({m.unit for m in maps}) > 1:
        raise DataError(f"maps in {' and '.join(dict.fromkeys(m.unit for m in maps))}: give maps of one unit")
    if not 0 <= picture < len(grid.sizes):
        raise DataError(f"image {picture}: question {question.id} has {len(grid.sizes)} image(s), counted from 0; give one of these")
    raster = next(r for r in grid.finest if r.picture == picture)
    found = [m.of(question.id) for m in maps]
    values = [np.vectorize(lambda token, one=one: one.get(token, np.nan), otypes=[float])(raster.tokens.numpy()) for one in found]
    if np.isnan(values[0]).all():
        raise DataError(f"question {question.id}: the maps have other patches than this grid: give si.patch_grid(vlm, question)")
    colours, (width, height) = look(dark), grid.sizes[picture]
    tall = SIDE * height / width
    fig = make_subplots(1, 1 + len(maps), subplot_titles=["image", *names], horizontal_spacing=0.03)
    fig.add_layout_image(
        source=question.images[picture], x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below"
    )
    fig.add_trace(go.Scatter(x=[0], y=[0], mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False), row=1, col=1)
    edges = {"x": [float(raster.x[0, 0]), *raster.x[:, 1].tolist()], "y": [float(raster.y[0, 0]), *raster.y[:, 1].tolist()]}
    for column, (name, z) in enumerate(zip(names, values, strict=True), 2):
        cells = go.Heatmap(z=z, **edges, coloraxis="coloraxis", hovertemplate="%{z:+.4f}<extra></extra>", name=name)
        fig.add_trace(cells, row=1, col=column)
    about = [name for name in question.about if name in question.boxes] if picture == 0 else []
    for column in range(1, 2 + len(maps)):
        for left, top, right, bottom in (question.boxes[name] for name in about):
            box = {"x0": left, "x1": right, "y0": top, "y1": bottom, "line": {"color": colours.ink, "width": 2}}
            fig.add_shape(type="rect", **box, row=1, col=column)
        fig.update_xaxes(range=[0, width], visible=False, constrain="domain", row=1, col=column)
        fig.update_yaxes(
            range=[height, 0], visible=False, scaleanchor=f"x{column if column > 1 else ''}", constrain="domain", row=1, col=column
        )
    fig.update_layout(coloraxis=coloraxis(dark, max(limit(z[np.isfinite(z)]) for z in values), maps[0].unit))
    notes = f"The fall of the {maps[0].unit} per patch. Right answer: {question.answer_text}."
    notes += f" Outlined: {' and '.join(about)}." if about else ""
    frame(fig, question.text, notes, width=(1 + len(maps)) * (SIDE + 12) + 130, height=round(tall) + TITLE + 20, dark=dark, left=20)
    return fig.update_layout(margin={"l": 20, "r": 110, "b": 20, "t": fig.layout.margin.t + TITLE - 10})
