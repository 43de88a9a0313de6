"""Run folders: what is recorded, what is refused, what a stopped, damaged, full or shared folder does."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import scale_interp as si
from scale_interp.core.files import read_json, write_json
from scale_interp.errors import FileError, RunWarning
from scale_interp.jobs import compare as compare_run
from scale_interp.jobs import info as run_info
from scale_interp.jobs.ask import AskSettings, run_ask
from scale_interp.jobs.attention import AttentionSettings, run_attention
from scale_interp.jobs.compare import CompareSettings, run_comparison
from scale_interp.jobs.folder import RunFolder
from scale_interp.jobs.info import read_run, runs_in
from scale_interp.jobs.job import Job, command, not_repeatable
from scale_interp.models import demo

STEPS = {"one": ("one.json",), "two": ("two.json", "more/two.json")}
ASK = AskSettings("demo", "scenes/relation", n=6, sweep=4)


def sums(path, say=lambda _: None, numbers=(1, 2), asked=lambda: (None, {})):
    """A job of two steps that needs no model; its second result hangs on the first."""
    job = Job("sum", f"sum {numbers}", {"numbers": list(numbers)}, STEPS)
    return RunFolder(path, job, asked, say)


def finish(folder, at=lambda step: None):
    """Take both steps, with something done in the midst of each; the sum that was found."""
    one = lambda: (at("one"), write_json(folder.path / "one.json", {"sum": sum(folder.job.settings["numbers"])}))[1]  # noqa: E731
    with folder.working():
        found = folder.run_step("one", one, lambda: read_json(folder.path / "one.json"), "adding")["sum"]

        def two():
            at("two")
            write_json(folder.path / "more" / "two.json", {"twice": 2 * found})
            write_json(folder.path / "two.json", {"sum": found})

        return folder.run_step("two", two, lambda: read_json(folder.path / "more" / "two.json"), "doubling")["twice"]


def results(path):
    """Every file but the log and the times."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and run_info.PARTS not in p.relative_to(path).parts]
    return {str(p.relative_to(path)): p.read_bytes() for p in files if p.name not in (".lock", "log.txt", "state.json", "plan.json")}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- what is kept


def test_steps_are_taken_once_and_recorded(tmp_path):
    said = []
    folder = sums(tmp_path, said.append)
    assert finish(folder) == 6 and folder.computed == ["one", "two"]
    again = sums(tmp_path, said.append)
    assert finish(again) == 6 and again.computed == [] and said == ["adding", "doubling"]
    info = read_run(tmp_path)
    assert (info.status, info.progress, info.command, info.kind) == ("finished", "2 of 2", "sum (1, 2)", "sum")
    assert {f.name: f.state() for f in info.files} == dict.fromkeys(("one.json", "two.json", "more/two.json"), "whole")
    assert (tmp_path / "log.txt").read_text().count("adding") == 1 and (tmp_path / "log.txt").read_text().count("finished") == 2


def test_the_journal_is_open_while_work_is_done_and_its_parts_go(tmp_path):
    parts = []

    def at(step):
        part = folder.working_journal.unfinished.folder / f"{step}-part"
        part.mkdir(parents=True)
        (part / "batch").write_text("numbers")
        parts.append([p.name for p in sorted(folder.working_journal.unfinished.folder.glob("*/"))])

    folder = sums(tmp_path)
    finish(folder, at)
    assert parts == [["one-part"], ["two-part"]] and not list((tmp_path / run_info.PARTS).glob("*/")) and folder.working_journal is None


def test_warnings_are_logged_and_still_given(tmp_path):
    warn = lambda step: warnings.warn(f"{step} is rounded", UserWarning, stacklevel=1)  # noqa: E731
    with pytest.warns(UserWarning, match="rounded") as given:
        finish(sums(tmp_path, asked=lambda: (warn("the model"), {})), warn)
    log = (tmp_path / "log.txt").read_text()
    assert [f"UserWarning: {name} is rounded" in log for name in ("the model", "one", "two")] == [True] * 3 and len(given) == 3


