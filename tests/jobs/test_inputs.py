"""The options of every command that opens a model or reads questions: the same words everywhere, and what arrives at `load`."""

import json
import re
from dataclasses import asdict

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.cli.options import DATA, MODEL
from scale_interp.cli.printed import frame_table
from scale_interp.data.readers.source import _NoHub
from scale_interp.data.splits import split_of
from scale_interp.errors import ArgumentError, DataError, EditError, FileError, ModelError, ScaleInterpError
from scale_interp.interventions.prefix import PrefixStore, read_prefix
from scale_interp.jobs.ask import AskSettings
from scale_interp.jobs.inputs import Inputs, has_split, usual_others
from scale_interp.jobs.plan import make_plan
from scale_interp.jobs.run.duration import as_found, expected
from scale_interp.jobs.run.run import Run
from scale_interp.jobs.run.settings import Settings
from scale_interp.models import placement

OPENS = ("run", "locate", "ask", "attention", "trace", "compare", "baselines", "check", "explore")


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_every_command_that_opens_a_model_takes_the_same_words():
    commands = typer.main.get_command(cli.app).commands
    said = {name: {option.name: option.help for option in commands[name].params if option.param_type_name == "option"} for name in OPENS}
    for name in OPENS:
        for option in (*MODEL, *DATA):
            assert option in said[name], f"{name} does not take --{option}"
            assert said[name][option] == said["run"][option] or (name, option) == ("check", "dtype")
    for name in ("fit", "evaluate", "falsify", "report"):
        assert {"device", "device_map"} <= {option.name for option in commands[name].params}
    assert {"device", "dtype"} <= {option.name for option in commands["bench"].params}


def test_what_is_given_arrives_at_load(monkeypatch, tmp_path):
    asked = {}

    class Stop(Exception):
        pass

    def load(name, **given):
        asked[name] = given
        raise Stop

    monkeypatch.setattr("scale_interp.jobs.inputs.load", load)
    words = ("--device", "cpu", "--dtype", "bfloat16", "--prompt", "bare", "--quantize", "nf4", "--options", "letters")
    for command in (["ask", "demo", "scenes/count"], ["ask", "demo", "--data", "scenes/count"], ["attention", "demo"], ["run", "demo"],
                    ["compare", "demo"], ["compare", "--model", "demo"], ["baselines", "demo"], ["locate", "demo"]):  # fmt: skip
        result = run(*command, *words, *(() if command[0] == "explore" else ("--out", tmp_path / "out")))
        assert isinstance(result.exception, Stop), (command, result.output)
        assert asked.pop("demo") == {
            "check": None, "device": "cpu", "dtype": "bfloat16", "prompt": "bare", "quantization_config": "nf4"
        }  # fmt: skip
    assert isinstance(run("ask", "demo").exception, DataError) and isinstance(run("ask", "demo", "a", "--data", "b").exception, DataError)


def test_a_job_records_what_it_was_given_and_may_go_on_elsewhere():
    s = AskSettings("demo", "jsonl:a.jsonl", n=4, device="cuda:1", answers="index", options="letters", prompt="bare")
    assert s.job.command == (
        "scale-interp ask demo jsonl:a.jsonl --device cuda:1 --prompt bare --answers index --options letters --n 4 --seed 0 "
        "--change mirror --sweep 40"
    )
    elsewhere = AskSettings("demo", "jsonl:a.jsonl", n=4, device="cpu", answers="index", options="letters", prompt="bare")
    elsewhere.job.require_same_settings("folder", {"kind": "ask", "settings": json.loads(json.dumps(asdict(s)))})
    with pytest.raises(si.errors.FileError, match="prompt was 'bare', now None"):
        AskSettings("demo", "jsonl:a.jsonl", n=4, answers="index", options="letters").job.require_same_settings(
            "folder", {"kind": "ask", "settings": json.loads(json.dumps(asdict(s)))}
        )


