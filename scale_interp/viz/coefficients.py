"""Are the learned scalars where attribution locates the behaviour?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

from ..errors import DataError
from .heatmap import LAYER, coloraxis, ground, layer_head_axes, limit, scalar_trace, score_trace
from .theme import LETTER, frame, look

if TYPE_CHECKING:
    from ..adapters import ScAle
    from ..attribution import HeadMap

WIDTH, RIGHT = 1060, 100
SCATTER = (WIDTH - 80 - RIGHT, 380)
"""Width and height of the scatter in pixels."""
MAP, GAP = 240, 96
"""Height of the maps of a small model, and the space between them and the scatter, in pixels."""
BETWEEN = 0.22
"""The share of the width between the maps, for the first one's colour bar."""
LABELS = 8
MANY = 300
"""More points than this are drawn small."""


def coefficients_vs_attribution(scale: ScAle, head_map: HeadMap, *, dark: bool = False) -> go.Figure:
    """Draw attribution and scalar - 1 as twin heatmaps, and scalar - 1 against the score of each learned head.

    The title gives Spearman's rank correlation over the learned heads; the outermost heads are labelled.

    Args:
        scale: the learned scalars.
        head_map: the scores to compare them with.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: the two are of models with different numbers of layers or heads.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", split="train", n=64)
    >>> m = si.attribute(vlm, train)
    >>> figure = coefficients_vs_attribution(si.fit_scale(vlm, train, epochs=2), m)
    """
    L, H = head_map.scores.shape
    if scale.scalars.shape != head_map.scores.shape:
        raise DataError(f"scalars for {tuple(scale.scalars.shape)} heads, scores for {(L, H)}: take both from one model")
    x = np.array([float(head_map.scores[h]) for h in scale.heads])
    y = np.array([float(scale.scalars[h]) - 1 for h in scale.heads])
    high = max(MAP, LAYER * L)
    tall, wide = high + GAP + SCATTER[1], SCATTER[0] * (1 - BETWEEN) / 2
    fig = make_subplots(
        2,
        2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=[head_map.method, "scalar − 1"],
        row_heights=[high, SCATTER[1]],
        horizontal_spacing=BETWEEN,
        vertical_spacing=GAP / tall,
    )
    fig.add_trace(score_trace(head_map, coloraxis="coloraxis"), row=1, col=1)
    fig.add_trace(_moved_trace(scale), row=1, col=2)
    for column in (1, 2):
        layer_head_axes(fig, L, H, wide, high, of=head_map.provenance, row=1, col=column)
    ground(fig, -0.5, H - 0.5, L, dark, row=1, col=2)
    _scatter(fig, scale, x, y, head_map.unit, dark)
    for name, title, values, place in (
        ("coloraxis", head_map.unit, head_map.scores.numpy(), (1 - BETWEEN) / 2),
        ("coloraxis2", "scalar − 1", y, 1.0),
    ):
        axis = coloraxis(dark, limit(values), title)
        axis["colorbar"] |= {"x": place + 0.01, "y": 1 - high / tall / 2, "len": high / tall * 1.04, "thickness": 12}
        fig.update_layout({name: axis})
    notes = f"{len(x)} learned heads; above 0 a head is amplified, below 0 damped."
    if len(x) < L * H:
        notes += " Grey: not learned."
    frame(fig, f"Learned scalars against {head_map.method}: {_agreement(x, y)}", notes, width=WIDTH, height=tall + 60, dark=dark)
    return fig.update_layout(margin={"t": fig.layout.margin.t + 24, "r": RIGHT}, height=fig.layout.height + 24)


def _moved_trace(scale: ScAle) -> go.Heatmap:
    trace = scalar_trace(scale, coloraxis="coloraxis2")
    hover = "layer %{y}, head %{x}<br>scalar − 1: %{z:+.4f}<extra></extra>"
    return trace.update(z=np.asarray(trace.z) - 1, hovertemplate=hover)


def _agreement(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "no rank correlation (too few different values)"
    rank = stats.spearmanr(x, y)
    return f"Spearman ρ = {rank.statistic:+.2f}, p = {rank.pvalue:.2g}"


def _scatter(fig: go.Figure, scale: ScAle, x: np.ndarray, y: np.ndarray, unit: str, dark: bool) -> None:
    colours, at = look(dark), {"row": 2, "col": 1}
    names = [f"L{layer}H{head}" for layer, head in scale.heads]
    reach, size = (_reach(x), _reach(y)), 9 if len(x) <= MANY else 6
    texts, places = _labels(names, x, y, reach)
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers+text",
            text=texts,
            textposition=places,
            textfont={"size": 12, "color": colours.ink},
            hovertext=names,
            hovertemplate="%{hovertext}<br>score %{x:+.4f}<br>scalar − 1: %{y:+.4f}<extra></extra>",
            marker={"size": size, "color": colours.series[0], "opacity": 0.85, "line": {"width": 1, "color": colours.paper}},
            name="heads",
        ),
        **at,
    )
    zero = {"zeroline": True, "zerolinecolor": colours.muted, "zerolinewidth": 1}
    fig.update_xaxes(title_text=f"score ({unit})", range=reach[0], **zero, **at)
    fig.update_yaxes(title_text="learned scalar − 1", range=reach[1], **zero, **at)


def _reach(values: np.ndarray) -> tuple[float, float]:
    """An axis range that contains 0 and all values, with space for the labels."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    pad = 0.12 * (high - low) or 1.0
    return low - pad, high + pad


def _labels(names: list[str], x: np.ndarray, y: np.ndarray, reach: tuple[tuple[float, float], ...]) -> tuple[list[str], list[str]]:
    """Names of the heads furthest from (0, 0), each on the side where it covers the fewest points and no other name."""
    pixels = [(v - low) / (high - low) * size for v, (low, high), size in zip((x, y), reach, SCATTER, strict=True)]
    points = np.stack(pixels, 1)
    texts, places = [""] * len(names), ["top center"] * len(names)
    taken: list[tuple[float, float, float, float]] = []
    far = np.argsort(-np.hypot(x / limit(x), y / limit(y)), kind="stable")[:LABELS]
    for i in far:
        sides = _sides(points[i], len(names[i]) * LETTER * 1.15)
        covered = {side: _covered(box, points) for side, box in sides.items() if not any(_overlap(box, other) for other in taken)}
        # In a crowd a label would hide points and be ambiguous; hovering names every head.
        if covered and min(covered.values()) == 0:
            texts[i], places[i] = names[i], min(covered, key=covered.__getitem__)
            taken.append(sides[places[i]])
    return texts, places


def _sides(point: np.ndarray, wide: float) -> dict[str, tuple[float, float, float, float]]:
    """Where a label would be: side -> (left, right, bottom, top) in pixels."""
    px, py = point
    return {
        "top center": (px - wide / 2, px + wide / 2, py + 5, py + 21),
        "bottom center": (px - wide / 2, px + wide / 2, py - 21, py - 5),
        "middle right": (px + 6, px + 6 + wide, py - 8, py + 8),
        "middle left": (px - 6 - wide, px - 6, py - 8, py + 8),
    }


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _covered(box: tuple[float, float, float, float], points: np.ndarray) -> int:
    left, right, bottom, top = box
    return int(((points[:, 0] > left - 4) & (points[:, 0] < right + 4) & (points[:, 1] > bottom - 4) & (points[:, 1] < top + 4)).sum())
