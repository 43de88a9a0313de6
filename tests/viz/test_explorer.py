"""The explorer's state, its widgets, its code, and the whole of it in a real JupyterLab and on its own page."""

import ast
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.errors import DataError, EditError, FileError, ModelError
from scale_interp.explorer import explorer as explorer_module
from scale_interp.explorer.event_queue import DeferredCall
from tests.support.lab_server import CHROMIUM, QUIET, free_port, jupyter_lab
from tests.support.watched import inputs_of, times_seen

HEAD, OTHER, MLP = (5, 4), (2, 4), (3, None)
HEAD_BELOW = (1, 2)
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", n=6)


@pytest.fixture
def explorer(vlm, questions):
    return si.viz.explore(vlm, questions)


@pytest.fixture(scope="module")
def scale(vlm):
    draw = torch.Generator().manual_seed(0)
    every = tuple((layer, h) for layer in range(vlm.n_layers) for h in range(vlm.n_heads))
    scalars, mlps = (0.2 + 1.6 * torch.rand(shape, generator=draw) for shape in ((vlm.n_layers, vlm.n_heads), (vlm.n_layers,)))
    return si.ScAle(scalars, mlps, 54, every, settings={"mlp": True}, provenance={"model": "demo"})


@pytest.fixture
def folder(scale, tmp_path):
    scale.save_pretrained(tmp_path / "scale")
    return tmp_path / "scale"


def answers(vlm, question, edit=None):
    return si.run_edits(vlm, question, edit)[0, 0].softmax(-1)


def close(a, b):
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max()) < 1e-6


def run(code, **names):
    exec(compile(code, "explorer", "exec"), names)
    return names["probabilities"]