def test_root_and_answers_go_to_the_sets_that_take_them():
    given = Inputs(root="sets", answers="index", options="letters")
    assert given.reading("scenes/count", ("pope/random", "jsonl:a")) == {"options": "letters"}
    assert given.reading("pope/random", ("jsonl:a",)) == {"root": "sets", "options": "letters"}
    assert given.reading("jsonl:a", ("scenes/count",)) == {"root": "sets", "answers": "index", "options": "letters"}
    assert given.reading("scenes/count")["root"] == "sets"  # which load_questions then refuses
    assert usual_others("demo", "jsonl:a") == usual_others("some/model", "scenes/relation") != ()
    assert (
        usual_others("some/model", "jsonl:a") == () and not has_split("spatialeval/vqa/map", "train") and has_split("pope/random", "train")
    )


# Where a model goes.


def test_the_accelerator_is_taken_where_there_is_one(monkeypatch, capsys):
    assert str(si.load("tiny-random/llava", device="cpu").device) == "cpu" and capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert str(placement.default_device()) == "cuda:0" == str(placement.require_device(None))
    assert str(placement.require_device("cpu")) == "cpu"
    with pytest.raises(ModelError, match="torch finds cpu, cuda here"):
        placement.require_device("cuda:1")
    with pytest.raises(ModelError, match=r"does not go to 'cuda:0'.*dtype='bfloat16', or quantization_config='nf4'"):
        si.load("tiny-random/llava")  # there is no CUDA behind the patches


def test_a_device_map_without_accelerate(monkeypatch):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"accelerate, which is not installed: pip install 'scale-interp\[models\]'"):
        si.load("demo", device_map="auto")


