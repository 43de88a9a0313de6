"""Figures show the numbers they are given, and the report page keeps its promises."""

import re
from dataclasses import replace
from itertools import combinations

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from scipy import stats

from docs.studies import figures as drawn
from docs.studies import synthetic as made
from scale_interp import viz
from scale_interp.adapters import ScAle
from scale_interp.attribution import HeadMap, Rescaling
from scale_interp.data import Question
from scale_interp.errors import DataError, EditError, FileError
from scale_interp.evaluation import Evaluation, Falsification
from scale_interp.viz.theme import DARK, LIGHT

L, H = 6, 8
EVERY = tuple((layer, head) for layer in range(L) for head in range(H))


def made_map(layers=L, heads=H, method="patch", seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(40, layers, heads, generator=draw) * 0.1
    values[:, layers - 1, 0] += 0.5
    return HeadMap(method, "recovered fraction", values, torch.arange(40))


def made_scale(heads=EVERY, mlp=True, best_epoch=2):
    draw = torch.Generator().manual_seed(1)
    scalars = torch.ones(L, H)
    for head in heads:
        scalars[head] = 1 + 0.3 * torch.randn((), generator=draw)
    mlps = 1 + 0.1 * torch.randn(L, generator=draw) if mlp else torch.ones(L)
    history = tuple({"epoch": i, "train_loss": 1.0 / (i + 1), "validation_loss": 1.2 / (i + 1), "retain_kl": 0.01 * i} for i in range(4))
    return ScAle(scalars, mlps, len(heads) + L * mlp, tuple(heads), settings={"mlp": mlp, "best_epoch": best_epoch}, history=history)


def made_falsification():
    def row(name, gain, **more):
        return {
            "control": name,
            "accuracy": 0.6 + gain,
            "gain": gain,
            "low": gain - 0.05,
            "high": gain + 0.04,
            "p": 0.001,
            "p_corrected": 0.01,
        } | more

    less = {"full_minus": 0.2, "full_minus_p_corrected": 0.004}
    # ScAle not first: the figure has to put it there.
    rows = (
        row("random heads", 0.02, **less),
        row("ScAle", 0.22),
        row("output bias", 0.01, **less),
        row("text-only correction", 0.03, **less),
    )
    return Falsification(0.6, rows, 0, 0, "ab12", {}, {})


def made_question(**changes):
    fields = {"text": "Where is the cat?", "choices": ("left", "right"), "answer": 1, "picture": Image.new("RGB", (8, 4), "red")} | changes
    return Question(**fields)


def heatmaps(figure):
    return [trace for trace in figure.data if isinstance(trace, go.Heatmap)]


def all_figures(dark=False):
    m, scale = made_map(), made_scale()
    questions = [made_question(id=str(i), relation=("left", "right")[i % 2]) for i in range(20)]
    ev = Evaluation(questions, torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    rows = [{"task": "colour", "fit": "ScAle", "change": -0.01, "low": -0.04, "high": 0.02}]
    return [
        viz.head_heatmap(m, marks=[(0, 1)], dark=dark),
        viz.head_heatmaps([m, made_map(method="probe")], dark=dark),
        viz.scalar_heatmap(scale, dark=dark),
        viz.coefficients_vs_attribution(scale, m, dark=dark),
        viz.controls(made_falsification(), dark=dark),
        viz.accuracy_by({"base": ev}, "relation", dark=dark),
        viz.retention(rows, dark=dark),
        viz.training_curve(scale, dark=dark),
        viz.rescaling(made_study("layer", 6), dark=dark),
    ]


def made_study(unit, count):
    draw = torch.Generator().manual_seed(3)
    values = torch.randn(30, 2, count, generator=draw) * torch.linspace(0.1, 2, count)
    return Rescaling(unit, tuple(map(str, range(count))), (0.0, 2.0), "accuracy", values, torch.arange(30), {})


class TestHeadHeatmap:
    def test_cells_are_the_scores_with_layer_zero_at_the_bottom(self):
        m = made_map()
        figure = viz.head_heatmap(m)
        assert np.array_equal(heatmaps(figure)[0].z, m.scores.numpy())
        low, high = figure.layout.yaxis.range
        assert low < high
        assert figure.layout.yaxis.title.text == "layer"
        assert figure.layout.xaxis.title.text == "head"

    def test_colours_are_centred_on_zero(self):
        m = made_map()
        axis = viz.head_heatmap(m).layout.coloraxis
        assert axis.cmin == -axis.cmax == -float(m.scores.abs().max())
        assert axis.colorbar.title.text == "recovered fraction"
        assert len(axis.colorscale) % 2 == 1

    def test_hover_has_score_interval_p_and_rank(self):
        m = made_map()
        trace = heatmaps(viz.head_heatmap(m))[0]
        row = m.to_frame().set_index(["layer", "head"]).loc[(5, 0)]
        assert trace.customdata[5, 0].tolist() == [row[c] for c in ("score", "low", "high", "p", "rank")]
        assert all(f"customdata[{i}]" in trace.hovertemplate for i in range(5))

    def test_only_significant_heads_have_a_dot(self):
        m = made_map()
        dots = next(t for t in viz.head_heatmap(m).data if t.name == "significant")
        assert set(zip(dots.y, dots.x, strict=True)) == {tuple(i) for i in m.significant(0.05).nonzero().tolist()}
        assert (5, 0) in set(zip(dots.y, dots.x, strict=True))

    def test_marks_are_outlined(self):
        (shape,) = viz.head_heatmap(made_map(), marks=[(2, 7)]).layout.shapes
        assert (shape.x0, shape.x1, shape.y0, shape.y1) == (6.5, 7.5, 1.5, 2.5)

    def test_a_mark_out_of_range_is_an_error(self):
        with pytest.raises(EditError, match=r"\(6, 0\)"):
            viz.head_heatmap(made_map(), marks=[(6, 0)])

    @pytest.mark.parametrize(("layers", "heads"), [(1, 1), (12, 8), (32, 32), (80, 64)])
    def test_ticks_do_not_crowd(self, layers, heads):
        figure = viz.head_heatmap(made_map(layers, heads))
        for axis, count, pixels, room in ((figure.layout.xaxis, heads, 530, 24), (figure.layout.yaxis, layers, 460, 16)):
            assert 1 <= len(axis.tickvals) <= min(count, pixels / room + 1)
            assert axis.tickvals[0] == 0
        assert 300 <= figure.layout.width <= 800
        assert 200 <= figure.layout.height <= 700

    def test_a_map_of_zeros_and_of_one_question(self):
        figure = viz.head_heatmap(HeadMap("patch", "u", torch.zeros(1, 2, 3), torch.zeros(1)))
        assert figure.layout.coloraxis.cmax == 1
        assert "corrected p" not in heatmaps(figure)[0].hovertemplate


class TestHeadHeatmaps:
    def test_each_map_is_divided_by_its_own_largest(self):
        maps = [made_map(), made_map(method="probe", seed=5)]
        figure = viz.head_heatmaps(maps)
        for trace, m in zip(heatmaps(figure), maps, strict=True):
            assert np.abs(trace.z).max() == pytest.approx(1)
            assert np.allclose(trace.z * float(m.scores.abs().max()), m.scores)
            assert np.array_equal(trace.customdata[..., 0], m.scores)
        assert "largest |score|" in figure.layout.coloraxis.colorbar.title.text
        assert [a.text.split("<br>")[0] for a in figure.layout.annotations] == ["patch", "probe"]

    def test_no_maps(self):
        with pytest.raises(DataError, match="no maps"):
            viz.head_heatmaps([])


class TestScalarHeatmap:
    def test_cells_and_mlp_column(self):
        scale = made_scale()
        figure = viz.scalar_heatmap(scale)
        heads, mlps = heatmaps(figure)
        assert np.allclose(heads.z, scale.scalars)
        assert np.allclose(mlps.z[:, 0], scale.mlp_scalars)
        assert min(mlps.x) >= H - 0.5
        axis = figure.layout.coloraxis
        assert (axis.cmin + axis.cmax) / 2 == pytest.approx(1)
        assert figure.layout.xaxis.ticktext[-1] == "MLP"

    def test_what_was_not_learned_has_no_value(self):
        heads, mlps = heatmaps(viz.scalar_heatmap(made_scale(heads=((1, 2),), mlp=False)))
        assert np.argwhere(np.isfinite(heads.z)).tolist() == [[1, 2]]
        assert np.isnan(mlps.z).all()


class TestCoefficients:
    def test_points_are_the_learned_heads(self):
        m, scale = made_map(), made_scale(heads=EVERY[::5], mlp=False)
        figure = viz.coefficients_vs_attribution(scale, m)
        points = figure.data[-1]
        assert points.x.tolist() == [float(m.scores[h]) for h in EVERY[::5]]
        assert points.y == pytest.approx([float(scale.scalars[h]) - 1 for h in EVERY[::5]])
        assert points.hovertext[1] == "L0H5"
        rank = stats.spearmanr(points.x, points.y)
        assert f"{rank.statistic:+.2f}, p = {rank.pvalue:.2g}" in figure.layout.title.text.replace("<br>", " ")
        assert np.allclose(heatmaps(figure)[1].z[0, 5], float(scale.scalars[0, 5]) - 1)

    def test_at_most_eight_labels_the_furthest_among_them(self):
        m, scale = made_map(), made_scale()
        points = viz.coefficients_vs_attribution(scale, m).data[-1]
        assert "L5H0" in points.text
        assert 1 <= sum(t != "" for t in points.text) <= 8

    def test_zero_is_in_both_ranges(self):
        layout = viz.coefficients_vs_attribution(made_scale(), made_map()).layout
        assert all(axis.zeroline and axis.range[0] < 0 < axis.range[1] for axis in (layout.xaxis3, layout.yaxis3))

    @pytest.mark.parametrize("heads", [(), ((0, 0),), ((0, 0), (1, 1))])
    def test_few_heads_have_no_rank_correlation(self, heads):
        assert "no rank correlation" in viz.coefficients_vs_attribution(made_scale(heads=heads), made_map()).layout.title.text

    def test_maps_of_another_model(self):
        with pytest.raises(DataError, match="one model"):
            viz.coefficients_vs_attribution(made_scale(), made_map(2, 2))


class TestBars:
    def test_controls(self):
        f = made_falsification()
        figure = viz.controls(f)
        assert [t.y[0] for t in figure.data] == ["ScAle", "random heads", "output bias", "text-only correction"]
        for trace in figure.data:
            row = f[trace.y[0]]
            assert trace.x[0] == row["gain"]
            assert trace.error_x.array[0] == pytest.approx(row["high"] - row["gain"])
            assert trace.error_x.arrayminus[0] == pytest.approx(row["gain"] - row["low"])
        assert len({t.marker.color for t in figure.data[1:]}) == 1
        assert figure.data[0].marker.color != figure.data[1].marker.color
        assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
        notes = figure.layout.title.subtitle.text.replace("<br>", " ")
        assert "0.600" in notes
        assert f.verdict in notes

    def test_accuracy_by(self):
        questions = [
            made_question(id=str(i), relation=("left", "right")[i % 2], picture=Image.new("RGB", (8, 4), (i, 0, 0))) for i in range(20)
        ]
        scores = torch.zeros(20, 2)
        scores[:10, 1] = 1
        scores[10:, 0] = 1
        scores[10, 1] = 2
        ev = Evaluation(questions, scores)
        (bar,) = viz.accuracy_by({"base": ev}, "relation").data
        assert list(bar.x) == ["left", "right"]
        assert bar.y.tolist() == pytest.approx([0.6, 0.5])
        assert (bar.y - bar.error_y.arrayminus).tolist() == pytest.approx(ev.by("relation")["low"].tolist())
        with pytest.raises(DataError):
            viz.accuracy_by({}, "relation")

    def test_retention(self):
        rows = [
            {"task": task, "fit": fit, "change": change, "low": change - 0.02, "high": change + 0.03}
            for task, fit, change in (("a", "x", 0.1), ("a", "y", -0.1), ("b", "x", 0.0))
        ]
        first, second = viz.retention(rows).data
        assert (list(first.x), list(second.x)) == ([0.1, 0.0], [-0.1])
        assert [round(v) for v in first.y] == [0, 1]
        assert first.y[0] != second.y[0]
        with pytest.raises(DataError, match="low"):
            viz.retention([{"task": "a", "fit": "x", "change": 0, "high": 1}])
        with pytest.raises(DataError, match="no rows"):
            viz.retention([])


class TestCurves:
    def test_training_curve(self):
        scale = made_scale()
        figure = viz.training_curve(scale)
        assert {t.name: list(t.y) for t in figure.data}["validation"] == [h["validation_loss"] for h in scale.history]
        assert {s.x0 for s in figure.layout.shapes} == {2}
        with pytest.raises(DataError, match="no history"):
            viz.training_curve(ScAle(torch.ones(1, 1), torch.ones(1), 0, ()))

    def test_rescaling_passes_through_no_change_at_one(self):
        study = made_study("layer", 6)
        for trace in viz.rescaling(study).data:
            unit = int(trace.name.split()[1])
            factors = [row[0] for row in trace.customdata]
            assert factors == [0.0, 1.0, 2.0]
            assert trace.y.tolist() == pytest.approx([float(study.change[0, unit]), 0.0, float(study.change[1, unit])])

    def test_only_the_units_that_move_most_are_named(self):
        traces = viz.rescaling(made_study("head", 30)).data
        named = [t for t in traces if t.showlegend]
        assert len(traces) == 30
        assert len(named) == 8
        assert min(np.abs(t.y).max() for t in named) >= max(np.abs(t.y).max() for t in traces if not t.showlegend)


class TestLook:
    def test_dark_and_light_differ_in_every_figure(self):
        for light, dark in zip(all_figures(), all_figures(dark=True), strict=True):
            papers = [f.layout.template.layout.paper_bgcolor for f in (light, dark)]
            assert papers[0] != papers[1]

    def test_every_axis_has_a_title_and_text_stands_out(self):
        for dark in (False, True):
            for figure in all_figures(dark):
                titles = [a.title.text for a in figure.select_yaxes()]
                assert all(titles)
                layout = figure.layout.template.layout
                assert contrast(layout.font.color, layout.paper_bgcolor) > 7
                assert contrast(figure.layout.title.subtitle.font.color, layout.paper_bgcolor) > 4.5


@pytest.fixture(scope="module", params=["light", pytest.param("dark", marks=pytest.mark.full)])
def every(request):
    """Every public figure of a model of 12 x 8 heads and of one of a single head: Look, name -> figure."""
    dark = request.param == "dark"
    return DARK if dark else LIGHT, {name: draw(dark) for name, draw in drawn.every(((1, 1), (12, 8))).items()}


class TestReading:
    def test_every_public_figure_is_looked_at(self):
        not_figures = {"Section", "explore", "question_card", "save_figure", "write_report"}
        assert {name.split("-")[0] for name in drawn.every(((12, 8),))} == set(viz.__all__) - not_figures

    def test_text_stands_out_from_the_paper(self, every):
        look, figures = every
        for name, figure in figures.items():
            layout, template = figure.layout, figure.layout.template.layout
            assert template.paper_bgcolor == template.plot_bgcolor == look.paper
            colours = [template.font.color, layout.title.font.color, layout.title.subtitle.font.color]
            colours += [a.font.color or template.annotationdefaults.font.color for a in layout.annotations if not on_cell(a)]
            colours += [axis.title.font.color or template.font.color for axis in [*figure.select_xaxes(), *figure.select_yaxes()]]
            colours += [trace.textfont.color for trace in figure.data if trace.type == "scatter" and isinstance(trace.textfont.color, str)]
            assert min(contrast(colour, look.paper) for colour in colours) >= 4.5, name

    def test_text_and_dots_stand_out_from_their_cells(self, every):
        _, figures = every
        counted = 0
        for name, figure in figures.items():
            for kind, colour, ground in written_on_cells(figure):
                assert contrast(colour, ground) >= (4.5 if kind == "text" else 3), (name, kind, colour, ground)
                counted += 1
        assert counted > 100

    def test_lines_and_marks_stand_out_from_the_paper(self):
        for look in (LIGHT, DARK):
            assert min(contrast(colour, look.paper) for colour in look.series) >= 3

    def test_colours_are_apart_for_every_kind_of_colour_vision(self):
        assert ciede2000(np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])) == pytest.approx(2.0425, abs=1e-4)
        for look in (LIGHT, DARK):
            for seen in VISION.values():
                labs = [lab(seen @ linear(colour)) for colour in look.series]
                assert min(ciede2000(a, b) for a, b in combinations(labs, 2)) >= 12

    def test_the_diverging_scale_only_gets_darker_or_lighter_to_each_side(self):
        places = np.linspace(0, 1, 101)
        for look in (LIGHT, DARK):
            for seen in VISION.values():
                light = np.array([lab(seen @ linear(at(look.diverging, p)))[0] for p in places])
                steps = np.diff(light) * (1 if look is LIGHT else -1)
                assert (steps[:50] > 0).all() and (steps[50:] < 0).all()

    @pytest.mark.parametrize(("layers", "heads"), drawn.SIZES)
    def test_cells_of_several_maps_can_be_seen(self, layers, heads):
        m = made_map(layers, heads)
        figure = viz.head_heatmaps([m] * 4, marks=[(layers - 1, heads - 1)])
        plot = figure.layout.width - figure.layout.margin.l - figure.layout.margin.r
        tall = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
        (left, right), (bottom, top) = figure.layout.xaxis.domain, figure.layout.yaxis.domain
        cell = plot * (right - left) / heads, tall * (top - bottom) / layers
        assert cell[0] >= 5 and cell[1] >= 5.9
        shape, axis = figure.layout.shapes[0], figure.layout.xaxis
        assert axis.range[0] < axis.range[1] and shape.x1 <= axis.range[1]
        if min(cell) < 14:
            assert (shape.x1 - shape.x0) * cell[0] >= cell[0] + 4 - 1e-6


