"""The habits of the public surface: examples that run, results that show themselves, short errors, completion, types."""

import inspect
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib.resources import files
from types import ModuleType

import IPython
import plotly.io
import pytest
import torch
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import scale_interp as si
from scale_interp.attribution.attention.grid import patch_grid
from scale_interp.core import statistics
from scale_interp.core.notebook import NotebookView, notebook_html
from scale_interp.evaluation.falsification.calibration import Calibration
from tests.support import ROOT

SETTINGS = {"AttentionEdit", "Edit", "Fit", "FitSettings", "HeadSweep", "Sub"}
"""Public classes that are no results: their repr is enough."""
HEADS = [(layer, head) for layer in range(6) for head in range(8)]
EVIL = "<script>alert(1)</script>"


def public():
    """Every public name with what it names."""
    for prefix, room in (("si", si), ("si.viz", si.viz), ("si.testbeds", si.testbeds)):
        for name in room.__all__:
            found = getattr(room, name)
            if inspect.isclass(found) or inspect.isfunction(found) or inspect.ismodule(found):
                yield f"{prefix}.{name}", found


def test_every_public_name_has_an_example_that_is_run():
    without = [name for name, found in public() if ">>>" not in (found.__doc__ or "")]
    assert not without, f"these have no doctest: {', '.join(without)}"
    skipped = [name for name, found in public() if "+SKIP" in found.__doc__]
    assert not skipped, f"these have an example that is not run: {', '.join(skipped)}"
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"] and "scale_interp" in options["testpaths"]


def head_map(L=6, H=8, unit="logit diff"):
    draw = torch.Generator().manual_seed(0)
    return si.HeadMap("ablate zero", unit, torch.randn(5, L, H, generator=draw), torch.arange(5), {"model": "demo"})


@pytest.fixture(scope="module")
def results(vlm):
    return one_of_each(vlm)


