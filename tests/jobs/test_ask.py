"""`scale-interp ask`: a set asked, scored, contrasted, swept and reported, on photographs too where the samples are at hand."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.jobs.ask import ask, notes, write_results
from tests.support import SAMPLES

needs_samples = pytest.mark.skipif(not (SAMPLES / "whatsup").is_dir(), reason=f"no genuine samples in {SAMPLES}: set SCALE_INTERP_DATA")


def test_a_set_without_contrasts_says_why_and_is_reported_all_the_same(vlm, tmp_path):
    found = ask(vlm, si.load_questions("scenes/count", n=12), sweep=4)
    assert found.pairs is None and set(found.maps) == {"ablate zero"}
    assert any("no patching" in note for note in notes(found))
    write_results(found, vlm, tmp_path, "scale-interp ask demo scenes/count")
    assert {p.name for p in tmp_path.iterdir()} == {
        "answers.csv",
        "benchmark.csv",
        "ablate_zero.safetensors",
        "summary.json",
        "report.html",
    }
    assert len(pd.read_csv(tmp_path / "answers.csv")) == 12


def test_command_on_scenes(tmp_path):
    arguments = ["ask", "demo", "scenes/relation", "--n", "16", "--sweep", "8", "--text", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "8 contrast pairs" in result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    evaluation = si.evaluate(si.load("demo"), si.load_questions("scenes/relation", n=16))
    assert summary["benchmark"][0]["value"] == pytest.approx(evaluation.accuracy)
    assert si.HeadMap.load(tmp_path / "patch.safetensors").provenance["n"] == 8
    page = (tmp_path / "report.html").read_text()
    assert "Answers in words" in page and " ".join(arguments[:4]) in page and "random weights" not in page


@pytest.mark.full
@needs_samples
@pytest.mark.parametrize("model", ["tiny-random/llava_next", "tiny-random/qwen2_5_vl", "tiny-random/gemma3", "tiny-random/idefics3"])
@pytest.mark.parametrize(("data", "change"), [("whatsup/controlled_a", "set"), ("whatsup/controlled_b", "mirror")])
def test_photographs_through_random_families(model, data, change, tmp_path):
    vlm = si.load(model)
    found = ask(vlm, si.load_questions(data, root=SAMPLES), change=change, text=True)
    assert {"individual accuracy", "pair accuracy", "set accuracy"} <= set(found.table.metric)
    assert set(found.maps) == {"ablate zero", "patch"} and found.pairs is not None
    assert len(found.pairs) + len(found.pairs.skipped) == len(found.answers.questions)
    write_results(found, vlm, tmp_path, "")
    page = (tmp_path / "report.html").read_text()
    assert "random weights" in page and "data:image/png" in page


@needs_samples
@pytest.mark.parametrize("asked", ["place", "relation", "pope/popular"])
def test_photographs_through_the_embedded_model(vlm, asked, tmp_path):
    questions = si.load_questions(f"boxes/{asked}:{SAMPLES / 'photos_with_boxes' / 'instances.json'}")[:20]
    found = ask(vlm, questions, sweep=4)
    assert len(found.answers.questions) == len(questions) and ("precision" in set(found.table.metric)) == asked.startswith("pope")
    write_results(found, vlm, tmp_path, "")
    assert "random weights" not in (tmp_path / "report.html").read_text()
