"""Fits in bounded memory: any micro-batch gives the same fit, and memory that runs out halves it, also in backward."""

import pytest
import torch

import scale_interp as si
from scale_interp.adapters.scale import fit as fits
from scale_interp.adapters.scale.fit import FitSettings, prompts_to_fit
from scale_interp.errors import MemoryWarning, ModelError
from scale_interp.execution.memory import graph_bytes, micro_batch
from scale_interp.interventions import packed
from scale_interp.interventions.prefix import PrefixStore

SETTINGS = {"epochs": 2, "batch_size": 6, "lr": 0.02}


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", "train", n=30)


@pytest.fixture(scope="module")
def retain():
    return [q for task in ("count", "exists") for q in si.load_questions(f"scenes/{task}", "train", n=2)]


def differs(a, b):
    return max(float((a.scalars - b.scalars).abs().max()), float((a.mlp_scalars - b.mlp_scalars).abs().max()))


@pytest.fixture(scope="module")
def whole(vlm, train, retain):
    return si.fit_scale(vlm, train[:9], retain=retain, l1=0.1, micro_batch=6, **SETTINGS)


@pytest.mark.parametrize("micro", [1, 4, None])
def test_any_micro_batch_gives_the_same_fit(vlm, train, retain, whole, micro):
    found = si.fit_scale(vlm, train[:9], retain=retain, l1=0.1, micro_batch=micro, **SETTINGS)
    assert float((whole.scalars - 1).abs().max()) > 0.01
    assert differs(found, whole) <= 1e-5
    rows = zip(found.history, whole.history, strict=True)
    assert all(abs(a[name] - b[name]) <= 1e-5 for a, b in rows for name in a)


def test_gradients_accumulate_to_the_same_numbers(vlm, train):
    """Of one step, before the optimiser: plain autograd on the whole batch is the oracle."""
    options = FitSettings(batch_size=12)
    slopes = []
    for micro in (12, 5, 1):
        learner = fits.Learner(vlm, train, [si.Fit(), si.Fit("few", ((2, 1), (3, 0)), seed=1)], options, None)
        with torch.no_grad():
            learner.theta += 0.3
        prompts = PrefixStore(vlm, train, micro, within=12)
        learner.optimiser.step = lambda: None
        learner.step(prompts, prompts.steps[1], None, 0)
        slopes.append((learner.theta.grad.clone(), learner.phi.grad.clone()))
        if micro == 12:
            losses, learns, _ = learner._losses(prompts[1])
            loss = ((losses * learns).sum(0) / learns.sum(0)).sum()
            for slope, expected in zip(slopes[0], torch.autograd.grad(loss, [learner.theta, learner.phi]), strict=True):
                assert float((slope - expected).abs().max()) <= 1e-7
    for other in slopes[1:]:
        assert all(float((a - b).abs().max()) <= 1e-6 for a, b in zip(slopes[0], other, strict=True))


def test_steps_are_the_batches_whatever_the_micro_batch(vlm, train):
    prompts = PrefixStore(vlm, train, 5, within=12)
    assert [[prompts.slices[i].stop - prompts.slices[i].start for i in step] for step in prompts.steps] == [[5, 5, 2], [5, 5, 2], [5, 1]]
    assert [q.id for i in range(len(prompts)) for q in prompts[i].questions] == [q.id for q in train]


class Scarce:
    """`autograd.grad`, or a packed run, that has memory for so many questions."""

    def __init__(self, plain, most, size):
        self.plain, self.most, self.size, self.sizes = plain, most, size, []

    def __call__(self, *args, **kwargs):
        n = self.size(*args)
        self.sizes.append(n)
        if n > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.plain(*args, **kwargs)


def test_memory_that_runs_out_halves_the_micro_batch(train, retain, whole, monkeypatch):
    vlm = si.load("demo")
    scarce = Scarce(fits.run_edited, 3, lambda vlm, prefix, edit: len(prefix.questions))
    monkeypatch.setattr(fits, "run_edited", scarce)
    with pytest.warns(MemoryWarning, match=r"no memory for gradients of 6 questions; continuing with 3"):
        found = si.fit_scale(vlm, train[:9], retain=retain, l1=0.1, micro_batch=6, **SETTINGS)
    assert differs(found, whole) <= 1e-5
    assert sum(n > 3 for n in scarce.sizes) == 1  # and never again