def one_of_each(vlm):
    """One of every kind of result: what two or three questions give, or numbers made up."""
    qs = si.load_questions("scenes/relation", "train", n=8)
    cogs = si.cog_questions("train", n=2)
    pairs = si.contrasts(qs)
    ev = si.evaluate(vlm, qs)
    right = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    four, curve = torch.arange(4), torch.tensor([[0.0, 0.5, 1.0]])
    sets = si.HeadSets(6, 8, {"patching": ((3, 1), (2, 0)), "gradient": ((3, 1), (4, 2))})
    about = {"ScAle": {"setting": {"strength": 1.0}, "parameters": 54, "passes": 1.0, "grid": []}}
    control = {"control": "ScAle", "accuracy": 0.8, "gain": 0.3, "low": -0.1, "high": 0.6, "p_corrected": 0.2}
    gain = {"accuracy": 0.75, "gain": 0.25, "low": 0.1, "high": 0.4, "p": 0.01, "p_corrected": 0.02}
    full = {"full_minus": 0.01, "full_minus_low": 0.0, "full_minus_high": 0.02}
    elsewhere = {"others_change": -0.02, "others_change_low": -0.05, "others_change_high": 0.01}
    lora = {"recovered": 0.8, "recovered_low": 0.5, "recovered_high": 1.1, "scale_minus": -0.1, "scale_minus_p_corrected": 0.3}
    suite = {"kind": "no signal", "p": 0.4, "p_corrected": 0.8, "low": -0.1, "high": 0.1, "gains": False, "survives": False}
    draws = torch.full((1, 2), float("nan"))
    made = [
        vlm,
        vlm.report,
        qs,
        qs[0],
        pairs,
        pairs[0],
        cogs,
        cogs[0],
        si.capture(vlm, qs[:2]),
        head_map(),
        si.ProbeMap("probe", "accuracy", right[:, None], four, p=torch.ones(1, 2), classes=("left", "right"), chance=0.5),
        si.attribute(vlm, pairs[:2]),
        si.patch_positions(vlm, pairs[:2], groups=("image", "last")),
        si.knockout(vlm, qs[:2]),
        si.knockout_image(vlm, qs[:2]),
        si.logit_lens(vlm, qs[:2]),
        si.object_attention(vlm, qs[:2]),
        si.localization_heads(vlm, qs[:2]),
        si.Rescaling("mlp", ("0", "1"), (2.0,), "accuracy", right[:, None], four, {}),
        si.remove_heads_curve(vlm, qs[:2], HEADS, ks=(1, 4), draws=2),
        si.FunctionalHeads(
            ("counting", "reading"), torch.rand(4, 6, 8), four % 2, four % 2, four, torch.rand(3, 2, 6, 8), torch.rand(3), ("a",)
        ),
        ev,
        si.score_answers(["by the door"] * len(qs), qs),
        si.ScAle(torch.rand(6, 8), torch.ones(6), 48, tuple(HEADS)),
        si.Trajectory(torch.ones(3, 6, 8), torch.ones(3, 6)),
        si.LastTokenBias(torch.zeros(6, 8, 16)),
        si.PeftAdapter("LoRA r=1", {}, {"a": torch.zeros(3, 4)}, {"lr": 0.001}),
        si.Steering(torch.zeros(6, 8, 16), torch.ones(6, 8), 2.0, ((3, 1),)),
        si.AnswerDirection(torch.full((6, 8, 16), 0.25), torch.rand(6, 8), ("a", "b")),
        si.AttentionScale(1.5),
        si.AdaptVis(0.5, 1.5, 0.35),
        si.PASTA([(3, 1)]),
        si.Interventions(("gain 2",), ("counting",), "accuracy", right[:, :1], right[:, 1], four * 0, four),
        sets,
        si.Comparison(("base", "ScAle"), right, four, right[:0], four[:0], (), about, sets),
        si.Falsification(0.5, (control,), 0, 0, "5e1f" * 16, {}, {}),
        Calibration((suite,), {}),
        si.Faithfulness((0, 24, 48), "logit_diff", curve, curve.flip(1), torch.tensor([0])),
        si.Localisation(("patching",), ((3, 1),), torch.rand(1, 2, 6, 8), draws, draws),
        si.Recovery(((0, 1),), 0.25, torch.ones(4), right[:, 0], torch.ones(1, 4), torch.rand(1, 2, 2), four),
        si.Baselines(
            (gain | {"method": "ScAle", "parameters": 54}, gain | lora | {"method": "LoRA r=1", "parameters": 99, "validation_loss": 1.0})
        ),
        si.RetentionCurve(tuple(gain | elsewhere | {"weight": weight} for weight in (0.0, 3.0))),
        si.SparsityPath((gain | full | {"path": "l1", "value": 0.0, "moved": 48},), {"heads": 48}),
        si.Transfer((gain | {"fitted_on": "relation", "tested_on": "count", "base": 0.5},)),
        si.scaling_curve(vlm, qs[:2], (0.5, 2.0)),
        si.Tuned(si.AttentionScale(1.5), ({"weight": 1.5, "accuracy": 0.75},), 0.7, 16, ("a",), {"n": 4}),
        patch_grid(vlm, qs[0]),
        si.Edit.identity(6, 8),
        si.HeadSweep.all(6, 8, 0.0),
        si.AttentionEdit(torch.ones(1, 6, 8, dtype=torch.bool)),
    ]
    return {type(found).__name__: found for found in made}