def test_the_processs_own_warnings_are_left_as_they_were(tmp_path):
    """Neither an import nor an opened folder changes how warnings are shown; another thread's are shown, and not logged here."""
    code = "import warnings as w; before = w.showwarning; import scale_interp, scale_interp.cli; assert w.showwarning is before"
    subprocess.run([sys.executable, "-c", code], check=True)

    def at(step):
        if step == "one":
            warn = lambda: warnings.warn("from elsewhere", UserWarning, stacklevel=1)  # noqa: E731
            thread = threading.Thread(target=warn)
            thread.start()
            thread.join()

    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = own = lambda message, *_, **__: shown.append(str(message))
        filters = list(warnings.filters)
        finish(sums(tmp_path), at)
        assert warnings.showwarning is own and warnings.filters == filters
        warnings.warn("later", UserWarning, stacklevel=1)
    assert shown == ["from elsewhere", "later"]
    assert "elsewhere" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:-4]), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["one.json", "more/two.json"])
def test_damaged_results_are_said_and_made_anew(tmp_path, harm, name):
    finish(sums(tmp_path))
    whole = results(tmp_path)
    harm(tmp_path / name)
    assert [f.name for f in read_run(tmp_path).files if f.state() != "whole"] == [name]
    said = []
    folder = sums(tmp_path, said.append)
    assert finish(folder) == 6 and folder.computed == ["one" if name == "one.json" else "two"]
    assert name in said[0] and "computing it again" in said[0] and said[0] in (tmp_path / "log.txt").read_text()
    assert results(tmp_path) == whole


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_without_a_manifest_nothing_is_trusted(tmp_path, content):
    finish(sums(tmp_path))
    whole, manifest, said = results(tmp_path), tmp_path / "manifest.json", []
    manifest.unlink() if content is None else manifest.write_text(content)
    folder = sums(tmp_path, said.append)
    assert finish(folder) == 6 and folder.computed == ["one", "two"] and results(tmp_path) == whole
    assert [text for text in said if "no result can be checked" in text] == said[:1]


# --- what is refused


def test_other_settings_and_other_work_are_refused(tmp_path):
    finish(sums(tmp_path))
    with pytest.raises(FileError, match=r"numbers was \[1, 2\], now \[1, 3\]\): use another --out"):
        sums(tmp_path, numbers=(1, 3))
    with pytest.raises(FileError, match="results of `sum`, not of `ask`"):
        run_ask(ASK, tmp_path)
    write_json(tmp_path / "settings.json", {"model": "demo", "train": {"data": "scenes/relation"}})
    with pytest.raises(FileError, match="not of `ask`"):
        run_ask(ASK, tmp_path)
    with pytest.raises(FileError, match="not of `compare`"):
        run_comparison(CompareSettings(), tmp_path)


def test_changed_weights_behind_one_name_are_refused(tmp_path):
    shutil.copytree(demo.folder("demo"), tmp_path / "model")
    opened = lambda: (si.load(tmp_path / "model"), {"asked": si.load_questions("scenes/relation", n=2)})  # noqa: E731
    finish(sums(tmp_path / "run", asked=opened))
    whole, weights = results(tmp_path / "run"), tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors[max(tensors)].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(FileError, match=r"another model of the name .*model \(fingerprint was"):
        finish(sums(tmp_path / "run", asked=opened))
    assert results(tmp_path / "run") == whole


def test_changed_questions_behind_one_name_are_refused(tmp_path):
    record = {"id": "a", "question": "Where is the cat?", "choices": ["left", "right"], "answer": "left"}
    opened = lambda: (None, {"asked": si.load_questions(f"jsonl:{tmp_path}/q.jsonl")})  # noqa: E731
    for answer in ("left", "right"):
        (tmp_path / "q.jsonl").write_text(json.dumps(record | {"answer": answer}) + "\n")
        if answer == "left":
            finish(sums(tmp_path / "run", asked=opened))
    with pytest.raises(FileError, match=r"other asked questions of the name jsonl:.*content_hash was"):
        finish(sums(tmp_path / "run", asked=opened))