def run_out_once(monkeypatch):
    """The next backward pass finds no memory; those after it do."""
    plain, failed = torch.autograd.grad, []

    def grad(loss, *args, **kwargs):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return plain(loss, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)


def test_memory_that_runs_out_in_backward(train, whole, retain, monkeypatch):
    vlm = si.load("demo")
    run_out_once(monkeypatch)
    with pytest.warns(MemoryWarning, match="continuing with 3"):
        found = si.fit_scale(vlm, train[:9], retain=retain, l1=0.1, micro_batch=6, **SETTINGS)
    assert differs(found, whole) <= 1e-5


def test_no_memory_for_one_question(train, monkeypatch):
    vlm = si.load("demo")
    monkeypatch.setattr(fits, "run_edited", Scarce(fits.run_edited, 0, lambda *_: 1))
    with pytest.warns(MemoryWarning), pytest.raises(ModelError, match=r"no memory for the gradients of one question of .* tokens"):
        si.fit_scale(vlm, train[:4], **SETTINGS)


@pytest.mark.parametrize("method", ["pairs", "questions", "integrated"])
def test_gradient_maps_in_parts(train, monkeypatch, method):
    from scale_interp.attribution import gradient, integrated

    vlm, asked = si.load("demo"), train[:6]
    run = {
        "pairs": lambda: si.attribute(vlm, si.contrasts(asked)),
        "questions": lambda: si.attribute(vlm, asked),
        "integrated": lambda: si.integrated_gradients(vlm, asked, steps=4),
    }[method]
    expected = run()
    module = integrated if method == "integrated" else gradient
    monkeypatch.setattr(module, "run_edited", Scarce(packed.run_edited, 2, lambda vlm, prefix, edit: len(prefix.questions)))
    with pytest.warns(MemoryWarning, match="no memory for gradients of 6 questions; continuing with 3"):
        found = run()
    away = (found.per_question - expected.per_question).abs().max()
    assert away <= 1e-5 * max(1.0, float(expected.per_question.abs().max()))


def test_the_micro_batch_is_what_memory_holds(vlm, train):
    whole = micro_batch(vlm, 100, 2, 64)
    try:
        vlm.memory = 2**22
        few = micro_batch(vlm, 100, 2, 64)
        assert 1 <= few < whole <= 64
        assert few * graph_bytes(vlm, 2) <= 2**22
        assert prompts_to_fit(vlm, train, 1, FitSettings(batch_size=24)).within == 24
        vlm.memory = 1
        assert micro_batch(vlm, 100, 2, 64) == 1
    finally:
        vlm.memory = None


@pytest.mark.full
def test_the_suite_is_the_same_in_micro_batches(vlm, train):
    test = si.load_questions("scenes/relation", "test", n=12)
    whole, parts = (si.falsify(vlm, train, test, heads=[(2, 1), (3, 0)], seeds=1, micro_batch=m, **SETTINGS) for m in (6, 4))
    assert [row["gain"] for row in whole.rows] == pytest.approx([row["gain"] for row in parts.rows], abs=1e-6)


BASELINES = {
    "bias": lambda vlm, train: si.fit_bias(vlm, train, epochs=1, batch_size=12, learning_rates=[1e-2]).shift,
    "IA3": lambda vlm, train: torch.cat(
        [w.flatten() for w in si.fit_ia3(vlm, train, epochs=1, batch_size=12, learning_rates=[1e-2]).weights.values()]
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_in_micro_batches(train, name, monkeypatch):
    vlm = si.load("demo")
    whole = BASELINES[name](vlm, train)
    vlm.memory = 2**23  # two whole prompts with gradients, or a few last tokens
    few = BASELINES[name](vlm, train)
    vlm.memory = None
    run_out_once(monkeypatch)
    with pytest.warns(MemoryWarning, match="no memory for gradients of"):
        halved = BASELINES[name](vlm, train)
    moved = float((whole - float(name == "IA3")).abs().max())
    assert moved > 1e-3
    for other in (few, halved):
        assert float((other - whole).abs().max()) <= 1e-2 * moved  # AdamW's first steps are as long for a small slope as for a large one
