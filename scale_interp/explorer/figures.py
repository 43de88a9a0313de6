"""The explorer's three live figures: image, heads, answers. Each is created once and then changed in place."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..attribution.headmap import HeadMap
from ..data.question import Question
from ..viz.attention_map import HEAT
from ..viz.heatmap import coloraxis, layer_head_axes, limit, score_trace
from ..viz.theme import LETTER, frame, look
from ..vlm.vlm import VLM
from .explorer import Component, Looking, component_name

WIDTH = 296
"""Width of a figure in pixels: three fit side by side in JupyterLab on a small screen, one on a phone."""
GAP = 12
FEW = 16
"""A map of more layers, or of more heads per layer, is drawn twice as large."""
LONGEST = 448
"""Longer side of the image as it is sent to the page, in pixels."""
LETTERS = 18
"""Letters of a choice in one line."""


class _Figure:
    """A FigureWidget without plotly's buttons, whose changes reach the page in one message."""

    legend = False

    def __init__(self) -> None:
        self.widget: Any = go.FigureWidget()
        self.widget._config = {"displayModeBar": False, "doubleClick": False}
        self.widget.update_layout(dragmode=False)

    @contextmanager
    def changing(self) -> Iterator[Any]:
        """Collect changes to the figure, and send them to the page in one message."""
        with self.widget.batch_update():
            yield self.widget
        self._keep()

    def _keep(self, layout: bool = True) -> None:
        # plotly sends changes to open pages only; a page that is opened later gets these.
        self.widget._widget_data = deepcopy(self.widget._data)
        if layout:
            self.widget._widget_layout = deepcopy(self.widget._layout)

    def _frame(self, title: str, notes: str, dark: bool, high: int, wide: int = WIDTH, left: int = 12, low: int = 12) -> None:
        """Set title, colours and size; high: height without the title, low: height below the axes, in pixels."""
        # Not in `changing`: within one batch plotly drops the second of two values of a property if it is the current one.
        fig = frame(self.widget, title, notes, width=wide, height=high, dark=dark, legend=self.legend)
        fig.update_layout(margin={"l": left, "r": 12, "b": low}, title_pad_l=12, title_font_size=16)
        self._keep()


class ImageFigure(_Figure):
    """The image, the known boxes, and one head's attention over it."""

    def __init__(self) -> None:
        super().__init__()
        self.widget.add_heatmap(
            z=[[0.0]], colorscale=[list(s) for s in HEAT], zmin=0, zmax=1, showscale=False, hoverinfo="skip", name="map"
        )
        self.widget.update_xaxes(visible=False, constrain="domain", fixedrange=True)
        self.widget.update_yaxes(visible=False, scaleanchor="x", constrain="domain", fixedrange=True)

    def draw(self, question: Question, picture: int, dark: bool) -> None:
        """Draw one of the images of a question, with its boxes."""
        image = question.images[picture] if question.pictures else Image.new("RGB", (4, 3), look(dark).empty)
        width, height = image.size
        image.thumbnail((LONGEST, LONGEST))
        with self.changing() as fig:
            side = {"sizex": width, "sizey": height, "xref": "x", "yref": "y", "sizing": "stretch", "layer": "below"}
            fig.layout.images = [go.layout.Image(source=image, x=0, y=0, **side)]
            fig.layout.shapes = list(_boxes(question, dark)) if picture == 0 else []
            fig.update_xaxes(range=[0, width])
            fig.update_yaxes(range=[height, 0])
            fig.data[0].update(z=[[0.0]], x=[width / 2], y=[height / 2])
            high = round(min(1.25, height / width) * (WIDTH - 24))
        self._frame("Image" if question.pictures else "No image", "", dark, high + 12)

    def overlay(self, question: Question, picture: int, looking: Looking | None, part: Component | None) -> str:
        """Draw where a head looks (nothing for an MLP), and return it in words."""
        if looking is None or part is None or part[1] is None:
            with self.changing() as fig:
                fig.data[0].z = np.zeros((1, 1))
            return "" if part is None or part[1] is not None else f"{component_name(part).capitalize()} has no attention."
        row, grid = looking.weights[part[0], part[1]], looking.grid
        heat = grid.upsample(row, picture, 112).numpy()
        width, height = grid.sizes[picture]
        h, w = heat.shape
        with self.changing() as fig:
            x, y = (np.arange(w) + 0.5) * width / w, (np.arange(h) + 0.5) * height / h
            fig.data[0].update(z=(heat / (heat.max() or 1.0)).astype(np.float32), x=x, y=y)
        said = f"{component_name(part).capitalize()} (unedited): {float(heat.sum()):.0%} of its attention is on the image"
        boxes = [question.boxes[name] for name in question.about if name in question.boxes]
        if boxes and picture == 0:
            said += f", {float(row.double() @ grid.cover(boxes)):.0%} on {' and '.join(n for n in question.about if n in question.boxes)}"
        return f"{said}."


