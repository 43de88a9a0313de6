"""A head's attention over an image: its map on the patch grid, the asked boxes outlined, the peak marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from ..errors import DataError
from .theme import frame, look

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..attribution.attention.grid import PatchGrid
    from ..data import Question

LONGEST = 560
"""Longer side of the image in the figure, in pixels."""
HEAT = ((0.0, "rgba(213, 94, 0, 0)"), (0.25, "rgba(213, 94, 0, 0.32)"), (1.0, "rgba(213, 94, 0, 0.86)"))
"""Transparent where a head does not look, so that the image shows through."""


def attention_over_picture(
    question: Question,
    weights: Float[Tensor, "layers heads tokens"],
    grid: PatchGrid,
    layer: int,
    head: int,
    *,
    picture: int = 0,
    dark: bool = False,
) -> go.Figure:
    """Draw one head's attention weights over the parts of the image that its tokens show.

    Boxes of the objects in `question.about` are outlined; they are in the question's first image.

    Args:
        question: the question that was asked.
        weights: attention of the last token, as `read_attention` returns it for this question.
        grid: which part of the image each token shows, as `patch_grid` returns it for this question.
        layer: the head's layer, from 0.
        head: the query head, from 0.
        picture: index of the image, where the question has several.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the weights do not belong to the grid, or there is no such head or image.

    >>> import scale_interp as si
    >>> from scale_interp.attribution.attention.last_token import read_attention
    >>> from scale_interp.attribution.attention.grid import patch_grid
    >>> vlm, question = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
    >>> figure = attention_over_picture(question, read_attention(vlm, question)[0], patch_grid(vlm, question), 3, 4)
    """
    L, H, T = weights.shape
    if grid.n_tokens != T:
        raise DataError(f"weights over {T} tokens and a grid of {grid.n_tokens}: give both of the same question")
    if not (0 <= layer < L and 0 <= head < H):
        raise DataError(f"head ({layer}, {head}): the weights have {L} layers of {H} heads")
    if not 0 <= picture < len(grid.sizes):
        raise DataError(
            f"image {picture}: question {question.id} has {len(grid.sizes)} image(s); give a number from 0 to {len(grid.sizes) - 1}"
        )
    row, (width, height) = weights[layer, head], grid.sizes[picture]
    heat = grid.upsample(row, picture).numpy()
    size = {"x": (np.arange(heat.shape[1]) + 0.5) * width / heat.shape[1], "y": (np.arange(heat.shape[0]) + 0.5) * height / heat.shape[0]}
    fig = go.Figure(
        go.Heatmap(z=heat, **size, colorscale=[list(stop) for stop in HEAT], zmin=0, showscale=False, hoverinfo="skip", name="map")
    )
    fig.add_layout_image(
        source=question.images[picture], x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below"
    )
    colours = look(dark)
    boxes = [question.boxes[name] for name in question.about if name in question.boxes] if picture == 0 else []
    for left, top, right, bottom in boxes:
        # Light on dark on light can be seen on any background.
        for colour, wide in (("#ffffff", 5), (colours.series[0], 2.5)):
            fig.add_shape(type="rect", x0=left, x1=right, y0=top, y1=bottom, line={"color": colour, "width": wide})
    x, y = _peak(heat, grid, picture)
    marker = {"symbol": "cross-thin", "size": 15, "line": {"color": "#ffffff", "width": 5}}
    fig.add_trace(go.Scatter(x=[x], y=[y], mode="markers", marker=marker, hoverinfo="skip", name="peak, ground"))
    marker = {"symbol": "cross-thin", "size": 13, "line": {"color": "#000000", "width": 2}}
    fig.add_trace(go.Scatter(x=[x], y=[y], mode="markers", marker=marker, hovertemplate="peak<extra></extra>", name="peak"))
    scale = LONGEST / max(width, height)
    fig.update_xaxes(range=[0, width], visible=False, constrain="domain")
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x", constrain="domain")
    notes = _notes(question, row, grid, boxes, float(heat.sum()))
    wide, high = max(360, round(width * scale) + 40), round(height * scale) + 20
    frame(fig, f"Layer {layer}, head {head}: {question.text}", notes, width=wide, height=high, dark=dark, left=20)
    return fig.update_layout(margin={"l": 20, "r": 20, "b": 20})


def _peak(heat: np.ndarray, grid: PatchGrid, picture: int) -> tuple[float, float]:
    """The middle of the finest patch in which the map is largest, in pixels (x, y)."""
    width, height = grid.sizes[picture]
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    at = (column + 0.5) * width / heat.shape[1], (row + 0.5) * height / heat.shape[0]
    raster = next(r for r in grid.finest if r.picture == picture)
    x, y = (float(edges[_nearest(edges.numpy(), place)].mean()) for edges, place in zip((raster.x, raster.y), at, strict=True))
    return x, y


def _nearest(edges: np.ndarray, place: float) -> int:
    return int(np.abs(edges.mean(1) - place).argmin())


def _notes(question: Question, row: Tensor, grid: PatchGrid, boxes: list, mass: float) -> str:
    notes = f"{mass:.1%} of its attention is on the image"
    if boxes:
        names = " and ".join(name for name in question.about if name in question.boxes)
        notes += f", {float(row.double() @ grid.cover(boxes)):.1%} on the outlined boxes ({names})"
    return f"{notes}. Stronger colour: more attention per pixel. + peak."