class TestState:
    def test_the_edit_is_what_was_set(self, vlm, explorer):
        explorer.index = 2
        explorer.select(HEAD)
        explorer.factor = 2.5
        explorer.set(OTHER, 0.0)
        explorer.set(MLP, 0.5)
        scale, mlps = torch.ones(1, vlm.n_layers, vlm.n_heads), torch.ones(1, vlm.n_layers)
        scale[0, 5, 4], scale[0, 2, 4], mlps[0, 3] = 2.5, 0.0, 0.5
        expected = answers(vlm, explorer.questions[2], si.Edit(scale=scale, mlp_scale=mlps))
        assert close(explorer.probabilities, expected)
        assert close(explorer.base, answers(vlm, explorer.questions[2]))
        assert float((expected - explorer.base).abs().max()) > 1e-3
        assert list(explorer.factors) == [OTHER, MLP, HEAD]

    def test_what_is_taken_back_changes_nothing(self, explorer):
        explorer.set(HEAD, 3.0)
        explorer.set(MLP, 0.0)
        assert not close(explorer.probabilities, explorer.base)
        explorer.remove(HEAD)
        assert dict(explorer.factors) == {MLP: 0.0}
        explorer.reset()
        assert torch.equal(explorer.probabilities, explorer.base) and not explorer.factors

    def test_a_head_that_does_not_see_the_image(self, vlm, explorer):
        explorer.hide_image(HEAD)
        explorer.set(OTHER, 2.0)
        heads, scale = torch.zeros(1, vlm.n_layers, vlm.n_heads, dtype=torch.bool), torch.ones(1, vlm.n_layers, vlm.n_heads)
        heads[0, 5, 4], scale[0, 2, 4] = True, 2.0
        edit = si.AttentionEdit(heads, beside=si.Edit(scale=scale))
        assert explorer.blind == (HEAD,) and close(explorer.probabilities, answers(vlm, explorer.question, edit))
        code = explorer.code()
        assert torch.equal(run(code), explorer.probabilities) and "sees no image" in code
        explorer.remove(OTHER)
        assert not close(explorer.probabilities, explorer.base)
        explorer.hide_image(HEAD, False)
        assert close(explorer.probabilities, explorer.base)
        with pytest.raises(EditError, match="MLP 3 sees no other tokens"):
            explorer.hide_image(MLP)

    def test_heads_at_a_token_group(self, vlm, explorer):
        assert explorer.at == "last" and explorer.groups[0] == "last" and {"image", "subject", "box:subject"} <= set(explorer.groups)
        explorer.set(HEAD_BELOW, 3.0)
        explorer.at = "image"
        scale = torch.ones(1, vlm.n_layers, vlm.n_heads)
        scale[0][HEAD_BELOW] = 3.0
        expected = answers(vlm, explorer.question, si.Edit(scale=scale, at="image"))
        assert close(explorer.probabilities, expected) and not close(explorer.probabilities, explorer.base)
        code = explorer.code()
        assert "at='image'" in code and torch.equal(run(code), explorer.probabilities)
        with pytest.raises(EditError, match="no token group 'verb'"):
            explorer.at = "verb"
        with pytest.raises(EditError, match="hiding the image acts at the last token and the chosen heads at 'image'"):
            explorer.hide_image(HEAD)
        explorer.at = "last"
        explorer.scale = si.ScAle.neutral(vlm)
        with pytest.raises(EditError, match="the ScAle acts at 'last' and the chosen heads at 'image'"):
            explorer.at = "image"

    def test_a_question_of_ones_own(self, vlm, explorer, questions, tmp_path):
        questions[2].image.save(tmp_path / "own.png")
        before = explorer.base
        explorer.ask("Where is the red circle?", ["left", "right"], tmp_path / "own.png", answer=1)
        own = si.Question("Where is the red circle?", ("left", "right"), 1, image=tmp_path / "own.png")
        assert explorer.index == len(questions) and explorer.question.answer_text == "right"
        assert close(explorer.base, answers(vlm, own))
        explorer.set(HEAD, 0.0)
        assert torch.equal(run(explorer.code()), explorer.probabilities)
        explorer.reset()
        explorer.index = 0
        assert close(explorer.base, before) and "load_questions" in explorer.code()
        for text, choices in (("Where?", ["left"]), ("Where?", ["left", "left"]), ("", ["left", "right"])):
            with pytest.raises(DataError):
                explorer.ask(text, choices)
        assert len(explorer.questions) == len(questions) + 1

    @pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
    def test_scalars_fade_in_below_the_factors(self, vlm, explorer, scale, strength):
        explorer.scale, explorer.strength = scale, strength
        faded = {name: 1 + strength * (getattr(scale, name) - 1) for name in ("scalars", "mlp_scalars")}
        edit = si.Edit(scale=faded["scalars"][None].clone(), mlp_scale=faded["mlp_scalars"][None], scope=scale.scope)
        assert close(explorer.probabilities, answers(vlm, explorer.question, edit))
        explorer.set(HEAD, 2.0)
        edit.scale[0, 5, 4] *= 2
        assert close(explorer.probabilities, answers(vlm, explorer.question, edit))
        assert strength or close(si.viz.explore(vlm, explorer.questions, scale=scale).base, explorer.base)

    def test_a_prompt_is_read_once(self, vlm, questions):
        with inputs_of(vlm.hf_model.model.vision_tower) as read:
            si.run_edits(vlm, questions[0])  # the check of the paths on first use under this hook is not counted
            read.clear()
            explorer = si.viz.explore(vlm, questions)
            for factor in (0.0, 0.5, 1.5, 2.0):
                explorer.set(HEAD, factor)
                explorer.index = 1
                _ = explorer.base, explorer.probabilities
                explorer.index = 0
                _ = explorer.probabilities
        assert [len(pixels) for pixels in read] == [1, 1]
        assert [times_seen(read, vlm.encode(q)["pixel_values"][0]) for q in questions] == [1, 1, 0, 0, 0, 0]

    def test_choices_of_several_tokens(self, vlm, long_choices, scale):
        explorer = si.viz.explore(vlm, long_choices, scale=scale)
        for index, question in enumerate(long_choices):
            explorer.index = index
            assert close(explorer.probabilities, answers(vlm, question, scale))

    def test_heads_look_where_attention_says(self, vlm, explorer):
        looking = explorer.looking
        (weights,) = si.read_attention(vlm, explorer.question)
        assert torch.equal(looking.weights, weights) and explorer.looking is looking

    @pytest.mark.parametrize(
        ("act", "error", "said"),
        [
            (lambda e: e.select((6, 0)), EditError, r"\(6, 0\) is out of range: the model has 6 layers x 8 heads"),
            (lambda e: e.select((6, None)), EditError, r"out of range"),
            (lambda e: e.select(5), EditError, "not a .layer, head. pair"),
            (lambda e: setattr(e, "factor", 2.0), EditError, "no head is chosen"),
            (lambda e: e.set(HEAD, 4.5), EditError, "factor 4.5 of head 5.4: give 0 to 4"),
            (lambda e: e.set(MLP, float("nan")), EditError, "factor nan of MLP 3"),
            (lambda e: setattr(e, "strength", 1.1), EditError, "strength 1.1"),
            (lambda e: setattr(e, "index", 6), DataError, "question 6: there are 6"),
            (lambda e: e.load("nowhere"), FileError, "no folder nowhere"),
            (lambda e: e.load(" "), FileError, "no folder is given"),
            (lambda e: setattr(e, "scale", "runs/x"), EditError, "expected a ScAle, found a str"),
            (lambda e: setattr(e, "scale", si.ScAle(torch.ones(2, 2), torch.ones(2), 4, ())), EditError, "of another model: 2 layers x 2"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(self, explorer, act, error, said):
        explorer.set(OTHER, 2.0)
        before = explorer.probabilities
        with pytest.raises(error, match=said):
            act(explorer)
        assert torch.equal(explorer.probabilities, before) and explorer.scale is None and dict(explorer.factors) == {OTHER: 2.0}

    def test_a_map_of_another_model(self, vlm, questions):
        with pytest.raises(DataError, match="2 layers x 3 heads, demo has 6 layers x 8 heads"):
            si.viz.explore(vlm, questions, head_map=si.HeadMap("patch", "u", torch.zeros(1, 2, 3), torch.zeros(1)))


class TestCode:
    def test_it_gives_the_same_answers(self, explorer, folder):
        explorer.index = 3
        explorer.load(folder)
        explorer.strength = 0.35
        explorer.set(HEAD, 1.15)
        explorer.set(MLP, 0.05)
        code = explorer.code()
        assert "si.load('demo')" in code and f"from_pretrained({str(folder)!r}).edit(0.35)" in code
        assert torch.equal(run(code), explorer.probabilities)

    def test_what_cannot_be_named_is_taken_from_the_reader(self, vlm, questions, scale):
        mixed = [questions[4], questions[1]]
        explorer = si.viz.explore(vlm, mixed, scale=scale)
        explorer.strength = 0.6
        explorer.set(OTHER, 0.3)
        code = explorer.code()
        assert "# questions: as given to si.viz.explore" in code and "load_questions" not in code
        assert torch.equal(run(code, questions=mixed), explorer.probabilities)

    def test_a_part_of_a_set_is_not_taken_for_the_set(self, vlm, questions):
        assert "load_questions" not in si.viz.explore(vlm, questions[2:4]).code()

    def test_text_from_outside_stays_text(self, explorer, scale, tmp_path):
        folder = tmp_path / "x') + exec('''raise SystemExit''') #\n\""
        scale.save_pretrained(folder)
        explorer.load(folder)
        code = explorer.code()
        names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        assert names == {"si", "torch", "vlm", "questions", "question", "scale", "mlp_scale", "edit", "probabilities"}
        assert torch.equal(run(code), explorer.probabilities)


class TestPanel:
    def test_the_slider_moves_the_bars(self, explorer):
        panel = explorer.panel
        panel.layer.value, panel.head.value = HEAD
        assert explorer.selected == HEAD
        panel.factor.value = 2.5
        base, edited = panel.answers.widget.data
        assert explorer.factors[HEAD] == 2.5
        assert close(edited.x, explorer.probabilities) and close(base.x, explorer.base) and not close(edited.x, base.x)
        assert panel.edits.options == (("head 5.4 × 2.50", HEAD),)
        panel.remove.click()
        assert close(edited.x, base.x) and panel.factor.value == 1

    def test_a_click_chooses_and_the_overlay_appears(self, explorer):
        panel = explorer.panel
        assert not _heat(panel).any()
        panel._clicked(0, None, type("Points", (), {"xs": [4], "ys": [5]}), None)
        assert explorer.selected == HEAD and panel.layer.value == 5 and panel.head.value == 4
        assert _heat(panel).max() == 1 and "Head 5.4 (unedited)" in panel.said.value
        panel._clicked(1, None, type("Points", (), {"xs": [8.5], "ys": [3]}), None)
        assert explorer.selected == MLP and "no attention" in panel.said.value and not _heat(panel).any()

    def test_the_switch_hides_the_image(self, explorer):
        panel = explorer.panel
        assert panel.hides.disabled
        panel.layer.value, panel.head.value = HEAD
        assert not panel.hides.disabled
        panel.hides.value = True
        assert explorer.blind == (HEAD,) and panel.edits.options == (("head 5.4, sees no image", HEAD),)
        assert close(panel.answers.widget.data[1].x, explorer.probabilities) and not close(explorer.probabilities, explorer.base)
        panel.factor.value = 0.5
        assert panel.edits.options == (("head 5.4 × 0.50, sees no image", HEAD),)
        panel.remove.click()
        assert not panel.hides.value and not explorer.blind and panel.factor.value == 1 and not panel.edits.options
        explorer.select(MLP)
        assert panel.hides.disabled

    def test_the_list_of_tokens(self, explorer):
        panel = explorer.panel
        assert panel.at.value == "last" and tuple(panel.at.options) == explorer.groups
        panel.at.value = "image"
        assert explorer.at == "image"
        explorer.at = "last"
        explorer.hide_image(HEAD)
        panel.at.value = "image"  # refused, and the list says so
        assert panel.at.value == explorer.at == "last" and "hiding the image acts at the last token" in panel.message.value

    def test_an_uploaded_image_and_free_text(self, explorer, questions):
        panel, buffer = explorer.panel, io.BytesIO()
        questions[3].image.save(buffer, "PNG")
        file = {
            "name": "own.png",
            "type": "image/png",
            "size": 1,
            "content": memoryview(buffer.getvalue()),
            "last_modified": datetime.now(),
        }
        panel.own_text.value, panel.own_choices.value = questions[3].text, ", ".join(questions[3].choices)
        panel.own_image.set_trait("value", (file,))
        ask = next(b for b in _buttons(panel.root) if b.description == "Ask")
        ask.click()
        assert panel.question.value == len(questions) and questions[3].text in panel.text.value
        explorer.index = 3
        seen = explorer.base
        explorer.index = len(questions)
        assert close(explorer.base, seen) and len(panel.question.options) == len(questions) + 1
        panel.own_choices.value = "left"
        ask.click()
        assert "si-error" in panel.message.value and "two" in panel.message.value

    def test_it_follows_the_explorer(self, explorer, scale):
        panel = explorer.panel
        explorer.set(HEAD, 0.5)
        explorer.index = 4
        explorer.scale, explorer.strength = scale, 0.25
        assert panel.question.value == 4 and panel.strength.value == 0.25 and not panel.strength.disabled
        assert explorer.question.text in panel.text.value
        assert close(panel.answers.widget.data[1].x, explorer.probabilities)
        right = explorer.question.answer
        assert [label.startswith("<b>✓") for label in panel.answers.widget.layout.yaxis.ticktext] == [c == right for c in range(4)]

    def test_bad_input_is_said_in_the_page(self, vlm, explorer, tmp_path):
        panel = explorer.panel
        load = next(b for b in _buttons(panel.root) if b.description == "Load")
        panel.folder.value = str(tmp_path / "<b>missing</b>")
        load.click()
        assert "si-error" in panel.message.value and "&lt;b&gt;missing" in panel.message.value and "<b>" not in panel.message.value
        si.ScAle(torch.ones(2, 2), torch.ones(2), 4, ((0, 0),)).save_pretrained(tmp_path / "small")
        panel.folder.value = str(tmp_path / "small")
        load.click()
        assert "another model: 2 layers x 2 heads" in panel.message.value and explorer.scale is None
        panel.layer.value = 1
        assert not panel.message.value

    def test_scalars_of_a_model_of_the_same_shape_are_taken_with_a_word(self, explorer, scale, tmp_path):
        other = si.ScAle(scale.scalars, scale.mlp_scalars, 54, scale.heads, provenance={"model": "demo-prior"})
        other.save_pretrained(tmp_path)
        explorer.load(tmp_path)
        assert "fitted on demo-prior, this is demo" in explorer.panel.message.value

    def test_what_cannot_be_asked_is_said_in_the_page(self, vlm, questions, tmp_path):
        lost = si.Question("Where is it?", ("left", "right"), 0, picture=tmp_path / "gone.png")
        panel = si.viz.explore(vlm, [*questions[:2], lost]).panel
        assert "No head map" in panel.message.value and "gone.png" in panel.message.value
        panel.question.value = 2
        assert "si-error" in panel.message.value and "gone.png" in panel.message.value
        assert panel.text.value.count("Where is it?") == 1 and panel.figures.layout.visibility == "hidden"
        panel.question.value = 0
        assert "si-error" not in panel.message.value and panel.figures.layout.visibility == "visible"

    def test_questions_without_a_picture_and_with_two(self, vlm, questions):
        blank = si.Question("left or right?", ("left", "right"), 1)
        two = si.Question("Same?", ("left", "right"), 0, picture=[questions[0].image, Image.new("RGB", (30, 20), "red")])
        explorer = si.viz.explore(vlm, [blank, two], head_map=si.attribute(vlm, questions[:2]))
        panel = explorer.panel
        explorer.select(HEAD)
        assert panel.picture.widget.layout.title.text == "No image" and not panel.message.value
        explorer.index = 1
        assert panel.which.layout.display is None and len(panel.which.options) == 2
        panel.which.value = 1
        assert tuple(panel.picture.widget.layout.xaxis.range) == (0, 30)
        assert _heat(panel).max() == 1 and not panel.message.value

    def test_a_model_without_gradients_has_an_empty_map(self, vlm, questions, monkeypatch):
        monkeypatch.setattr(explorer_module, "choose_path", lambda *_: "reference")
        panel = si.viz.explore(vlm, questions).panel
        assert "these have no gradient" in panel.heads.widget.layout.title.subtitle.text.replace("<br>", " ")
        panel._clicked(0, None, type("Points", (), {"xs": [4], "ys": [5]}), None)
        assert panel.explorer.selected == HEAD

    def test_dark_figures(self, vlm, questions):
        panel = si.viz.explore(vlm, questions).panel
        figures = [figure.widget for figure in (panel.picture, panel.heads, panel.answers)]
        light = [figure.layout.template.layout.paper_bgcolor for figure in figures]
        panel.page.dark = True
        dark = [figure.layout.template.layout.paper_bgcolor for figure in figures]
        assert set(light).isdisjoint(dark)
        assert [figure.layout.margin.b for figure in figures] == [12, 92, 36]

    def test_a_page_that_opens_later_gets_the_present_figures(self, explorer):
        panel = explorer.panel
        explorer.set(HEAD, 3.0)
        kept = panel.answers.widget.get_state()
        assert kept["_widget_data"][1]["x"] == explorer.probabilities.tolist()

    def test_a_figure_that_appears_is_drawn_anew(self, explorer):
        panel = explorer.panel
        explorer.set(HEAD, 3.0)
        panel.answers.edited([0.25] * 4)
        panel.page.shown += 1
        assert close(panel.answers.widget.data[1].x, explorer.probabilities)

    def test_it_displays_widgets_and_leaves_html_where_there_are_none(self, vlm):
        question = si.Question("<script>", ("left", "right"), 0, picture=Image.new("RGB", (9, 9)))
        explorer = si.viz.explore(vlm, question, head_map=si.HeadMap("patch", "u", torch.zeros(1, 6, 8), torch.zeros(1)))
        assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
        assert "<script>" not in explorer._repr_html_() and f"{float(explorer.base[1]):.3f}" in explorer._repr_html_()
        assert "<script>" not in explorer.panel.text.value


class TestTurn:
    def test_many_requests_are_one_drawing_of_the_last(self):
        class Loop(list):
            add_callback = list.append

        loop, drawn, state = Loop(), [], {}
        turn = DeferredCall(lambda: drawn.append(state["value"]), loop)
        for value in range(50):
            state["value"] = value
            turn.ask()
        assert len(loop) == 1 and not drawn
        loop.pop()()
        turn.ask()
        loop.pop()()
        assert drawn == [49, 49] and not loop


class TestCommand:
    def test_what_is_wrong_is_said_before_anything_is_served(self, tmp_path):
        for flags, error in ((["--data", "scenes/nothing"], DataError), (["--scale", str(tmp_path / "no")], FileError)):
            result = CliRunner().invoke(cli.app, ["explore", "demo", "--n", "2", *flags])
            assert isinstance(result.exception, error)

    def test_a_port_that_is_taken(self):
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = CliRunner().invoke(cli.app, ["explore", "demo", "--n", "2", "--port", str(port)])
        assert isinstance(result.exception, ModelError) and f"port {port}" in str(result.exception)

    def test_without_voila(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "voila.app", None)
        monkeypatch.delitem(sys.modules, "scale_interp.explorer.server", raising=False)
        result = CliRunner().invoke(cli.app, ["explore", "demo"])
        assert isinstance(result.exception, ModelError) and "pip install 'scale-interp[explore]'" in str(result.exception)


def _heat(panel):
    return np.asarray(panel.picture.widget.data[0].z)


def _buttons(widget):
    found = [widget] if type(widget).__name__ == "Button" else []
    return found + [b for child in getattr(widget, "children", ()) for b in _buttons(child)]


@pytest.fixture
def browse():
    """Open an address in a browser that notes what goes wrong: (page, problems)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield lambda address: _open(browser, address)
        browser.close()


def _open(browser, address):
    page, problems = browser.new_page(viewport={"width": 1366, "height": 1100}), []
    server = re.match(r"https?://[^/]+/", address)[0]
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((server, "data:", "blob:")) else None)
    page.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(address)
    return page, problems


BARS = "document.querySelector('.si-answers').data.map(trace => Array.from(trace.x))"


def _bars_reach(page, expected):
    page.wait_for_function(f"wanted => {BARS}[1].every((p, i) => Math.abs(p - wanted[i]) < 1e-5)", arg=expected.tolist(), timeout=20_000)


def _click_head(page, layer, head):
    """Click the middle of a head's cell."""
    spot = page.evaluate(
        """([layer, head]) => {
          const figure = document.querySelector('.si-heads'), full = figure._fullLayout;
          figure.scrollIntoView({block: 'center'});
          const at = figure.getBoundingClientRect();
          return [at.x + full.xaxis._offset + full.xaxis.l2p(head), at.y + full.yaxis._offset + full.yaxis.l2p(layer)];
        }""",
        [layer, head],
    )
    page.mouse.click(*spot)


def _drag(page, selector, by):
    """Drag a slider's handle in steps, and the value at which it is left."""
    handle = page.locator(f"{selector} [role=slider]")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=30)
    page.mouse.up()
    # Not the handle's aria-valuenow, which is rounded to tenths.
    return float(page.locator(f"{selector} .widget-readout").inner_text())


@pytest.mark.full
@needs_browser
def test_in_jupyterlab(browse, vlm, questions, tmp_path):
    cell = 'import scale_interp as si\n\nsi.viz.explore(si.load("demo"), si.load_questions("scenes/relation", n=6))'
    with jupyter_lab(tmp_path, [cell]) as address:
        page, problems = browse(address)
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".si-explorer[data-ready]", timeout=60_000)
        base = torch.tensor(page.evaluate(BARS)[0])
        assert close(base, answers(vlm, questions[0]))
        assert "unedited" not in page.locator(".si-said").inner_text()

        _click_head(page, *HEAD)
        page.wait_for_function("document.querySelector('.si-picture').data[0].z.length > 1")
        page.wait_for_function("document.querySelector('.si-said').innerText.includes('Head 5.4')")
        slider = page.get_by_role("slider", name="Scale of head 5.4, 1 changes nothing")
        assert slider.get_attribute("aria-valuenow") == "1.0"

        factor = _drag(page, ".si-factor", 40)
        assert factor > 1.2
        expected = answers(vlm, questions[0], si.Edit.scaling([HEAD], factor, vlm.n_layers, vlm.n_heads))
        assert float((expected - base).abs().max()) > 1e-3
        _bars_reach(page, expected)
        page.locator(".si-answers .bartext", has_text=f"{float(expected[0]):.3f}").first.wait_for()

        slider.focus()
        page.keyboard.press("Home")
        _bars_reach(page, answers(vlm, questions[0], si.Edit.scaling([HEAD], 0.0, vlm.n_layers, vlm.n_heads)))
        page.get_by_role("button", name="Next", exact=True).press("Enter")
        _bars_reach(page, answers(vlm, questions[1], si.Edit.scaling([HEAD], 0.0, vlm.n_layers, vlm.n_heads)))
        assert problems == []


EXECUTE = """async ([kernel, file]) => {
  const socket = new WebSocket(`ws://${location.host}/api/kernels/${kernel}/channels`);
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed; });
  const message = (id, type, content) => JSON.stringify({channel: 'shell', content, metadata: {}, parent_header: {}, buffers: [],
    header: {msg_id: id, msg_type: type, username: '', session: 'test', version: '5.3', date: new Date().toISOString()}});
  const answered = new Promise(done => socket.onmessage = event => {
    const got = typeof event.data === 'string' ? JSON.parse(event.data) : {parent_header: {}};
    if (got.parent_header.msg_id === 'second' && got.header.msg_type === 'kernel_info_reply') done();
  });
  socket.send(message('first', 'execute_request', {code: `open(${JSON.stringify(file)}, 'w')`, silent: false, store_history: false,
    user_expressions: {}, allow_stdin: false}));
  socket.send(message('second', 'kernel_info_request', {}));
  await answered;
  socket.close();
}"""


@pytest.mark.full
@needs_browser
def test_on_its_own_page(browse, vlm, questions, scale, folder, tmp_path):
    command = [sys.executable, "-c", "from scale_interp.cli import main; main()", "explore", "demo", "--n", "6", "--scale", str(folder)]
    port = free_port()
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        address = server.stdout.readline().split()[1]
        assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/\?token=[\w-]{{32}}", address)
        page, problems = browse(address)
        bare = address.split("?")[0]
        for wrong in (bare, f"{bare}?token=guessed", f"{bare}login", f"{bare}api/kernels/0b7a57ab-0000-0000-0000-000000000000/channels"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong)
            assert refused.value.code == 403
        page.wait_for_selector(".si-explorer[data-ready]", timeout=60_000)
        _bars_reach(page, answers(vlm, questions[0], scale))
        strength = _drag(page, ".si-strength", -200)
        assert 0 < strength < 1
        _bars_reach(page, answers(vlm, questions[0], scale.edit(strength)))
        page.get_by_role("combobox", name="Layer").select_option("2")
        page.get_by_role("combobox", name="Head", exact=True).select_option("3")
        marked = "g => g.layout.shapes?.some(s => s.x0 === 2.5 && s.y0 === 1.5)"
        page.wait_for_function(f"[...document.querySelectorAll('.si-explorer .js-plotly-plot')].some({marked})")
        page.get_by_role("textbox", name="Folder").fill("nowhere")
        page.get_by_role("button", name="Load", exact=True).click()
        page.wait_for_function("document.querySelector('.si-message [class=si-error]')?.innerText.includes('no folder nowhere')")
        kernel = json.loads(page.locator("#jupyter-config-data").text_content())["kernelId"]
        page.evaluate(EXECUTE, [kernel, str(tmp_path / "written")])
        assert not (tmp_path / "written").exists()
        assert problems == []
    finally:
        server.terminate()
        server.wait()