@pytest.mark.parametrize(("name", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_quantisation_without_its_package(monkeypatch, name, package):
    monkeypatch.setattr("scale_interp.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf"{package}, which is not installed: pip install 'scale-interp\[quantize\]'"):
        si.load("demo", quantization_config=name)


def test_int8_weights_by_a_stand_in(monkeypatch):
    """The configuration reaches transformers; real quantised layers are tested where the packages are (.ci/matrix)."""
    seen = {}

    def from_pretrained(source, **given):
        seen.update(given)
        raise ImportError("torchao is not here")

    monkeypatch.setattr("scale_interp.models.checkpoint.AutoModelForImageTextToText.from_pretrained", from_pretrained)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(ModelError, match="torchao"):
        si.load("tiny-random/llava", quantization_config=config, device="cpu")
    assert seen["quantization_config"] == config and seen["device_map"] == {"": torch.device("cpu")}


# The plan.


def test_a_plan_says_what_the_work_itself_asks(vlm):
    train = si.load_questions("scenes/relation", "train", n=20)
    plan = make_plan(vlm, train)
    assert plan.prompt == read_prefix(vlm, train[:1]).nbytes and plan.reading == min(20, PrefixStore(vlm, train).batch_size)
    assert plan.weights == vlm.n_bytes and plan.places == {"memory": 20} and plan.batch == 20 >= plan.micro_batch
    assert set(plan.seconds) == {"reading", "heads", "fit", "row"} and all(0 <= s < 10 for s in plan.seconds.values())
    assert json.loads(json.dumps(plan.content()))["seconds"] == plan.seconds


def test_a_plan_knows_grouped_heads_windows_and_small_memory():
    gemma = si.load("tiny-random/gemma3", device="cpu")
    plan = make_plan(gemma, si.load_questions("scenes/relation", "train", n=8))
    said = dict(plan.rows())
    assert plan.heads == (4, 2) and "2 heads share theirs" in said["keys and values"] and "layers see 12 tokens" in said["keys and values"]
    small = si.load("tiny-random/gemma3", device="cpu", prefix_cache="recompute")
    small.memory = 20_000
    tight = make_plan(small, si.load_questions("scenes/relation", "train", n=8))
    assert tight.places == {"recompute": 8} and tight.reading < plan.reading and tight.at_once < plan.at_once
    assert "read again when needed" in dict(tight.rows())["prompts"]


def test_a_longer_run_is_expected_to_take_longer():
    seconds, base = {"reading": 0.1, "heads": 0.5, "fit": 0.2, "row": 0.05}, Settings()
    steps = base.steps()
    usual = expected(base, seconds, steps)
    assert expected(Settings(n_train=2 * base.n_train), seconds, steps)["fit"] > 1.5 * usual["fit"]
    assert expected(base, seconds, base.steps(pairs=False))["locate"] < usual["locate"]
    assert set(expected(base, {"reading": 0.1, "heads": 0.5}, steps)) == {"locate", "evaluate"}
    # What is done already is not to be waited for.
    assert set(expected(base, seconds, ["falsify top", "report"])) == {"falsify", "report"}


def test_check_plans_the_main_job():
    result = run("check", "tiny-random/llava", "--dtype", "float32", "--data", "scenes/relation", "--device", "cpu")
    assert result.exit_code == 0, result.output
    for said in ("the main job in float32", "weights", "keys and values", "variants of each", "expected", "about"):
        assert said in result.output
    assert isinstance(run("check", "tiny-random/llava", "--dtype", "float32", "--data", "scenes/none").exception, DataError)
    bad = run("check", "demo", "--device", "gpu", "--dtype", "float32")
    assert isinstance(bad.exception, ModelError) and "give 'cpu'" in str(bad.exception)


def test_a_model_that_cannot_be_fitted_says_so_before_any_map(tmp_path):
    result = run("run", "tiny-random/paligemma", "--n-train", 8, "--n-test", 4, "--n-retain", 2, "--out", tmp_path / "run")
    assert isinstance(result.exception, EditError) and "the main job needs gradients" in str(result.exception)
    assert not (tmp_path / "run/head_maps").exists()


@pytest.mark.parametrize("name", ["device", "dtype"])
def test_a_keyword_of_the_wrong_type_names_it(name):
    with pytest.raises((ModelError, ArgumentError), match=name):
        si.load("demo", **{name: 16})


def test_a_plan_counts_the_questions_that_there_are(tmp_path):
    lines = [{"question": f"Is it {i}?", "choices": ["yes", "no"], "answer": i % 2, "id": str(i)} for i in range(30)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings("demo", f"jsonl:{tmp_path}/few.jsonl", others=())
    train, test = (settings.questions(settings.data, split) for split in ("train", "test"))
    found = as_found(settings, train, test)
    assert (found.n_train, found.n_locate, found.n_test) == (len(train), len(train), len(test)) and 0 < len(test) < len(train) < 30
    seconds, steps = {"reading": 0.1, "heads": 0.5, "fit": 0.2, "row": 0.05}, settings.steps()
    assert sum(expected(found, seconds, steps).values()) < sum(expected(settings, seconds, steps).values()) / 5


# What no work need be done for to be refused.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("run", "demo", "--top", 0), r"Settings\(top=0\): below 1"),
        (("run", "demo", "--seeds", 0), r"seeds=0"),
        (("run", "demo", "--n-locate", 1), r"n_locate=1\): below 2"),
        (("run", "demo", "--quick", "--n-train", 1), r"n_train=1\): below 2"),
        (("ask", "demo", "scenes/count", "--sweep", -2), r"sweep=-2"),
        (("ask", "demo", "scenes/count", "--change", "miror"), "did you mean 'mirror'"),
        (("trace", "demo", "--n", 0), r"n=0"),
        (("attention", "demo", "--pictures", -1), r"pictures=-1\): below 0"),
        (("bench", "demo", "--repeats", 0), r"repeats=0"),
        (("bench", "demo", "--questions", 0), r"questions=0"),
        (("bench", "demo", "--sample", -1), r"sample=-1\): below 0"),
        (("compare", "demo", "--n-test", 0), r"n_test=0"),
        (("baselines", "demo", "--rates", 0), r"rates=0"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_any_work(given, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scale_interp.jobs.inputs.load", None)
    result = run(*given)
    assert isinstance(result.exception, ScaleInterpError) and re.search(said, str(result.exception)), result.output
    assert not (tmp_path / "runs").exists()


def test_quick_leaves_what_is_given():
    quick = Settings.quick("demo", "scenes/relation", n_train=8, seeds=2)
    assert (quick.n_train, quick.seeds, quick.n_test) == (8, 2, 200)


def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("scale_interp.jobs.inputs.load", None)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        result = run("ask", "demo", "scenes/count", "--out", out)
        assert isinstance(result.exception, FileError) and "file is a file" in str(result.exception)
    monkeypatch.setattr("scale_interp.jobs.folder.os.access", lambda path, mode: False)
    result = run("run", "demo", "--out", tmp_path / "new")
    assert isinstance(result.exception, FileError) and f"{tmp_path} may not be written to" in str(result.exception)


def test_more_heads_than_there_are_and_one_image_are_refused_before_any_map(tmp_path, vlm):
    with pytest.raises(EditError, match="top=49: demo has 48 heads"):
        Run(tmp_path / "run", Settings(n_train=4, n_locate=2, n_test=2, n_retain=2, top=49), vlm=vlm).everything()
    lines = [{"id": str(i), "question": f"Is it {i}?", "choices": ["yes", "no"], "answer": 0, "group": f"g{i > 5}"} for i in range(12)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seed = next(s for s in range(20) if {split_of(f"{g}", s) for g in ("g0", "g1")} == {"train", "test"})
    alone = Settings(data=f"jsonl:{tmp_path}/one.jsonl", others=(), seed=seed)
    with pytest.raises(DataError, match="has one image to train on"):
        Run(tmp_path / "run", alone, vlm=vlm).everything()
    assert not (tmp_path / "run").exists()


# Where nothing is, nobody is asked.


def test_a_root_that_is_no_folder_is_said_at_once(monkeypatch, tmp_path, capsys):
    def ask_the_hub(entry, split):
        raise _NoHub("The hub was asked.")

    monkeypatch.setattr("scale_interp.data.readers.source._from_hub", ask_the_hub)
    with pytest.raises(DataError, match="is no folder, so pope/random has no file there"):
        si.load_questions("pope/random", root=tmp_path / "no")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="The hub was asked"):
        si.load_questions("pope/random", root=tmp_path)
    assert f"pope/random is not in {tmp_path}: asking the hub for" in capsys.readouterr().err


def test_a_file_is_named_by_its_form(tmp_path):
    (tmp_path / "own.jsonl").write_text("")
    with pytest.raises(DataError, match=rf"JSON lines are named jsonl:{tmp_path}/own.jsonl"):
        si.load_questions(f"{tmp_path}/own.jsonl")
    with pytest.raises(DataError, match="with no questions in it"):
        si.load_questions(f"jsonl:{tmp_path}/own.jsonl")


def test_a_mistyped_folder_says_that_the_hub_is_asked(monkeypatch, tmp_path, capsys):
    def offline(source, **given):
        raise OSError("offline")

    monkeypatch.setattr("scale_interp.models.checkpoint.AutoConfig.from_pretrained", offline)
    (tmp_path / "ckpt").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, said in (("ckpt/step", "there is no ckpt/step in the folder ckpt"), ("some/model", "")):
        with pytest.raises(ModelError):
            si.load(name)
        assert said in (err := capsys.readouterr().err) and bool(err) == bool(said)


def test_numbers_of_a_wide_table_are_printed_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    frame_table(pd.DataFrame({f"column {i}": [0.12345, -1.0] for i in range(14)}), "wide")
    said = capsys.readouterr().out
    assert said.count("0.123") == 14 == said.count("-1.000") and "…" not in said


@pytest.mark.parametrize(
    ("prompt", "said"), [("{images}{text}{option}", "would show {option} as it stands"), (r"{images}\n{text}", "a backslash and an n")]
)
def test_a_prompt_that_shows_what_nobody_means_is_refused(prompt, said):
    with pytest.raises(ModelError, match=said):
        si.load("demo", prompt=prompt)