class Balanced(HTMLParser):
    """HTML whose tags all close; `tags` counts them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_result_says_what_it_is_in_a_line_or_two(results):
    for name, found in results.items():
        said = repr(found)
        assert len(said) < 500 and said.count("\n") < 2 and "tensor(" not in said, name
        assert re.search(r"[\d']", said) and (said.startswith("<") or name in said), name


def test_every_result_shows_itself_in_a_notebook_of_any_colour(results):
    classes = {name for name, found in public() if inspect.isclass(found) and name.split(".")[1] not in ("viz", "testbeds")}
    shown = {name.removeprefix("si.") for name in classes} - SETTINGS
    assert shown <= results.keys(), f"not looked at: {shown - results.keys()}"
    for name in results.keys() - SETTINGS:
        text = results[name]._repr_html_()
        assert Balanced(text).tags and len(text) < 60_000, name
        coloured = re.findall(r"(?<![-\w])(?:color|background)[^;'\"]*|bgcolor", re.sub(r"src='data:[^']*'", "", text))
        assert not coloured, (name, coloured)


def test_cards_escape_cut_and_count():
    rows = [{"name": EVIL, EVIL: 0.12345, "small": -0.00012, "none": None, "missing": float("nan")}] + [{"name": "x" * 300}] * 20
    text = notebook_html(EVIL, rows, most=3)
    assert "<script" not in text and text.count("&lt;script&gt;") == 3 and "0.123" in text and "-1.2e-04" in text and "nan" not in text
    assert Balanced(text).tags.count("tr") == 4 and "x" * 120 not in text
    assert Balanced(notebook_html("nothing", [])).tags == ["div", "p"]


def test_names_that_users_chose_are_escaped(vlm):
    q = si.Question(EVIL, (EVIL, "no"), 1)
    for found in (q, si.score_answers([EVIL], [q]), head_map(unit=EVIL), si.HeadSets(6, 8, {EVIL: ((0, 0),), "b": ((1, 1),)})):
        assert "<script" not in found._repr_html_(), type(found)


def test_results_are_shown_without_what_is_dear(results, monkeypatch):
    def dear(*_, **__):
        raise AssertionError("an interval, for a card")

    for name in ("bootstrap_interval", "paired_difference", "accuracy_interval", "holm"):
        monkeypatch.setattr(statistics, name, dear)
    monkeypatch.setattr(statistics, "mean_p_values", dear)
    for name in ("Comparison", "HeadSets", "ScalingCurve", "Tuned", "Faithfulness", "Localisation", "FunctionalHeads", "ObjectAttention"):
        assert "<table" in results[name]._repr_html_(), name
    m = head_map(32, 32)
    assert Balanced(m._repr_html_()).tags.count("tr") == 9 and "p_values" not in vars(m)


@pytest.mark.parametrize("renderer", ["browser", "plotly_mimetype"])
def test_figures_fall_back_to_the_card(results, renderer, monkeypatch):
    monkeypatch.setattr(plotly.io.renderers, "default", renderer)
    drawn = [found for found in results.values() if isinstance(found, NotebookView) and hasattr(found, "_repr_mimebundle_")]
    assert len(drawn) >= 8
    for found in drawn:
        shown = found._repr_mimebundle_()
        assert shown["text/plain"] == repr(found) and shown["text/html"] == found._repr_html_()
        assert ("application/vnd.plotly.v1+json" in shown) is (renderer == "plotly_mimetype")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    started = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}), user_module=ModuleType("a_notebook"))
    started.run_line_magic("colors", "nocolor")
    yield started
    InteractiveShell.clear_instance()


def said(shell, code):
    with capture_output() as found:
        shell.run_cell(code)
    return found.stdout + found.stderr


def test_a_notebook_shows_the_line_that_failed_and_the_message_only(shell):
    said(shell, "import scale_interp as si\ndef mine(name):\n    return si.load_questions(name, n=2)")
    short = said(shell, "first = 1\nmine('scenes/realtion')")
    lines = short.strip().splitlines()
    assert len(lines) == 4 and lines[0].startswith("Cell In[") and lines[0].endswith(", line 3")
    assert lines[1] == "----> 3 return si.load_questions(name, n=2)" and lines[3].startswith("DataError: unknown scene task 'realtion'")
    whole = said(shell, "%tb")
    assert "questions.py" in whole and "mine('scenes/realtion')" in whole and whole.strip().endswith(lines[3])


def test_a_wrong_argument_and_an_error_of_the_users_own_making_are_short_too(shell):
    short = said(shell, "import scale_interp as si\nsi.load_questions('scenes/relation', n='two')")
    assert short.strip().splitlines()[1:] == [
        "----> 2 si.load_questions('scenes/relation', n='two')",
        "",
        "ArgumentError: load_questions(n='two'): a str; give a whole number, or None",
    ]
    assert "ModelError: mine" in said(shell, "raise si.errors.ModelError('mine')") and "Traceback" in said(shell, "1 / 0")


def test_without_ipython_an_error_still_renders(monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    try:
        raise si.errors.DataError("no")
    except si.errors.DataError as error:
        first, again = error._render_traceback_(), error._render_traceback_()
    assert first[-1] == again[-1].rpartition(".")[2] == "DataError: no" and again[0].startswith("Traceback")


def test_completion_of_a_result_lists_its_methods_and_computes_nothing(shell):
    m = shell.user_ns["m"] = head_map()
    assert {"top", "plot", "significant", "scores", "to_frame"} <= {name for name in dir(m) if not name.startswith("_")}
    for jedi in (True, False):
        shell.Completer.use_jedi = jedi
        with provisionalcompleter():
            found = {c.text.lstrip(".") for c in shell.Completer.completions("m.", 2)}
        assert {"top", "plot", "significant", "scores", "to_frame"} <= found
    assert not {"p_values", "scores"} & vars(m).keys()


def test_every_name_is_listed():
    assert set(dir(si)) == set(si.__all__) and {"head_heatmap", "explore"} <= set(dir(si.viz)) and {"plant"} <= set(dir(si.testbeds))


def test_types_are_shipped():
    assert (files("scale_interp") / "py.typed").is_file()
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["scale_interp"]
    assert "py.typed" in shipped
    assert "__init__.pyi" in shipped
    # What a strict checker takes from a package: names imported `as` themselves, here or in a layer that the stub takes all names of.
    stub = (ROOT / "scale_interp/__init__.pyi").read_text()
    layers = re.findall(r"^from \.(\w+) import \*$", stub, re.M)
    assert sorted(layers) == sorted(si.LAYERS)
    sources = [stub, *((ROOT / "scale_interp" / layer / "__init__.py").read_text() for layer in layers)]
    named = [name for source in sources for name in re.findall(r"^from \S+ import (\w+) as \1$", source, re.M)]
    assert len(named) == len(set(named)) and set(named) == set(si.__all__)


PROGRAM = """
import scale_interp as si


