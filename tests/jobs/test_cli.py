import json
import sys
import tempfile
import warnings
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.errors import DataError, EditError, FileError, ModelError
from scale_interp.execution.journal import digest
from scale_interp.jobs.info import read_run
from scale_interp.jobs.run.run import Run
from scale_interp.jobs.run.settings import STEPS, Settings
from tests.support.small_run import FLAGS, SMALL


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def finished(first_run):
    """The run's folder, and what its command said."""
    folder, _, output = first_run
    return folder, output


def test_run_writes_what_it_promises(finished):
    folder, output = finished
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
    folder, _ = finished
    page = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['base']['accuracy']:.1%}" in page and summary["falsification"]["all"]["registration"] in page
    assert len(page) < 8e6 and 'src="http' not in page


def results(folder):
    """Every file but the log and the times."""
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and "parts" not in p.parts]
    return {str(name): (folder / name).read_bytes() for name in names if name.name not in (".lock", "log.txt", "state.json", "plan.json")}


def test_same_command_again_redoes_nothing_and_gives_the_same(finished):
    folder, output = finished
    kept, state = results(folder), json.loads((folder / "state.json").read_text())
    again = run("run", "demo", "--out", folder, *FLAGS)
    assert again.exit_code == 0 and again.stdout == output[output.index(again.stdout[:40]) :]
    assert "locating" not in again.output and "writing" not in again.output
    assert results(folder) == kept and json.loads((folder / "state.json").read_text())["steps"] == state["steps"]


def test_the_folder_says_what_it_is_of(finished):
    folder, _ = finished
    told, state = (json.loads((folder / name).read_text()) for name in ("settings.json", "state.json"))
    vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=40)
    assert told["command"] == SMALL.job.command and told["settings"] == asdict(SMALL) and told["settings"]["seed"] == 0
    assert told["model"]["fingerprint"] == vlm.fingerprint and told["model"]["revision"] is None
    assert told["data"]["train"]["content_hash"] == digest([(q, q.answer) for q in train])[:16] and told["data"]["test"]["n"] == 40
    assert {"python", "torch", "transformers", "nnsight", "scale-interp"} == set(told["versions"])
    assert state["status"] == "finished" and list(state["steps"]) == list(STEPS) == told["steps"]
    planned, took = sum(json.loads((folder / "plan.json").read_text())["steps"].values()), sum(state["steps"].values())
    assert planned / 3 < took < 3 * planned
    log = (folder / "log.txt").read_text()
    assert "expected: about" in log and "locating heads: patch" in log and log.splitlines()[-1].endswith("finished")
    assert not [part for part in (folder / "parts").glob("*/")]


@pytest.mark.full
def test_steps_one_by_one_give_what_the_whole_gives(finished, tmp_path, vlm):
    job = Run(tmp_path / "steps", SMALL, vlm=vlm)
    with pytest.raises(FileError, match="scale-interp locate"):
        job.fit()
    job.locate()
    with pytest.raises(FileError, match="scale-interp fit"):
        job.evaluate()
    assert read_run(tmp_path / "steps").status == "unfinished" and read_run(tmp_path / "steps").progress == f"7 of {len(STEPS)}"
    for command in ("fit", "evaluate", "falsify", "report"):
        assert run(command, tmp_path / "steps").exit_code == 0
    assert results(tmp_path / "steps") == results(finished[0])


def test_other_settings_do_not_mix(finished):
    with pytest.raises(FileError, match="n_test was 40, now 41"):
        Run(finished[0], Settings(**{**SMALL.__dict__, "n_test": 41}))


def test_a_mistyped_command_leaves_nothing_behind(tmp_path, vlm):
    with pytest.raises(EditError):
        Settings(n_test=0)
    for wrong in (Settings(data="scenes/nothing"), Settings(others=("scenes/nothing",))):
        with pytest.raises(DataError):
            Run(tmp_path / "run", wrong, vlm=vlm).everything()
        assert not (tmp_path / "run").exists()