def _boxes(question: Question, dark: bool) -> Iterator[dict[str, Any]]:
    """The boxes that are asked about, or all where none are named: light below, colour above, visible on any background."""
    names = [name for name in question.about if name in question.boxes] or list(question.boxes)
    for name in names:
        left, top, right, bottom = question.boxes[name]
        for colour, wide in (("#ffffff", 4), (look(dark).series[0], 2)):
            yield {"type": "rect", "x0": left, "x1": right, "y0": top, "y1": bottom, "line": {"color": colour, "width": wide}}


class HeadsFigure(_Figure):
    """The scores of all heads, and a column of MLPs. A click chooses one."""

    def __init__(self, head_map: HeadMap | None, vlm: VLM) -> None:
        super().__init__()
        self.head_map, self.L, self.H = head_map, (L := vlm.n_layers), (H := vlm.n_heads)
        self.wide = WIDTH if H <= FEW else 2 * WIDTH + GAP
        self.high = 240 if L <= FEW else 480
        wide = max(1.0, H / 10)
        self.at_mlp = H + wide / 2
        if head_map is None:
            grey = {"colorscale": [[0, "#9aa1ad"], [1, "#9aa1ad"]], "showscale": False, "xgap": 1, "ygap": 1}
            self.widget.add_heatmap(z=np.zeros((L, H)), hovertemplate="layer %{y}, head %{x}<extra></extra>", **grey)
        else:
            self.widget.add_trace(score_trace(head_map, coloraxis="coloraxis"))
        self.widget.add_heatmap(
            z=np.zeros((L, 1)),
            x=[self.at_mlp - wide / 2, self.at_mlp + wide / 2],
            y=np.arange(L),
            showscale=False,
            ygap=1,
            hovertemplate="layer %{y}, MLP<extra></extra>",
            name="MLPs",
        )
        marker = {"size": 9, "symbol": "diamond", "line": {"width": 1.5}}
        self.widget.add_scatter(x=[], y=[], mode="markers", marker=marker, hoverinfo="skip", name="edited")
        layer_head_axes(self.widget, L, H, self.wide - 80, self.high, of=vlm.describe())
        ticks = list(self.widget.layout.xaxis.tickvals)
        self.widget.update_xaxes(
            tickvals=[*ticks, self.at_mlp], ticktext=[*map(str, ticks), "MLP"], range=[-0.5, self.at_mlp + wide / 2], fixedrange=True
        )
        self.widget.update_yaxes(fixedrange=True)

    def part(self, trace: int, x: float, y: float) -> Component:
        """The head or MLP whose cell was clicked."""
        return (round(y), None if trace == 1 else round(x))

    def style(self, dark: bool) -> None:
        """Set colours and title for a dark or a light page."""
        colours = look(dark)
        with self.changing() as fig:
            fig.data[1].colorscale = [[0, colours.empty], [1, colours.empty]]
            fig.data[2].marker.update(color=colours.paper, line={"color": colours.ink, "width": 1.5})
            if self.head_map is None:
                title, notes = "Heads", "No scores: this model runs whole passes for its edits, and these have no gradient."
            else:
                axis = coloraxis(dark, limit(self.head_map.scores.numpy()), self.head_map.unit)
                bar = {"orientation": "h", "y": -46 / self.high, "yanchor": "top", "thickness": 9, "len": 1.0, "tickfont": {"size": 11}}
                named = {"title": {"text": self.head_map.unit, "side": "bottom", "font": {"size": 12}}}
                fig.update_layout(coloraxis=axis | {"colorbar": axis["colorbar"] | bar | named})
                Q = len(self.head_map.per_question)
                title, notes = f"Heads: {self.head_map.method}", f"{Q} question{'s' * (Q != 1)}. ◇ edited, □ chosen."
        self._frame(title, notes, dark, self.high + 92, self.wide, left=40, low=92)

    def mark(self, selected: Component | None, edited: Sequence[Component], dark: bool) -> None:
        """Mark the edited heads and the chosen one."""
        x = [self.at_mlp if head is None else head for _, head in edited]
        with self.changing() as fig:
            fig.data[2].update(x=x, y=[layer for layer, _ in edited])
            fig.layout.shapes = [] if selected is None else list(self._outline(selected, dark))

    def _outline(self, part: Component, dark: bool) -> Iterator[dict[str, Any]]:
        layer, head = part
        middle, half = (self.at_mlp, self.at_mlp - self.H) if head is None else (head, 0.5)
        for colour, wide in ((look(dark).paper, 5), (look(dark).ink, 2.5)):
            side = {"x0": middle - half, "x1": middle + half, "y0": layer - 0.5, "y1": layer + 0.5}
            yield {"type": "rect", **side, "line": {"color": colour, "width": wide}}


