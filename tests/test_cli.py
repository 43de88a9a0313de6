import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.errors import DataError, FileError, ModelError
from scale_interp.run import Run, Settings

SMALL = Settings(n_train=80, n_locate=12, n_test=40, n_retain=10, seeds=1)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = [f"--{k.replace('_', '-')}={getattr(SMALL, k)}" for k in ("n_train", "n_locate", "n_test", "n_retain", "seeds")]
    result = run("run", "demo", "--out", folder, *flags)
    assert result.exit_code == 0, result.output
    return folder, result.output, flags


def test_run_writes_what_it_promises(finished):
    folder, output, _ = finished
    names = {p.name for p in folder.iterdir()}
    assert {"report.html", "summary.json", "head_maps", "scale", "falsification_all.json", "falsification_top.json"} <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["settings"]["n_test"] == 40 and summary["falsification"]["all"]["frozen_changed"] == 0
    assert set(summary["fits"]) == {"all", "top", "retained"} and len(summary["top_heads"]) == 8
    for path in (folder / "head_maps").iterdir():
        found = si.HeadMap.load(path)
        assert found.provenance["split"] == "train" and found.provenance["n"] <= 12
    scale = si.ScAle.from_pretrained(folder / "scale")
    test = si.load_questions("scenes/relation", "test", n=40)
    assert si.evaluate(si.load("demo"), test, scale).accuracy == pytest.approx(summary["fits"]["all"]["accuracy"])
    assert "in plain words" in output and "Falsification" in output


def test_report_holds_the_numbers(finished):
    folder, _, _ = finished
    page = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['base']['accuracy']:.1%}" in page and summary["falsification"]["all"]["registration"] in page
    assert len(page) < 8e6 and 'src="http' not in page


def test_same_command_again_redoes_nothing_and_gives_the_same(finished):
    folder, _, flags = finished
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".html"}
    assert run("run", "demo", "--out", folder, *flags).exit_code == 0
    for path, content in kept.items():
        if path.name == "summary.json":
            before, after = json.loads(content), json.loads(path.read_text())
            assert before.pop("seconds") > after.pop("seconds") and before == after
        else:
            assert path.read_bytes() == content


def test_steps_one_by_one_give_what_the_whole_gives(finished, tmp_path, vlm):
    job = Run(tmp_path / "steps", SMALL, vlm=vlm)
    with pytest.raises(FileError, match="scale-interp locate"):
        job.fit()
    job.locate()
    with pytest.raises(FileError, match="scale-interp fit"):
        job.evaluate()
    for command in ("fit", "evaluate", "falsify"):
        assert run(command, tmp_path / "steps").exit_code == 0
    for name in ("scores.safetensors", "falsification_top.json", "scale/scale.safetensors", "head_maps/patch.safetensors"):
        assert (tmp_path / "steps" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_other_settings_do_not_mix(finished):
    with pytest.raises(FileError, match="n_test was 40, now 41"):
        Run(finished[0], Settings(**{**SMALL.__dict__, "n_test": 41}))


def test_a_mistyped_command_leaves_nothing_behind(tmp_path, vlm):
    for wrong in (Settings(n_test=0), Settings(data="scenes/nothing"), Settings(data="scenes/colour", n_train=4)):
        with pytest.raises(DataError):
            Run(tmp_path / "run", wrong, vlm=vlm).everything()
        assert not (tmp_path / "run").exists()


def test_errors_are_one_line(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "settings.json").write_text("{")
    for arguments, message in (
        (["fit", tmp_path / "none"], "no file"),
        (["fit", tmp_path / "broken"], "damaged"),
        (["locate", "--data", "scenes/none", "--out", tmp_path / "a"], "unknown scene task"),
    ):
        done = subprocess.run([Path(sys.executable).parent / "scale-interp", *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_bench_shows_ratios(tmp_path):
    result = run("bench", "demo", "--questions", 2, "--repeats", 1, "--out", tmp_path / "bench.json", "--figure", tmp_path / "bench.html")
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    differences = {row["way"]: row["largest_difference"] for row in found["rows"]}
    assert differences.pop("one plain forward over as many tokens") is None and max(differences.values()) < 1e-5
    assert {"one nnsight trace a head", "copied cache, batch repeat", "packed with bare hooks", "packed (ours)"} <= set(differences)
    assert "packed (ours)" in (tmp_path / "bench.html").read_text() and "peak memory" not in result.output
    assert isinstance(run("bench", "demo", "--figure", tmp_path / "bench.pdf").exception, FileError)


def test_help_needs_no_heavy_import():
    code = (
        "import sys, scale_interp, scale_interp.cli; print([m for m in ('torch', 'transformers', 'nnsight', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in si.__all__:
        assert getattr(si, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = si.nothing


def test_check_prints_what_a_model_is():
    result = CliRunner().invoke(cli.app, ["check", "tiny-random/gemma3"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in ("Gemma3ForConditionalGeneration", "Gemma3Processor", "3 x 4 x 24", "float32", "float16", "bfloat16", "packed"):
        assert said in result.output
    bidirectional = run("check", "tiny-random/paligemma2", "--dtype", "float32")
    assert bidirectional.output.count("both directions") == 1 and "float16" not in bidirectional.output
    with pytest.raises(ModelError, match="choose from float32"):
        CliRunner().invoke(cli.app, ["check", "demo", "--dtype", "int8"], catch_exceptions=False)
