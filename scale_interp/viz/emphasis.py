"""What emphasised heads do: the change of a metric by gain, and by the length of an added direction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError
from .colour import fill
from .theme import frame, look

if TYPE_CHECKING:
    from ..adapters.steering.emphasis import Interventions

AXES = {"gain": "heads multiplied by", "alpha": "standard deviations added along the direction"}
NOTHING = {"gain": 1.0, "alpha": 0.0}
"""The value at which an emphasis is no edit: its change is 0 without being measured."""
NAMED = re.compile(r"(gain|alpha) -?[0-9.]+(e[+-]?[0-9]+)?")
"""The names that `emphasise` gives its edits."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")


def emphasis_curves(found: Interventions | Mapping[str, Interventions], *, title: str | None = None, dark: bool = False) -> go.Figure:
    """Draw the change of the metric over all questions with 95% bands.

    There is one line per set of heads, one panel for gains and one for directions.

    Args:
        found: the result of `emphasise` for one set of heads, or for up to seven sets by name.
        title: the figure's title.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no sets or more than seven, or no edit is a gain or a direction.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> figure = emphasis_curves(si.emphasise(vlm, qs, [(3, 1)], gains=(1.5, 2.0), by="answer_text"))
    """
    curves = found if isinstance(found, Mapping) else {"": found}
    if not 1 <= len(curves) <= len(SYMBOLS):
        raise DataError(f"{len(curves)} sets of heads: give 1 to {len(SYMBOLS)}, name -> the result of emphasise")
    points = {kind: {name: drawn for name, part in curves.items() if len(drawn := _points(part, kind)) > 1} for kind in AXES}
    kinds = [kind for kind in AXES if points[kind]]
    if not kinds:
        names = sorted({name for part in curves.values() for name in part.names})
        raise DataError(f"no edit is called 'gain NUMBER' or 'alpha NUMBER' ({', '.join(names)}): give the result of emphasise")
    colours = look(dark)
    fig = make_subplots(1, len(kinds), shared_yaxes=True, horizontal_spacing=0.06)
    shown: set[str] = set()
    for column, kind in enumerate(kinds, 1):
        at = {"row": 1, "col": column}
        for i, name in enumerate(curves):
            if name not in points[kind]:
                continue
            x, change, low, high = points[kind][name].T
            colour = colours.series[i]
            band = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([high, low[::-1]]), "name": f"{name} band"}
            fig.add_trace(
                go.Scatter(
                    **band, fill="toself", fillcolor=fill(colour, 0.13), line_width=0, mode="lines", hoverinfo="skip", showlegend=False
                ),
                **at,
            )
            fig.add_trace(
                go.Scatter(
                    x=x,
                    y=change,
                    customdata=np.stack([low, high], 1),
                    hovertemplate=f"{kind} %{{x:g}}: %{{y:+.3f}} [%{{customdata[0]:+.3f}}, %{{customdata[1]:+.3f}}]",
                    mode="lines+markers",
                    line={"color": colour, "width": 2},
                    marker={"size": 8, "symbol": SYMBOLS[i], "color": colour},
                    name=name or "emphasised",
                    legendgroup=name,
                    showlegend=len(curves) > 1 and name not in shown,
                ),
                **at,
            )
            shown.add(name)
        ticks = sorted({float(x) for part in points[kind].values() for x in part[:, 0]})
        fig.update_xaxes(title_text=AXES[kind], tickvals=ticks, **at)
        fig.add_hline(y=0, line={"color": colours.muted, "width": 1}, layer="below", **at)
    metric = next(iter(curves.values())).metric.replace("_", " ")
    fig.update_yaxes(title_text=f"change of {metric}", tickformat="+.2f", row=1, col=1)
    Q = sorted({len(part.base) for part in curves.values()})
    notes = f"{' or '.join(map(str, Q))} questions; bands: 95% interval of the paired difference from no edit."
    width = 620 if len(kinds) == 1 else 980
    return frame(fig, title or "Heads emphasised", notes, width=width, height=400, dark=dark, legend=len(curves) > 1)


def _points(found: Interventions, kind: str) -> np.ndarray:
    """Value, change, low and high of every edit of the kind, and of no edit [P, 4]."""
    rows = [(NOTHING[kind], 0.0, 0.0, 0.0)]
    for name in found.names:
        if NAMED.fullmatch(name) and name.startswith(f"{kind} "):
            d = found.difference(name)
            rows.append((float(name.split()[1]), d.mean, d.low, d.high))
    return np.array(sorted(rows))