def test_runs_and_show(finished):
    folder, _ = finished
    listed = CliRunner().invoke(cli.app, ["runs", str(folder.parent)], env={"COLUMNS": "220"})
    summary = json.loads((folder / "summary.json").read_text())
    for said in (folder.name, "scenes/relation", "finished", f"{len(STEPS)} of {len(STEPS)}", f"{summary['fits']['all']['accuracy']:.3f}"):
        assert said in listed.output
    shown = CliRunner().invoke(cli.app, ["show", str(folder)], env={"COLUMNS": "400"})
    for said in (SMALL.job.command, summary["falsification"]["top"]["verdict"], "n_test 40", "fingerprint", "scale/top/scale.safetensors"):
        assert said in shown.output
    assert shown.output.count("whole") == sum(len(files) for files in STEPS.values()) and "damaged" not in shown.output


def test_errors_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "settings.json").write_text("{")
    for arguments, message in (
        (["fit", tmp_path / "none"], "no file"),
        (["fit", tmp_path / "broken"], "damaged"),
        (["locate", "--data", "scenes/none", "--out", tmp_path / "a"], "unknown scene task"),
    ):
        code, error = end(monkeypatch, capsys, arguments)
        assert code == 2 and message in error and "Traceback" not in error and error.count("\n") == 1


def end(monkeypatch, capsys, arguments):
    """Exit code and standard error of the command as the shell sees it."""
    monkeypatch.setattr(sys, "argv", ["scale-interp", *map(str, arguments)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_an_unforeseen_error_names_its_traceback(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("by nothing")

    command = ["ask", "demo", "scenes/count", "--n", 4, "--sweep", 2, "--out", tmp_path / "a"]
    with monkeypatch.context() as patched:
        patched.setattr("scale_interp.jobs.ask.ask", fail)
        code, error = end(monkeypatch, capsys, command)
    assert (
        code == 1 and error.splitlines()[-1] == f"error: unexpected ZeroDivisionError: by nothing; the traceback is in {tmp_path}/a/log.txt"
    )
    assert "Traceback" in (tmp_path / "a" / "log.txt").read_text() and read_run(tmp_path / "a").status == "failed"
    with monkeypatch.context() as patched:
        patched.setattr("scale_interp.jobs.info.runs_in", fail)
        patched.setattr(tempfile, "tempdir", str(tmp_path))
        code, error = end(monkeypatch, capsys, ["runs"])
    (log,) = tmp_path.glob("scale-interp-*.log")
    assert code == 1 and str(log) in error and "ZeroDivisionError" in log.read_text()


def test_ctrl_c_ends_with_a_line_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    command = ["ask", "demo", "scenes/count", "--n", 4, "--sweep", 2, "--out", tmp_path / "a"]
    with monkeypatch.context() as patched:
        patched.setattr("scale_interp.jobs.ask.evaluate", stop)
        code, error = end(monkeypatch, capsys, command)
    assert code == 130 and error.splitlines()[-1] == "stopped; the same command goes on from here"
    assert read_run(tmp_path / "a").status == "stopped"
    assert run(*command).exit_code == 0 and read_run(tmp_path / "a").status == "finished"


def test_bench_shows_ratios(tmp_path):
    command = ("bench", "demo", "--questions", 2, "--repeats", 1, "--out", tmp_path, "--figure", tmp_path / "bench.html")
    result = run(*command)
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert run(*command).stdout == result.stdout
    differences = {row["way"]: row["largest_difference"] for row in found["rows"]}
    assert differences.pop("one plain forward over as many tokens") is None and max(differences.values()) < 1e-5
    assert {"one nnsight trace a head", "copied cache, batch repeat", "packed in an nnsight trace", "packed (ours)"} <= set(differences)
    assert "packed (ours)" in (tmp_path / "bench.html").read_text() and "peak memory" not in result.output
    assert isinstance(run("bench", "demo", "--figure", tmp_path / "bench.doc").exception, FileError)


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