def on_cell(annotation):
    return annotation.xref != "paper"


def written_on_cells(figure):
    """("text" or "dot", its colour, the colour of the cell that it stands on) of all heatmaps of a figure."""
    for cells in heatmaps(figure):
        if cells.coloraxis:
            axis = figure.layout[cells.coloraxis]
            scale, low, high = axis.colorscale, axis.cmin, axis.cmax
        else:
            scale, low, high = cells.colorscale, cells.zmin, cells.zmax
        if scale is None or scale[0][1].startswith("rgba"):
            continue
        z = np.asarray(cells.z, float)
        columns, rows = (
            {v: i for i, v in enumerate(axis if axis is not None else range(n))}
            for axis, n in ((cells.x, z.shape[1]), (cells.y, z.shape[0]))
        )

        def ground(x, y, z=z, columns=columns, rows=rows, scale=scale, low=low, high=high):
            return at(scale, (z[rows[y], columns[x]] - low) / (high - low))

        for trace in figure.data:
            if trace.type == "scatter" and (trace.xaxis, trace.yaxis) == (cells.xaxis, cells.yaxis):
                if trace.mode == "text":
                    yield from (("text", c, ground(x, y)) for x, y, c in zip(trace.x, trace.y, trace.textfont.color, strict=True))
                elif trace.name == "significant":
                    yield from (("dot", c, ground(x, y)) for x, y, c in zip(trace.x, trace.y, trace.marker.color, strict=True))
        for a in figure.layout.annotations:
            if on_cell(a) and a.x in columns and a.y in rows:
                yield "text", a.font.color, ground(a.x, a.y)


