"""Packed edits on the device against plain hooks on whole passes, on every family and in every dtype; gradients and repeated runs too."""

import pytest
import torch

import scale_interp as si
from scale_interp.interventions.check import TOLERANCE
from scale_interp.interventions.engine import run_with_clean
from scale_interp.interventions.packed import run_packed
from scale_interp.interventions.prefix import read_prefix
from scale_interp.models import zoo
from tests.support.oracle import hooked_logits, hooked_scores, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL

CAUSAL = [name for name in zoo.NAMES if name not in BIDIRECTIONAL]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 2e-5, torch.float16: TOLERANCE[torch.float16], torch.bfloat16: TOLERANCE[torch.bfloat16]}
"""Of a score, relative to the largest or 1. Float32 sums in another order here; the halves round every layer's output to 11 and 8 bits."""


def everything(vlm):
    """Two variants that change every head and MLP, from the first and from the middle layer on."""
    draw = torch.Generator().manual_seed(0)
    L, H, D = vlm.n_layers, vlm.n_heads, vlm.head_dim
    scale, shift, mlp = 0.5 + torch.rand(2, L, H, generator=draw), torch.randn(2, L, H, D, generator=draw), torch.rand(2, L, generator=draw)
    scale[1, : L // 2] = mlp[1, : L // 2] = 1
    shift[1, : L // 2] = 0
    return si.Edit(scale, shift, mlp)


def allowed(vlm, scores):
    return ROUNDING[vlm.dtype] * max(1.0, float(scores[scores.isfinite()].abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CAUSAL)
def test_packed_equals_hooks_on_whole_passes(models, questions, name, dtype):
    vlm, worst = models(name, dtype), 0.0
    edit = everything(vlm)
    edited, clean = run_with_clean(vlm, questions, edit, "packed")
    assert edited.device.type == vlm.device.type and (edited - clean)[edited.isfinite()].abs().max() > allowed(vlm, edited)
    for q, question in enumerate(questions):
        for variant in range(2):
            expected = hooked_scores(vlm, question, edit, variant)
            worst = max(worst, float((edited[q, variant, : len(expected)] - expected).abs().max()))
    assert worst <= allowed(vlm, edited)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_whole_passes_equal_hooks_where_prompts_attend_in_both_directions(models, questions, name, dtype):
    vlm = models(name, dtype)
    edit = everything(vlm)
    edited = si.run_edits(vlm, questions[:2], edit, path="reference")
    for q, question in enumerate(questions[:2]):
        expected = hooked_scores(vlm, question, edit, 0)
        assert float((edited[q, 0, : len(expected)] - expected).abs().max()) <= allowed(vlm, edited)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CAUSAL)
def test_sweeps_of_padded_batches_equal_whole_passes(models, questions, name, dtype):
    vlm = models(name, dtype)
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    packed, whole = (si.run_edits(vlm, questions, sweep, path=path) for path in ("packed", "reference"))
    assert float((packed - whole).nan_to_num(0, 0, 0).abs().max()) <= allowed(vlm, whole)


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_of_all_heads_equal_the_whole_pass(models, questions, name):
    vlm, question = models(name), questions[0]
    ids = [choice[0] for choice in vlm.choice_ids(question)]
    packed, whole = (torch.ones(vlm.n_layers, vlm.n_heads, requires_grad=True) for _ in range(2))
    score = run_packed(vlm, read_prefix(vlm, [question]), si.Edit(scale=packed[None]))[1][0, 0]
    (score[0] - score[1]).backward()
    logits = hooked_logits(vlm.hf_model, plain_inputs(vlm, question), scale=whole)[-1]
    (logits[ids[0]] - logits[ids[1]]).backward()
    assert whole.grad.abs().min() > 0 and float((packed.grad - whole.grad).abs().max()) <= 5e-5


@torch.no_grad()
def test_a_sweep_waits_for_nothing(there, waits):
    """Behind prompts that were read, until its scores are wanted; also where every question has values of its own."""
    asked = si.load_questions("scenes/relation", n=4)
    prefix, source = read_prefix(there, asked), torch.randn(4, there.n_layers, there.n_heads, there.head_dim, device=there.device)
    for sweep in (si.HeadSweep.all(there.n_layers, there.n_heads, 0.0, values) for values in (None, source)):
        run_packed(there, prefix, sweep)
        with waits() as found:
            run_packed(there, prefix, sweep)
        assert found == []


def test_a_run_again_gives_the_same_bits(there):
    asked = si.load_questions("scenes/relation", n=12)
    runs = [(si.ablate(there, asked), si.attribute(there, asked), si.fit_scale(there, asked, epochs=2, lr=0.02)) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        tensors = ("scalars", "mlp_scalars") if isinstance(first, si.ScAle) else ("per_question",)
        assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


def test_the_device_finds_what_the_cpu_finds(there):
    """In float32 without TF32; a fit's steps add up what rounding begins, so scalars may be further apart."""
    asked, cpu = si.load_questions("scenes/relation", n=16), si.load("demo", device="cpu")
    for method in (si.ablate, si.attribute):
        here, plain = method(there, asked), method(cpu, asked)
        assert float((here.scores - plain.scores).abs().max()) <= 1e-3 * max(1.0, float(plain.scores.abs().max()))
        assert here.top(3) == plain.top(3)
    here, plain = (si.fit_scale(vlm, asked, epochs=2, lr=0.02) for vlm in (there, cpu))
    assert float((here.scalars - plain.scalars).abs().max()) <= 1e-3 < float((plain.scalars - 1).abs().max())
