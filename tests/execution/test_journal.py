"""Nothing is lost: what a killed run had done is taken from its folder, and the numbers are those of one that was not killed."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

import scale_interp as si
from scale_interp.errors import DataWarning, EditError, FileError
from scale_interp.execution import journal
from scale_interp.execution.execution import execution_of, with_journal
from scale_interp.interventions.prefix import PrefixStore


class Killed(BaseException):
    """What stops a run in its middle."""


@pytest.fixture(scope="module")
def pairs(vlm):
    return si.contrasts(si.load_questions("scenes/relation", n=24))


ANALYSES = {
    "ablate": lambda vlm, pairs, qs: si.ablate(vlm, qs).per_question,
    "mean ablation": lambda vlm, pairs, qs: si.ablate(vlm, qs, "mean").per_question,
    "reference": lambda vlm, pairs, qs: si.evaluate(vlm, qs[:6], path="reference").scores,
    "patch": lambda vlm, pairs, qs: si.patch(vlm, pairs).per_question,
    "attribution patching": lambda vlm, pairs, qs: si.attribute(vlm, pairs).per_question,
    "gradient": lambda vlm, pairs, qs: si.attribute(vlm, qs).per_question,
    "integrated gradients": lambda vlm, pairs, qs: si.integrated_gradients(vlm, qs, steps=2).per_question,
    "path patching": lambda vlm, pairs, qs: si.path_patch(vlm, pairs, [(2, 1)])[2, 1].per_question,
    "logit attribution": lambda vlm, pairs, qs: si.logit_attribution(vlm, qs).per_question,
    "attention": lambda vlm, pairs, qs: torch.cat([w.flatten() for w in si.read_attention(vlm, qs)]),
    "evaluate": lambda vlm, pairs, qs: si.evaluate(vlm, qs, si.Edit.scaling([(3, 0)], 0.0, 6, 8)).scores,
    "capture": lambda vlm, pairs, qs: si.capture(vlm, qs, batch_size=8).z,
    "answer activations": lambda vlm, pairs, qs: si.answer_activations(vlm, qs, batch_size=8),
    "attention scaling": lambda vlm, pairs, qs: si.scaling_curve(vlm, qs, (0.5, 2.0)).per_question,
    "AdaptVis": lambda vlm, pairs, qs: si.evaluate_scaled(vlm, qs, [si.AdaptVis(0.5, 2.0, 0.4)])[0].scores,
    "whole passes": lambda vlm, pairs, qs: si.evaluate_scaled(vlm, qs[:3], [si.AttentionScale(0.5, rows="all")])[0].scores,
    "rescale": lambda vlm, pairs, qs: si.rescale(vlm, qs, (0.5, 2.0)).per_question,
    "fit": lambda vlm, pairs, qs: si.fit_scale(vlm, qs, epochs=4, batch_size=8).scalars,
    "fit of a bias": lambda vlm, pairs, qs: si.fit_bias(vlm, qs, epochs=3, batch_size=8, learning_rates=[1e-2, 1e-1]).shift,
    "fit of LoRA": lambda vlm, pairs, qs: torch.cat(
        [w.flatten() for w in si.fit_lora(vlm, qs, rank=1, epochs=2, batch_size=8, learning_rates=[1e-3]).weights.values()]
    ),
    "fit with retention": lambda vlm, pairs, qs: (
        si.fit_scale(vlm, qs, epochs=3, batch_size=8, retain=pairs[:8] and [p.clean for p in pairs[:8]]).scalars
    ),
}


LONG = {"fit of a bias", "fit of LoRA", "fit with retention"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full if name in LONG else ()) for name in ANALYSES])
def test_a_stopped_analysis_goes_on_with_the_same_bits(vlm, pairs, monkeypatch, tmp_path, name):
    """Stopped after the n-th thing it wrote, then run again: equal to one that was never stopped, and nothing was done twice."""
    questions = [p.clean for p in pairs]
    monkeypatch.setattr(vlm, "memory", 2**21)
    whole = ANALYSES[name](vlm, pairs, questions)
    written = []
    real = journal.Checkpoints.put

    def put(self, step, *args):
        real(self, step, *args)
        written.append((self.folder.name, step))
        if len(written) == stop:
            raise Killed

    monkeypatch.setattr(journal.Checkpoints, "put", put)
    stop = 2
    with pytest.raises(Killed), si.resumable(tmp_path):
        ANALYSES[name](vlm, pairs, questions)
    stop = -1
    with si.resumable(tmp_path):
        assert torch.equal(ANALYSES[name](vlm, pairs, questions), whole)
        assert len(written) > 2
        if "fit" not in name:
            assert len(set(written)) == len(written)
        done = len(written)
        assert torch.equal(ANALYSES[name](vlm, pairs, questions), whole)
    assert len(written) == done


def test_a_journal_is_handed_on_with_the_model(vlm, pairs, tmp_path):
    """Without any block: the handed model's work is kept, that of the model itself is not, and a journal beats the user's block."""
    questions = [p.clean for p in pairs][:8]
    plain = si.ablate(vlm, questions).per_question
    kept = with_journal(vlm, journal.Journal(tmp_path / "given"))
    assert torch.equal(si.ablate(kept, questions).per_question, plain)
    written = sorted((tmp_path / "given" / "parts").glob("*/*.safetensors"))
    assert written and execution_of(vlm).journal is None
    si.ablate(vlm, questions)
    with si.resumable(tmp_path / "block"):
        assert torch.equal(si.ablate(kept, questions).per_question, plain)
        assert not list((tmp_path / "block").glob("*/*.safetensors"))
        si.ablate(vlm, questions)
        assert list((tmp_path / "block").glob("*/*.safetensors"))
    assert sorted((tmp_path / "given" / "parts").glob("*/*.safetensors")) == written
    damaged = si.testbeds.plant(kept, [(3, 0)], 0.25)
    assert execution_of(damaged).journal is execution_of(kept).journal


def test_a_step_is_committed_when_its_function_returns(tmp_path):
    """A step that fails, or whose file is torn before it is recorded, is made again; a finished one is not, and parts go with it."""
    made, path = [], tmp_path / "a.json"

    def make(fail):
        made.append(fail)
        path.write_text("[1")
        if fail:
            raise Killed
        path.write_text("[1]")
        return ["a.json"]

    first = journal.Journal(tmp_path)
    first.unfinished.checkpoints("batches", 1).put("000000", {"x": torch.ones(1)})
    with pytest.raises(Killed):
        first.step("a", lambda: make(True), path.read_text)
    assert "000000" in first.unfinished.checkpoints("batches", 1)
    again = journal.Journal(tmp_path)
    assert again.step("a", lambda: make(False), path.read_text) == "[1]"
    assert "000000" not in again.unfinished.checkpoints("batches", 1)
    assert journal.Journal(tmp_path).step("a", lambda: make(False), path.read_text) == "[1]" and made == [True, False]
    path.write_text("[2]")
    with pytest.warns(DataWarning, match="checksum differs"):
        assert journal.Journal(tmp_path).step("a", lambda: make(False), path.read_text) == "[1]"
    inner = again.inside("more")
    assert inner.unfinished is again.unfinished and inner.folder == tmp_path / "more"


def test_other_work_never_mixes_in(vlm, pairs, tmp_path):
    """Another edit, another question, another picture under the same words, another scoring, other weights: other parts."""
    questions = [p.clean for p in pairs][:4]
    other_picture = [*questions[:3], si.Question(questions[3].text, questions[3].choices, questions[3].answer, Image.new("RGB", (48, 48)))]
    halved = si.load("demo")
    halved.hf_model.get_output_embeddings().weight.data *= 0.5
    edit = si.Edit.scaling([(3, 0)], 0.0, 6, 8)
    asked = [
        (vlm, questions, None, "auto"),
        (vlm, questions[1:], None, "auto"),
        (vlm, other_picture, None, "auto"),
        (vlm, questions, edit, "auto"),
        (vlm, questions, si.Edit.scaling([(3, 1)], 0.0, 6, 8), "auto"),
        (vlm, questions, None, "whole"),
        (halved, questions, None, "auto"),
    ]
    plain = [si.run_edits(model, qs, e, scoring=scoring) for model, qs, e, scoring in asked]
    for _ in range(2):
        with si.resumable(tmp_path):
            kept = [si.run_edits(model, qs, e, scoring=scoring) for model, qs, e, scoring in asked]
        assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
        assert len(list(tmp_path.glob("*/*.safetensors"))) == len(asked)


def test_work_under_hooks_is_not_kept(vlm, pairs, tmp_path):
    questions = [p.clean for p in pairs][:4]
    scale = si.fit_scale(vlm, questions * 2, epochs=1)
    with si.resumable(tmp_path):
        plain = si.evaluate(vlm, questions, path="reference").scores
        with si.ScAle(scale.scalars * 0, scale.mlp_scalars, 48, scale.heads).attached(vlm):
            assert not torch.equal(si.evaluate(vlm, questions, path="reference").scores, plain)
        assert torch.equal(si.evaluate(vlm, questions, path="reference").scores, plain)


def test_answers_in_words_are_kept(vlm, pairs, tmp_path, monkeypatch):
    questions = [p.clean for p in pairs][:6]
    edit = si.Edit.scaling([(3, h) for h in range(8)], 0.0, 6, 8)
    plain = si.answer_texts(vlm, questions, edit, batch_size=4)
    with si.resumable(tmp_path):
        assert si.answer_texts(vlm, questions, edit, batch_size=4) == plain
        monkeypatch.setattr(type(vlm), "generate", None)
        assert si.answer_texts(vlm, questions, edit, batch_size=4) == plain


def test_nothing_is_read_twice_by_the_model(vlm, pairs, tmp_path, monkeypatch):
    questions, reads, real = [p.clean for p in pairs], [], PrefixStore._read
    monkeypatch.setattr(vlm, "memory", 2**21)
    monkeypatch.setattr(PrefixStore, "_read", lambda self, i: reads.append(i) or real(self, i))
    with si.resumable(tmp_path):
        si.ablate(vlm, questions)
        n = len(reads)
        si.ablate(vlm, questions)
    assert n > 1 and len(reads) == n


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "foreign"])
def test_a_damaged_part_is_done_again(vlm, pairs, tmp_path, damage):
    questions = [p.clean for p in pairs]
    with si.resumable(tmp_path):
        whole = si.ablate(vlm, questions).per_question
    path = sorted(tmp_path.glob("*/*.safetensors"))[0]
    content = path.read_bytes()
    damaged = {"flipped": content[:-1] + bytes([content[-1] ^ 1]), "short": content[:-9], "empty": b"", "foreign": b"PK\x03\x04" + content}
    path.write_bytes(damaged[damage])
    with si.resumable(tmp_path), pytest.warns(DataWarning, match="computing it again"):
        assert torch.equal(si.ablate(vlm, questions).per_question, whole)
    assert path.read_bytes() == content


def test_a_folder_is_for_one_process(tmp_path):
    code = f"import scale_interp as si\nwith si.resumable({str(tmp_path)!r}): pass"
    with si.resumable(tmp_path):
        with pytest.raises(FileError, match=f"in use by process {os.getpid()}"), si.resumable(tmp_path):
            pass
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and f"is in use by process {os.getpid()}" in other.stderr
    with si.resumable(tmp_path):
        pass


def test_what_has_no_name_is_refused():
    with pytest.raises(EditError, match="has no name of its own"):
        journal.digest(lambda: 0)
    with pytest.raises(EditError, match="a object has no digest"):
        journal.digest(object())
