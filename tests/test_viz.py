"""Figures show the numbers they are given, and the report page keeps its promises."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from scipy import stats

from scale_interp import viz
from scale_interp.adapters import ScAle
from scale_interp.attribution import HeadMap, Rescaling
from scale_interp.data import Question
from scale_interp.errors import DataError, EditError
from scale_interp.evaluation import Evaluation, Falsification

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
        assert all(axis.zeroline and axis.range[0] < 0 < axis.range[1] for axis in (layout.xaxis2, layout.yaxis2))

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
        questions = [made_question(id=str(i), relation=("left", "right")[i % 2]) for i in range(20)]
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


def contrast(a, b):
    """The contrast ratio of WCAG 2."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


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
        assert page.count("Plotly.newPlot(") == 2
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