class AnswersFigure(_Figure):
    """The probability of every choice, base and edited side by side, with the right one marked."""

    legend = True

    def __init__(self) -> None:
        super().__init__()
        common = {"orientation": "h", "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip", "x": [], "y": []}
        for name in ("base", "edited"):
            self.widget.add_bar(name=name, **common)
        self.widget.update_layout(barmode="group", bargap=0.3, bargroupgap=0.08)
        self.widget.update_xaxes(range=[0, 1.16], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".2~f", fixedrange=True)
        # automargin would compute the layout twice for each move of the slider
        self.widget.update_xaxes(automargin=False)
        self.widget.update_yaxes(autorange="reversed", fixedrange=True, showgrid=False, automargin=False)

    def draw(self, question: Question, base: Float[Tensor, " choices"], dark: bool) -> None:
        """Draw the base model's answers to another question."""
        colours, C = look(dark), len(question.choices)
        names = [_choice(choice, c == question.answer) for c, choice in enumerate(question.choices)]
        with self.changing() as fig:
            for trace, colour in zip(fig.data, (colours.muted, colours.series[1]), strict=True):
                trace.update(y=list(range(C)), marker={"color": colour}, textfont={"color": colours.ink, "size": 13})
            _set(fig.data[0], base.tolist())
            fig.update_yaxes(tickvals=list(range(C)), ticktext=names)
        longest = max(len(line) for name in names for line in re.sub("</?b>", "", name).split("<br>"))
        self._frame("Answers", "✓ is the right answer.", dark, max(200, 62 * C + 60), left=round(longest * LETTER * 1.2) + 14, low=36)

    def edited(self, probabilities: Sequence[float]) -> None:
        """Draw the answers with the edit."""
        with self.widget.batch_update():
            _set(self.widget.data[1], probabilities)
        self._keep(layout=False)


def _set(bar: Any, probabilities: Sequence[float]) -> None:
    bar.update(x=list(probabilities), text=[f"{p:.3f}" for p in probabilities])


def _choice(text: str, right: bool) -> str:
    short = textwrap.shorten(text, 3 * LETTERS, placeholder=" …")
    # plotly interprets tags in labels
    lines = [line.replace("<", "&lt;") for line in textwrap.wrap(short, LETTERS)]
    return f"<b>✓ {'<br>'.join(lines)}</b>" if right else "<br>".join(lines)
