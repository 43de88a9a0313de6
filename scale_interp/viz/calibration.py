"""The p-values of many falsification suites against what they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from ..errors import DataError
from .theme import frame, look

if TYPE_CHECKING:
    from ..evaluation.falsification.calibration import Calibration

WIDTH, HEIGHT = 760, 460


def calibration(found: Calibration, *, dark: bool = False) -> go.Figure:
    """Draw the share of suites whose p-value (ScAle against base, uncorrected) is at most x, without signal and on planted shortfalls.

    The band holds 95% of the shares of as many uniform p-values, separately at each x.

    Args:
        found: the result of `calibrate`.
        dark: whether the figure is for a dark page.

    Raises:
        DataError: there are no suites without signal.

    >>> from scale_interp.evaluation.falsification.calibration import Calibration
    >>> suite = {"kind": "no signal", "p": 0.4, "p_corrected": 0.8, "low": -0.1, "high": 0.1, "gains": False, "survives": False}
    >>> figure = calibration(Calibration((suite,), {}))
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch and scipy.
    from scipy import stats

    from ..evaluation.falsification.calibration import NULL, PLANTED
    from ..evaluation.falsification.verdict import ALPHA

    if not found.of(NULL):
        raise DataError(
            "no suites without signal: there is nothing to compare with the uniform distribution; calibrate with suites=1 or more"
        )
    colours = look(dark)
    fig = go.Figure()
    grid = np.linspace(0, 1, 201)
    low, high = (stats.binom.ppf(q, len(found.of(NULL)), grid) / len(found.of(NULL)) for q in (0.025, 0.975))
    band = go.Scatter(
        x=np.concatenate([grid, grid[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=colours.band,
        line={"width": 0},
        hoverinfo="skip",
        name="95% of uniform p-values",
    )
    fig.add_trace(band)
    fig.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="uniform", line={"color": colours.muted, "width": 1.5, "dash": "dot"}))
    for i, kind in enumerate((NULL, PLANTED)):
        p = np.sort([row["p"] for row in found.of(kind)])
        if not len(p):
            continue
        fig.add_trace(
            go.Scatter(
                x=np.concatenate([[0], p, [1]]),
                y=np.concatenate([[0], np.arange(1, len(p) + 1) / len(p), [1]]),
                mode="lines",
                line={"shape": "hv", "color": colours.series[i], "width": 2.5, "dash": ("solid", "dash")[i]},
                name=f"{len(p)} suites, {kind}",
                hovertemplate="p ≤ %{x:.3f}: %{y:.1%}",
            )
        )
    fig.add_vline(x=ALPHA, line={"color": colours.muted, "width": 1})
    fig.update_xaxes(title_text="p-value of ScAle against the base model", range=[0, 1])
    fig.update_yaxes(title_text="share of suites with at most this p-value", range=[0, 1.02], tickformat=".0%")
    notes = f"At {ALPHA} (line) without signal: {found.false_rejections}."
    if found.of(PLANTED):
        notes += f" Planted shortfalls that survive the suite: {found.power}."
    return frame(fig, "False and true rejections of the suite", notes, width=WIDTH, height=HEIGHT, dark=dark, legend=True)
