"""The logit lens: the right choice's probability by layer, and over the image."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill
from .theme import frame, look

if TYPE_CHECKING:
    from ..attribution import LogitLens
    from ..attribution.attention.grid import PatchGrid
    from ..data import Question

WIDTH, HEIGHT = 760, 420
COLUMNS, SIDE = 4, 210
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def lens_curves(lenses: Sequence[LogitLens], *, dark: bool = False) -> go.Figure:
    """Draw the right choice's probability after each layer, one curve per lens with a band of its 95% interval.

    For a lens at one token, a thin line shows the share of questions whose given answer leads from that layer on.

    Args:
        lenses: lenses of the same model, six at most.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no lenses or too many, or they differ in layers.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> figure = lens_curves([si.logit_lens(vlm, qs), si.logit_lens(vlm, qs, at="image")])
    """
    if not 1 <= len(lenses) <= len(DASHES):
        raise DataError(f"{len(lenses)} lenses: give 1 to {len(DASHES)} LogitLens")
    if len({len(lens.scores) for lens in lenses}) > 1:
        raise DataError(f"lenses of {', '.join(str(len(lens.scores)) for lens in lenses)} layers: give lenses of one model")
    fig, colours = go.Figure(), look(dark)
    for i, lens in enumerate(lenses):
        table = lens.to_frame()
        layers, colour = table["layer"].tolist(), colours.series[i]
        band = {"x": [*layers, *layers[::-1]], "y": [*table["high"], *table["low"][::-1]]}
        fig.add_trace(
            go.Scatter(
                **band, fill="toself", fillcolor=fill(colour, 0.16), mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False
            )
        )
        line = {"color": colour, "dash": DASHES[i]}
        fig.add_trace(
            go.Scatter(
                x=layers,
                y=table["score"],
                customdata=table[["low", "high"]].to_numpy(),
                hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
                mode="lines+markers",
                line=line | {"width": 2},
                marker={"size": 7, "symbol": SYMBOLS[i]},
                name=f"right choice, at {lens.at}",
            )
        )
        if lens.tokens.shape[1] > 1:
            continue
        fig.add_trace(
            go.Scatter(
                x=layers,
                y=table["appeared"],
                hovertemplate="layer %{x}: %{y:.3f} of the answers lead from here on",
                mode="lines",
                line={"color": colours.muted, "dash": DASHES[i], "width": 1.2},
                name=f"answer has appeared, at {lens.at}",
            )
        )
    L, questions = len(lenses[0].scores), lenses[0].answers.numel()
    chance = float(np.mean([1 / (lens > np.finfo(np.float32).min).sum() for lens in lenses[0].logits[:, 0, 0].numpy()]))
    fig.add_hline(y=chance, line={"color": colours.muted, "width": 1, "dash": "dot"}, layer="below")
    fig.update_xaxes(title_text="layer", tickvals=list(range(0, L, max(1, ceil(L / 12)))))
    fig.update_yaxes(title_text="probability among the choices", range=[0, 1.02])
    notes = f"{questions} questions; bands: 95% interval over images; dotted: chance. Thin: share of answers that lead from that layer on."
    return frame(fig, "Logit lens", notes, width=WIDTH, height=HEIGHT, dark=dark, legend=True)


def lens_over_image(
    lens: LogitLens, question: Question, grid: PatchGrid, *, layers: Sequence[int] | None = None, picture: int = 0, dark: bool = False
) -> go.Figure:
    """Draw the right choice's probability at each patch of an image, one panel per layer.

    Args:
        lens: a lens at "image" that has the question.
        question: the question.
        grid: which part of the image each token shows, as `patch_grid` returns it for this question.
        layers: the layers to draw; by default up to eight, evenly spread, with the last.
        picture: index of the image, where the question has several.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the lens does not have the question, or not the image's tokens, or there is no such layer or image.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=2)
    >>> figure = lens_over_image(si.logit_lens(vlm, qs, at="image"), qs[0], si.patch_grid(vlm, qs[0]))
    """
    if question.id not in lens.ids:
        raise DataError(f"the lens has no question {question.id!r}: give one of its own")
    if not 0 <= picture < len(grid.sizes):
        raise DataError(f"image {picture}: question {question.id} has {len(grid.sizes)} image(s), counted from 0; give one of these")
    L = len(lens.scores)
    chosen = sorted({round(i) for i in np.linspace(0, L - 1, min(L, 2 * COLUMNS))}) if layers is None else list(layers)
    if not chosen or any(not 0 <= layer < L for layer in chosen):
        raise DataError(f"layers {chosen}: give some from 0 to {L - 1}")
    row = lens.ids.index(question.id)
    place = {int(token): i for i, token in enumerate(lens.tokens[row, : int(lens.lengths[row])])}
    raster = next(r for r in grid.finest if r.picture == picture)
    if missing := [token for token in raster.tokens.flatten().tolist() if token not in place]:
        raise DataError(f"the lens does not read token {missing[0]} of the image: give logit_lens(..., at='image')")
    index = np.vectorize(place.get)(raster.tokens.numpy())
    values = lens.right[row].numpy()[:, index]
    (width, height), columns = grid.sizes[picture], min(COLUMNS, len(chosen))
    rows, colours = ceil(len(chosen) / columns), look(dark)
    tall = SIDE * height / width
    fig = make_subplots(
        rows, columns, subplot_titles=[f"layer {n}" for n in chosen], horizontal_spacing=0.03, vertical_spacing=34 / (rows * (tall + 34))
    )
    edges = {"x": [float(raster.x[0, 0]), *raster.x[:, 1].tolist()], "y": [float(raster.y[0, 0]), *raster.y[:, 1].tolist()]}
    for i, layer in enumerate(chosen):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        cells = go.Heatmap(z=values[layer], **edges, coloraxis="coloraxis", hovertemplate="%{z:.3f}<extra></extra>", name=f"layer {layer}")
        fig.add_trace(cells, **at)
        boxes = [question.boxes[name] for name in question.about if name in question.boxes] if picture == 0 else []
        for left, top, right, bottom in boxes:
            fig.add_shape(type="rect", x0=left, x1=right, y0=top, y1=bottom, line={"color": colours.ink, "width": 2}, **at)
        fig.update_xaxes(range=[0, width], visible=False, constrain="domain", **at)
        fig.update_yaxes(range=[height, 0], visible=False, scaleanchor=f"x{i + 1 if i else ''}", constrain="domain", **at)
    bar = {"title": {"text": "probability of the right choice", "side": "right", "font": {"size": 13}}, "outlinewidth": 0, "thickness": 14}
    chance = 1 / len(question.choices)
    scale = [[2 * at * chance if at <= 0.5 else chance + (2 * at - 1) * (1 - chance), colour] for at, colour in colours.diverging]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": 0, "cmax": 1, "colorbar": bar})
    notes = (
        f"Right: {question.answer_text}. Outlined: {' and '.join(question.about)}." if question.about else f"Right: {question.answer_text}."
    )
    wide, high = columns * (SIDE + 12) + 130, rows * (round(tall) + 34) + 20
    frame(fig, question.text, notes, width=wide, height=high, dark=dark, left=20)
    return fig.update_layout(margin={"l": 20, "r": 110, "b": 20, "t": fig.layout.margin.t + 20})
