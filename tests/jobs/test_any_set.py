"""The main job on models and sets that are not ours: JSON lines with pairs and without, by letter, beside others; What'sUp."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.errors import DataError, LeakError
from scale_interp.jobs.run.run import Run, labels
from scale_interp.jobs.run.settings import Settings
from scale_interp.jobs.two_runs import compare_runs
from tests.support.official_sets import write_controlled

FEW = ("--n-train", 16, "--n-locate", 6, "--n-test", 8, "--n-retain", 6, "--seeds", 1, "--top", 2)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def photo(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return path.name


def photographs(folder, name="own", n=60, contrast=True, start=0):
    """JSON lines about n photographs; every other question brings the image of its contrast along."""
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(n):
        line = {
            "id": f"{name}{i}",
            "image": photo(folder / f"{name}{i}.png", start + i),
            "question": "Where is the cup?" if contrast else "What is it?",
            "choices": ["on", "under"] if contrast else ["a cup", "a dog", "a hat"],
            "answer": i % 2,
        }
        if contrast and i % 4 < 2:
            line["contrast_image"] = photo(folder / f"{name}{i}-other.png", 1000 + start + i)
        lines.append(line)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"jsonl:{folder}/{name}.jsonl"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run of a tiny Qwen2.5-VL on JSON lines by letter, with its own pairs, and with other JSON lines to keep."""
    folder = tmp_path_factory.mktemp("own")
    data, others = photographs(folder), photographs(folder, "things", contrast=False, start=500)
    command = ("run", "tiny-random/qwen2_5_vl", "--data", data, "--others", others, "--options", "letters", "--device", "cpu", *FEW)
    result = run(*command, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run", result.output, command


@pytest.mark.full
def test_the_main_job_on_json_lines_by_letter(own_run):
    folder, _, command = own_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ranked_by"] == "patch" and set(summary["fits"]) == {"all", "top", "retained"}
    assert {row["task"] for row in summary["retention"]} == {"things", "all"}
    assert any("random weights" in note for note in summary["notes"]) and any("have no partner" in note for note in summary["notes"])
    patched = si.HeadMap.load(folder / "head_maps/patch.safetensors")
    assert "own pairs" in patched.provenance["data"] and 1 < patched.provenance["n"] < 6
    told = json.loads((folder / "settings.json").read_text())
    assert told["settings"]["options"] == "letters" and {"contrasts", "retained", "others"} <= set(told["data"])
    page = (folder / "report.html").read_text()
    assert "random weights" in page and "A. on" in page
    assert f"Measured on {patched.provenance['n']} pairs of training questions" in page
    again = run(*command, "--out", folder)
    assert again.exit_code == 0 and "locating" not in again.output
    assert run("report", folder, "--device", "cpu").exit_code == 0


@pytest.mark.full
def test_the_main_job_on_whatsup_without_other_sets(tmp_path):
    write_controlled(tmp_path, "controlled_clevr")
    given = ("run", "tiny-random/llava", "--data", "whatsup/controlled_b", "--root", tmp_path, "--dtype", "bfloat16")
    result = run(*given, *FEW, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary["fits"]) == {"all", "top"} and summary["retention"] == [] and "is not known" in " ".join(summary["notes"])
    assert not (tmp_path / "run/scale/retained").exists() and "no other set was asked" in (tmp_path / "run/report.html").read_text().lower()


@pytest.mark.full
def test_a_set_without_pairs_is_ranked_by_ablation(tmp_path, own_run):
    data = photographs(tmp_path / "set", contrast=False)
    result = run("run", "tiny-random/qwen2_5_vl", "--data", data, *FEW, "--n-locate", 500, "--n-test", 500, "--out", tmp_path / "run")
    assert result.exit_code == 0 and "no contrast pairs, so no patching" in result.output, result.output
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    # What is said is how many questions there were, not how many were asked for.
    n = len(si.load_questions(data, "test"))
    assert summary["questions"] == {"train": 16, "test": n} and f"{n} test questions" in result.output
    page = (tmp_path / "run/report.html").read_text()
    assert "located on 16 training questions" in page and "Measured on 16 training questions" in page
    zero = si.HeadMap.load(tmp_path / "run/head_maps/zero.safetensors")
    assert summary["ranked_by"] == "zero" and [tuple(h) for h in summary["top_heads"]] == zero.top(2, "abs")
    assert not (tmp_path / "run/head_maps/patch.safetensors").exists() and "patch" not in summary["sparsity"]
    assert "nothing was patched" in (tmp_path / "run/report.html").read_text()
    steps = json.loads((tmp_path / "run/settings.json").read_text())["steps"]
    assert "locate patch" not in steps and json.loads((tmp_path / "run/state.json").read_text())["status"] == "finished"
    assert run("report", tmp_path / "run").exit_code == 0
    compared = compare_runs(tmp_path / "run", own_run[0])
    assert list(compared.answers["fit"]) == ["base", "ScAle, all heads and MLPs", "ScAle, top heads"]


def test_what_cannot_be_run_is_refused_before_any_work(tmp_path, vlm):
    data = photographs(tmp_path, n=40)
    for given, error, message in (
        ({"others": ("jsonl:no/such.jsonl",)}, DataError, "there is no file"),
        ({"others": ("pope/randm",)}, DataError, "did you mean 'pope/random'"),
        ({"data": data, "others": (data,)}, LeakError, "in both training and test"),
        ({"root": str(tmp_path)}, DataError, "root= and template= are for sets on disk"),
        ({"answers": "index"}, DataError, "is for JSON lines"),
        ({"data": data, "options": "letters"}, DataError, "the tokenizer of demo does not know these words"),
    ):
        settings = Settings(**{"n_train": 16, "n_locate": 4, "n_test": 8, "n_retain": 4, **given})
        if error is LeakError:  # the same set by another seed shares images with the test questions
            settings = Settings(**{**settings.__dict__, "others": (f"jsonl:{tmp_path}/./own.jsonl",), "n_retain": 40})
            other = [{"image": f"own{i}.png", "question": "What?", "choices": ["a", "b"], "answer": 0, "group": f"g{i}"} for i in range(40)]
            (tmp_path / "copies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other))
            settings = Settings(**{**settings.__dict__, "others": (f"jsonl:{tmp_path}/copies.jsonl",)})
        with pytest.raises(error, match=message):
            Run(tmp_path / "run", settings, vlm=vlm).everything()
        assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="did you mean 'letters'"):
        Settings(data=data, options="letter")


def test_short_names_of_sets():
    assert labels(["scenes/asked", "jsonl:a/x.jsonl", "jsonl:b/x.jsonl"]) == {
        name: name for name in ("scenes/asked", "jsonl:a/x.jsonl", "jsonl:b/x.jsonl")
    }


def test_the_others_are_read_once(tmp_path, vlm, monkeypatch):
    data, others = photographs(tmp_path, n=30), photographs(tmp_path, "things", n=30, contrast=False, start=500)
    read, load = [], Settings.questions
    monkeypatch.setattr(Settings, "questions", lambda self, name, *given, **more: read.append(name) or load(self, name, *given, **more))
    job = Run(tmp_path / "run", Settings(data=data, others=(others,), n_train=4, n_locate=2, n_test=2, n_retain=2), vlm=vlm)
    _ = job.asked, job.others("train"), job.others("test"), job.others_together("test")
    assert sorted(read) == sorted([data, others] * 2)


def test_long_choices_are_shortened_in_messages(vlm):
    shown = Image.new("RGB", (32, 32))
    long = [si.Question("Where?", ("left " * 100, "right " * 100), i, image=shown, id=str(i)) for i in range(2)]
    with pytest.raises(DataError) as error:
        si.contrasts(long)
    assert len(str(error.value)) < 600 and "characters)" in str(error.value)