def at(scale, place):
    """The colour of a plotly colour scale at a place from 0 to 1."""
    stops = [p for p, _ in scale]
    parts = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for _, c in scale], float)
    return "#" + "".join(f"{round(np.interp(place, stops, part)):02x}" for part in parts.T)


def contrast(a, b):
    """The contrast ratio of WCAG 2."""
    bright, dim = sorted((float(np.dot((0.2126, 0.7152, 0.0722), linear(c))) for c in (a, b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def linear(colour):
    """Light of a colour "#rrggbb" in linear RGB."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira & Fernandes 2009, table 1, severity 1.0: linear RGB as seen without one kind of cones.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def lab(light):
    """CIE L*a*b* (D65) of linear RGB."""
    t = XYZ @ np.clip(light, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one, two):
    """The colour difference of Sharma, Wu & Dalal 2005."""
    (L1, a1, b1), (L2, a2, b2) = one, two
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25**7)))
    C1, C2 = np.hypot(a1 * (1 + G), b1), np.hypot(a2 * (1 + G), b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * (1 + G))) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if C1 * C2 else 0
    dH = 2 * np.sqrt(C1 * C2) * np.sin(np.radians(turn / 2))
    h = (h1 + turn / 2) % 360 if C1 * C2 else h1 + h2
    L, C = (L1 + L2) / 2, (C1 + C2) / 2
    T = 1 - 0.17 * cos(h - 30) + 0.24 * cos(2 * h) + 0.32 * cos(3 * h + 6) - 0.2 * cos(4 * h - 63)
    SL, SC, SH = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2), 1 + 0.045 * C, 1 + 0.015 * C * T
    R = -np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2)))) * 2 * np.sqrt(C**7 / (C**7 + 25**7))
    light, chroma, hue = (L2 - L1) / SL, (C2 - C1) / SC, dH / SH
    return float(np.sqrt(light**2 + chroma**2 + hue**2 + R * chroma * hue))


def cos(degrees):
    return np.cos(np.radians(degrees))


class TestHeadMarks:
    def test_a_panel_a_set_where_cells_are_small(self):
        sets = made.head_sets(80, 64)
        figure = viz.head_marks(sets)
        marks = {t.name: set(zip(t.y, t.x, strict=True)) for t in figure.data if t.type == "scatter"}
        assert marks == {name: set(heads) for name, heads in sets.sets.items()}
        assert len({t.xaxis for t in figure.data}) == len(sets.sets) and min(t.marker.size for t in figure.data if t.type == "scatter") >= 6
        assert len({t.xaxis for t in viz.head_marks(made.head_sets(12, 8)).data}) == 1


class TestEmphasis:
    def test_lines_are_the_paired_differences_and_pass_through_no_edit(self):
        found = made.emphasis()
        figure = viz.emphasis_curves({"set": found, "other": made.emphasis(1, -0.04, direction=False)})
        lines = {(t.name, t.xaxis): t for t in figure.data if t.hoverinfo != "skip"}
        assert set(lines) == {("set", "x"), ("other", "x"), ("set", "x2")}
        gains, alphas = lines["set", "x"], lines["set", "x2"]
        assert list(gains.x) == [1, 1.5, 2, 4] and list(alphas.x) == [0, 1, 2, 5, 10]
        assert gains.y[0] == alphas.y[0] == 0
        d = found.difference("gain 4")
        assert (gains.y[-1], *gains.customdata[-1]) == pytest.approx((d.mean, d.low, d.high))
        assert [t.showlegend for t in (gains, alphas)] == [True, False]

    def test_any_number_is_read_from_a_name(self):
        found = replace(made.emphasis(), names=("gain -1", "gain 2", "gain 4", "alpha 1e-05", "alpha 2", "gain none", "alpha"))
        lines = [t for t in viz.emphasis_curves(found).data if t.hoverinfo != "skip"]
        assert [list(t.x) for t in lines] == [[-1, 1, 2, 4], [0, 1e-5, 2]]

    def test_bad_input(self):
        with pytest.raises(DataError, match="0 sets"):
            viz.emphasis_curves({})
        with pytest.raises(DataError, match=r"gain NUMBER.*vision knowledge"):
            viz.emphasis_curves(made.matrix())


class TestRemoval:
    def test_a_long_axis_is_logarithmic(self):
        assert viz.removal_curves(made.removal(12, 8)).layout.xaxis.type == "log"
        axis = viz.removal_curves(made.removal(80, 64)).layout.xaxis
        assert min(b / a for a, b in zip(axis.tickvals, axis.tickvals[1:], strict=False)) >= 1.6
        assert viz.removal_curves(made.removal(4, 8)).layout.xaxis.type == "linear"


class TestSave:
    def test_a_page_needs_no_network(self, tmp_path):
        viz.save_figure(viz.head_heatmap(made_map()), tmp_path / "deep" / "a.html")
        page = (tmp_path / "deep" / "a.html").read_text()
        assert page.count("* plotly.js v") == 1 and 'src="http' not in page

    def test_endings(self, tmp_path):
        with pytest.raises(FileError, match=r"a\.doc: name a file that ends in \.html, \.png"):
            viz.save_figure(go.Figure(), tmp_path / "a.doc")

    def test_without_chrome_or_kaleido_the_mend_is_named(self, tmp_path, monkeypatch):
        def missing(*_, **__):
            raise kaleido.errors.ChromeNotFoundError

        monkeypatch.setattr(kaleido, "calc_fig_sync", missing)
        with pytest.raises(FileError, match=r"Chromium, and none was found.*plotly_get_chrome, or write a\.html"):
            viz.save_figure(go.Figure(), tmp_path / "a.png")
        monkeypatch.setattr("plotly.io._kaleido.kaleido_available", lambda: False)
        with pytest.raises(FileError, match=r'needs kaleido: pip install "scale-interp\[notebook\]"'):
            viz.save_figure(go.Figure(), tmp_path / "a.svg")
        assert not list(tmp_path.iterdir())

    def test_pictures_as_large_as_the_figure_says(self, tmp_path):
        figure = viz.head_heatmap(made_map(2, 2))
        try:
            viz.save_figure(figure, tmp_path / "a.png", scale=1)
        except FileError as error:
            pytest.skip(str(error))
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == (figure.layout.width, figure.layout.height)


class TestQuestionCard:
    def test_text_is_escaped(self):
        card = viz.question_card(made_question(text="<script>alert('x')</script>", choices=("<b>", '"&'), task="<i>"))
        assert "<script" not in card
        assert "<b>" not in card
        assert "<i>" not in card
        assert "&lt;script&gt;" in card
        assert "alert('x')" not in card

    def test_the_right_choice_is_marked(self):
        card = viz.question_card(made_question())
        left, right = re.findall("<li.*?</li>", card)
        assert "✓" in right
        assert "✓" not in left

    def test_a_small_picture_is_enlarged_and_a_large_one_reduced(self):
        small = viz.question_card(made_question())
        assert "data:image/png;base64," in small
        assert "pixelated" in small
        assert "width='176' height='88'" in small
        large = viz.question_card(made_question(picture=Image.new("RGB", (4000, 1000))))
        assert "pixelated" not in large
        assert "width='320' height='80'" in large

    def test_it_shows_without_a_picture_and_with_a_missing_one(self):
        assert "<img" not in viz.question_card(made_question(picture=None))
        assert "/no/such.png" in viz.question_card(made_question(picture="/no/such.png"))

    def test_it_is_the_question_in_a_notebook(self):
        q = made_question()
        assert q._repr_html_() == viz.question_card(q)


class TestReport:
    @pytest.fixture(scope="class")
    def page(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
        table = pd.DataFrame({"control": ["ScAle", "</td><script>"], "gain": [0.21987, 1e-5], "fits": [3.0, None]})
        m = HeadMap("</script><script>", "u", made_map().per_question, torch.arange(40))
        sections = [
            viz.Section("Heads & <script>", ["A <script>paragraph</script>.", viz.head_heatmap(m), table]),
            viz.Section("Questions", [made_question(text="<script>?"), made_question(), viz.scalar_heatmap(made_scale())]),
        ]
        viz.write_report(path, title="<script>title", sections=sections, meta={"<script>": {"seed": 0}})
        return path.read_text()

    def test_plotly_is_there_once(self, page):
        assert page.count("* plotly.js v") == 1
        assert page.count("figures.push(") == 2
        assert len(page.encode()) < 8e6

    def test_nothing_is_fetched(self, page):
        assert "default-src 'none'" in page
        own = without_plotly(page)
        assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", own)
        assert set(re.findall(r'href="(.)', own)) == {"#"}

    def test_text_is_escaped(self, page):
        own = without_plotly(page)
        # A script element for each figure (with plotly's settings before each), and none from the text.
        outside = re.sub(r"<script[^>]*>.*?</script>", "", own, flags=re.S)
        assert "<script" not in outside
        assert "&lt;script&gt;paragraph" in outside
        assert outside.count("&lt;script&gt;") >= 6

    def test_contents_lead_to_every_section(self, page):
        own = without_plotly(page)
        targets = re.findall(r'href="#([^"]+)"', own)
        assert len(targets) == 3
        assert all(own.count(f'<h2 id="{t}"') == 1 for t in targets)

    def test_floats_have_three_digits(self, page):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", page[page.index("<main>") :])
        assert cells[1:3] == ["0.220", "3"]
        assert cells[4:6] == ["1.0e-05", ""]

    def test_questions_stand_together(self, page):
        assert page.count('class="cards"') == 1
        assert page.count("<article") == 2

    def test_the_same_report_twice_is_the_same_file(self, tmp_path):
        for name in ("a", "b"):
            viz.write_report(tmp_path / name, title="t", sections=[viz.Section("s", [viz.head_heatmap(made_map())])], meta={})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_foreign_item_is_an_error_and_writes_nothing(self, tmp_path):
        with pytest.raises(DataError, match="a section holds a dict"):
            viz.write_report(tmp_path / "r.html", title="t", sections=[viz.Section("s", [{}])], meta={})
        assert not list(tmp_path.iterdir())


def without_plotly(page):
    """The page without the embedded library, which is the first script."""
    start = page.index("<script>")
    return page[:start] + page[page.index("</script>", start) + len("</script>") :]
