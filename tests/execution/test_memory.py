"""How much memory is free: what torch has reserved and does not use is."""

import copy

import pytest
import torch

import scale_interp as si
from scale_interp.errors import MemoryWarning, ModelError
from scale_interp.evaluation.falsification.suite import _frozen
from scale_interp.execution.memory import free_memory, working_bytes
from scale_interp.vlm.vlm import VLM

GPU = torch.device("cuda:1")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of so many bytes free, reserved by torch, and allocated."""

    def of(free, reserved, allocated):
        asked = []

        def answer(value):
            return lambda device=None: asked.append(device) or value

        monkeypatch.setattr(torch.cuda, "mem_get_info", answer((free, 80_000)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", answer(reserved))
        monkeypatch.setattr(torch.cuda, "memory_allocated", answer(allocated))
        return asked

    return of


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "expected"),
    [
        (10_000, 60_000, 20_000, 50_000),  # a large batch has come and gone
        (0, 80_000, 1_000, 79_000),  # nothing left outside of torch's reserve
        (70_000, 5_000, 5_000, 70_000),  # all that is reserved is in use
        (70_000, 0, 0, 70_000),  # nothing was allocated yet
    ],
)
def test_the_unused_reserve_is_free(gpu, free, reserved, allocated, expected):
    asked = gpu(free, reserved, allocated)
    assert free_memory(GPU) == expected
    assert set(asked) == {GPU}  # this GPU's numbers, not the current one's


def test_a_call_may_take_as_much_before_and_after_memory_was_used(gpu, monkeypatch):
    vlm = si.load("demo")
    monkeypatch.setattr(type(vlm), "device", GPU)
    monkeypatch.setattr(type(vlm), "n_bytes", 16_000_000_000)
    gpu(2_000_000_000, 0, 0)
    before = working_bytes(vlm)
    gpu(100_000_000, 1_950_000_000, 50_000_000)
    assert working_bytes(vlm) == before == 500_000_000


def test_a_cpu_asks_the_machine():
    assert free_memory(torch.device("cpu")) > 0


def test_whole_passes_go_on_in_halves(monkeypatch):
    vlm, asked, plain = si.load("demo"), si.load_questions("scenes/relation", n=8), VLM.encode
    expected, said, at = si.capture(vlm, asked), si.answer_texts(vlm, asked), si.capture(vlm, asked, at="image")
    most = [3]

    def encode(self, questions):
        if not isinstance(questions, si.Question) and len(questions) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return plain(self, questions)

    monkeypatch.setattr(VLM, "encode", encode)
    with pytest.warns(MemoryWarning, match="no memory for 8 questions at once; continuing with 4"):
        assert si.answer_texts(vlm, asked) == said
    for found, whole in ((si.capture(vlm, asked), expected), (si.capture(vlm, asked, at="image"), at)):
        assert (found.z - whole.z).abs().max() <= 1e-5 and (found.mlp - whole.mlp).abs().max() <= 1e-5
        assert (found.logits - whole.logits).nan_to_num(0, 0, 0).abs().max() <= 1e-4
    assert _frozen(vlm, asked, si.ScAle.neutral(vlm)) == (0, 0)
    most[0] = 0
    with pytest.warns(MemoryWarning), pytest.raises(ModelError, match=rf"no memory for question {asked[0].id}: give a smaller image"):
        si.answer_texts(vlm, asked)


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory: you tried", "Unable to allocate 62.0 MiB for an array"])
def test_a_processor_without_memory_is_no_bad_question(monkeypatch, said):
    vlm, asked, plain = si.load("demo"), si.load_questions("scenes/relation", n=6), type(si.load("demo").processor).__call__

    def scarce(self, *args, **given):
        if len(given["text"]) > 2:
            raise ValueError(f"Unable to convert output 'pixel_values' to tensor: {said}")
        return plain(self, *args, **given)

    expected = si.evaluate(vlm, asked).scores
    monkeypatch.setattr(type(vlm.processor), "__call__", scarce)
    with pytest.warns(MemoryWarning, match="no memory to read 6 prompts at once"):
        assert (si.evaluate(vlm, asked).scores - expected).nan_to_num(0, 0, 0).abs().max() <= 1e-4


LINEAR = torch.nn.functional.linear


class RunsOut:
    """torch's linear function, which runs out of memory in one call."""

    def __init__(self, at=0):
        self.at, self.calls = at, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return LINEAR(*args)