def test_other_versions_are_warned_of(tmp_path):
    finish(sums(tmp_path))
    told = read_json(tmp_path / "settings.json")
    told["versions"]["torch"], told["machine"]["threads"] = "2.0", 64
    write_json(tmp_path / "settings.json", told)
    with pytest.warns(RunWarning) as caught:
        finish(sums(tmp_path))
    assert "torch was '2.0', now" in str(caught[0].message) and "threads was 64" in str(caught[1].message)
    assert "RunWarning: " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("library", ["torch", "transformers", "nnsight", "scale-interp"])
def test_a_step_of_other_libraries_is_computed_again(tmp_path, library):
    finish(sums(tmp_path))
    whole, manifest = results(tmp_path), read_json(tmp_path / "manifest.json")
    step = next(iter(manifest["versions"]))
    manifest["versions"][step][library] = "0.0.1"
    write_json(tmp_path / "manifest.json", manifest)
    said = []
    again = sums(tmp_path, say=said.append)
    finish(again)
    assert again.computed == [step] and results(tmp_path) == whole
    assert any(f"{step} was made with other libraries ({library} was 0.0.1, now" in line for line in said)
    finish(third := sums(tmp_path))
    assert third.computed == []


def test_a_step_that_names_no_libraries_is_computed_again(tmp_path):
    finish(sums(tmp_path))
    manifest = read_json(tmp_path / "manifest.json")
    del manifest["versions"]
    write_json(tmp_path / "manifest.json", manifest)
    finish(again := sums(tmp_path))
    assert again.computed == list(manifest["steps"])


def test_cuda_is_warned_of_unless_it_is_deterministic():
    vlm = SimpleNamespace(device=torch.device("cuda:0"))
    assert "CUBLAS_WORKSPACE_CONFIG" in not_repeatable(vlm)[0] and not_repeatable(si.load("demo")) == not_repeatable(None) == []
    torch.use_deterministic_algorithms(True)
    try:
        assert not_repeatable(vlm) == []
    finally:
        torch.use_deterministic_algorithms(False)


# --- how it ends


def test_a_second_process_is_told_of_the_first(tmp_path):
    finish(sums(tmp_path))
    # As journal.lock does it, without waiting for torch.
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write(f'process {os.getpid()} on here');"
        "f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        whole = results(tmp_path)
        with pytest.raises(FileError, match=f"in use by process {other.pid} on here"):
            finish(sums(tmp_path))
        assert read_run(tmp_path).status == f"running: process {other.pid} on here" and results(tmp_path) == whole
        other.stdin.close()
    assert finish(sums(tmp_path)) == 6


def test_two_folders_of_one_process_do_not_share_either(tmp_path):
    def at(_):
        with pytest.raises(FileError, match=f"in use by process {os.getpid()}"):
            finish(sums(tmp_path))

    assert finish(sums(tmp_path), at) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, FileError("a reason"), ZeroDivisionError])
def test_what_stops_it_is_told_and_the_rest_is_done_later(tmp_path, error):
    def at(step):
        if step == "two":
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
        finish(sums(tmp_path), at)
    info, log = read_run(tmp_path), (tmp_path / "log.txt").read_text()
    assert (info.status, info.progress) == ("stopped" if error is KeyboardInterrupt else "failed", "1 of 2")
    notes = {KeyboardInterrupt: ["the same command goes on from here"], ZeroDivisionError: [f"the traceback is in {tmp_path}/log.txt"]}
    assert getattr(caught.value, "__notes__", None) == notes.get(type(caught.value))
    assert ("Traceback" in log) == (error is ZeroDivisionError) and ("error: a reason" in log) == isinstance(error, FileError)
    folder = sums(tmp_path)
    assert finish(folder) == 6 and folder.computed == ["two"]