def best_heads(model: str, n: int = 8) -> list[tuple[int, int]]:
    vlm: si.VLM = si.load(model)
    questions: si.Questions = si.load_questions("scenes/relation", split="train", n=n)
    pairs: si.Contrasts = si.contrasts(questions)
    found: si.HeadMap = si.patch(vlm, pairs)
    low, high = found.interval()
    print(found.scores[0, 0].item(), low.shape, high.shape, found.sparsity()["gini"])
    return found.top(4)


def gain(model: str) -> float:
    vlm = si.load(model)
    train, test = (si.load_questions("scenes/relation", split, n=16) for split in ("train", "test"))
    scale: si.ScAle = si.fit_scale(vlm, train, heads=best_heads(model), mlp=False, epochs=2)
    with scale.attached(vlm):
        answer: str | list[str] = vlm.generate(test[0])
    edited: si.Evaluation = si.evaluate(vlm, test, scale)
    suite: si.Falsification = si.falsify(vlm, train, test, heads=best_heads(model), seeds=1)
    figure = si.viz.head_heatmap(si.ablate(vlm, test), dark=True)
    si.viz.save_figure(figure, "heads.html")
    circuit: si.testbeds.Circuit = si.testbeds.circuit("one-head")
    try:
        print(answer, suite.verdict, edited.interval(), si.run_edits(vlm, test, si.Edit.identity(6, 8)).shape, circuit.heads)
    except si.errors.DataError as error:
        print(error)
    return edited.compare(si.evaluate(vlm, test)).mean


gain("demo")
"""


@pytest.mark.full
def test_a_users_program_passes_a_strict_type_checker(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports", "program.py"]
    # An editable install is found by a hook that mypy does not run.
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = PROGRAM.replace('gain("demo")', 'gain(3) + si.load("demo").n_haeds')
    (tmp_path / "program.py").write_text(wrong)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "[arg-type]" in done.stdout and "n_haeds" in done.stdout