HALVED = {
    "evaluate": lambda vlm, qs: si.evaluate(vlm, qs).scores,
    "one edit": lambda vlm, qs: si.run_edits(vlm, qs, si.Edit(scale=torch.rand(4, 1, 6, 8, generator=torch.Generator().manual_seed(0)))),
    "mean": lambda vlm, qs: si.ablate(vlm, qs, "mean").per_question,
    "shares": lambda vlm, qs: si.logit_attribution(vlm, qs).per_question,
    "scaled": lambda vlm, qs: si.evaluate_scaled(vlm, qs, [si.AttentionScale(0.5)])[0].scores,
    "group": lambda vlm, qs: si.ablate(vlm, qs, "resample", at="object").per_question,
    "gradients at a group": lambda vlm, qs: si.attribute(vlm, qs, at="object").per_question,
    "pairs at a group": lambda vlm, qs: si.attribute(vlm, si.contrasts(qs), at="object").per_question,
    "positions": lambda vlm, qs: si.patch_positions(vlm, si.contrasts(qs[:2])).per_question,
}


@pytest.mark.filterwarnings("ignore::scale_interp.errors.MemoryWarning")
@pytest.mark.parametrize("name", [name if name == "evaluate" else pytest.param(name, marks=pytest.mark.full) for name in HALVED])
def test_a_batch_is_halved_wherever_memory_runs_out(vlm, name, monkeypatch):
    run, qs = HALVED[name], si.load_questions("scenes/relation", n=4)
    whole = run(vlm, qs)
    counted = RunsOut()
    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    assert torch.equal(run(vlm, qs), whole)
    for share in (0.02, 0.6, 0.97):
        failing = RunsOut(max(1, int(share * counted.calls)))
        monkeypatch.setattr(torch.nn.functional, "linear", failing)
        assert torch.allclose(run(vlm, qs), whole, atol=2e-5) and failing.calls > failing.at
        vlm.measured.chunk_bytes.clear()


ALONE = {
    "a whole pass": lambda vlm, qs: si.ablate(vlm, qs, path="reference"),
    "lens": lambda vlm, qs: si.logit_lens(vlm, qs),
    "vision heads": lambda vlm, qs: si.ablate_vision(vlm, qs),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_question_without_memory_says_what_to_do(vlm, name, monkeypatch):
    asked = si.load_questions("scenes/relation", n=1)
    ALONE[name](vlm, asked)
    monkeypatch.setattr(torch.nn.functional, "linear", RunsOut(5))
    with pytest.raises(ModelError, match=r"demo: no memory .*CUDA out of memory.*give "):
        ALONE[name](vlm, asked)


def test_memory_that_runs_out_in_the_check_says_nothing_about_the_path(vlm, monkeypatch):
    model, (question,) = copy.deepcopy(vlm), si.load_questions("scenes/relation", n=1)
    model.measured.reports.clear()
    model.measured.positions.clear()
    for run, at in ((lambda: si.evaluate(model, [question]), 150), (lambda: si.ablate(model, [question], at="object"), 1)):
        monkeypatch.setattr(torch.nn.functional, "linear", RunsOut())
        failing = RunsOut(at)
        monkeypatch.setattr(torch.nn.functional, "linear", failing)
        with pytest.raises((ModelError, torch.OutOfMemoryError), match="memory"):
            run()
        assert failing.calls >= at
    assert si.evaluate(model, [question]).provenance["path"] == si.ablate(model, [question], at="object").provenance["path"] == "packed"