def test_a_killed_run_is_called_so(tmp_path):
    finish(sums(tmp_path))
    write_json(tmp_path / "state.json", read_json(tmp_path / "state.json") | {"status": "running"})
    assert read_run(tmp_path).status == "killed"


def writes(tmp_path, monkeypatch):
    """How often the disk is written to in a whole run."""
    count, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (count.append(1), real(handle))[1])
    finish(sums(tmp_path))
    monkeypatch.setattr(os, "fsync", real)
    return len(count)


def test_a_full_disk_is_told_and_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    total, real = writes(tmp_path / "whole", monkeypatch), os.fsync
    whole = results(tmp_path / "whole")
    for after in range(total - 1):
        left = [after]

        def full(handle, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        folder = tmp_path / str(after)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(FileError, match=f"no space is left on the disk of {folder}"):
                finish(sums(folder))
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
        assert finish(sums(folder)) == 6 and results(folder) == whole


def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 1024)


def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        folder, filler = tmp_path / "run", tmp_path / "filler"

        def at(step):
            if step == "two":
                fill(filler)

        with pytest.raises(FileError, match="no space is left on the disk"):
            finish(sums(folder), at)
        filler.unlink()
        again = sums(folder)
        assert finish(again) == 6 and again.computed == ["two"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        finish(sums(tmp_path / "file" / "run"))


# --- the list


def test_runs_are_listed_and_broken_ones_told(tmp_path):
    finish(sums(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "settings.json").write_text("{")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "settings.json").write_text('{"kind": "sum"}')
    (tmp_path / "d").mkdir()
    found, broken = runs_in(tmp_path)
    assert [run.folder.name for run in found] == ["a"] and sorted(path.name for path in broken) == ["b", "c"]
    assert [run.folder for run in runs_in(tmp_path / "a")[0]] == [tmp_path / "a"]
    with pytest.raises(FileError, match="no folder"):
        runs_in(tmp_path / "none")
    with pytest.raises(FileError, match="is not a run"):
        read_run(tmp_path / "d")


def test_a_command_is_what_a_shell_takes():
    assert command("ask", "demo", "boxes:my set.json", n_test=4, fits=False) == "scale-interp ask demo 'boxes:my set.json' --n-test 4"
    assert CompareSettings(others=("a", "b"), seed=1).command.endswith("--data scenes/relation --others a --others b --seed 1")


# --- the same command, the same bytes


JOBS = {
    "ask": lambda folder, say: run_ask(ASK, folder, say),
    "attention": lambda folder, say: run_attention(AttentionSettings(n=8, pictures=1), folder, say),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_same_command_gives_the_same_bytes_and_takes_them_up_again(name, tmp_path):
    said = []
    table, notes = JOBS[name](tmp_path / "a", said.append)
    JOBS[name](tmp_path / "b", said.append)
    assert results(tmp_path / "a") == results(tmp_path / "b") and len(said) == 2
    again, noted = JOBS[name](tmp_path / "a", said.append)
    assert len(said) == 2 and noted == notes and again.to_csv() == table.to_csv()
    info = read_run(tmp_path / "a")
    assert (info.status, info.headline, list(info.findings)) == ("finished", notes[0], notes[1:])


@pytest.mark.full
def test_a_comparison_stopped_midway_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_run, "compare", partial(compare_run.compare, methods=("ScalingVis", "ScAle")))
    settings = CompareSettings("tiny-random/llava", others=(), n_train=24, n_validation=8, n_test=8, top=2)
    said = []
    run_comparison(settings, tmp_path / "whole", said.append)

    def say(text):
        if text == said[len(said) // 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(settings, tmp_path / "stopped", say)
    harmed = next((tmp_path / "stopped" / "steps" / "heads").iterdir())
    flip(harmed)
    rest = []
    run_comparison(settings, tmp_path / "stopped", rest.append)
    assert str(harmed) in rest[0] and len(rest) < len(said) and results(tmp_path / "stopped") == results(tmp_path / "whole")
    assert read_run(tmp_path / "stopped").progress == "2 of 2"
