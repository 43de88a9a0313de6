"""Layers of torchao and bitsandbytes as they are: capture, ablation, patching, fits, answers, shares of the logits, fingerprints."""

import copy
import importlib
import warnings

import pytest
import torch
from torch import nn

import scale_interp as si
from tests.support.oracle import hooked_scores

pytestmark = pytest.mark.full
QUESTIONS = si.load_questions("scenes/relation", n=2)
TRAIN = si.load_questions("scenes/relation", "train", n=16)


def library(name):
    """The library; the tests of its layers are skipped where it is not installed."""
    pytest.importorskip(name)
    return importlib.import_module(name if name == "bitsandbytes" else "torchao.quantization")


def of_torchao(config):
    def quantise(decoder):
        library("torchao").quantize_(decoder, config(library("torchao")))

    return quantise


def of_bitsandbytes(make):
    def quantise(decoder):
        bnb = library("bitsandbytes")
        for name, linear in [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]:
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, make(bnb.nn, linear).to("cpu"))

    return quantise


def eight_bits(layers, linear, threshold=0.0):
    made = layers.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold)
    made.weight = layers.Int8Params(linear.weight.data.clone(), has_fp16_weights=False, requires_grad=False)
    return made


def four_bits(layers, linear, fast=False):
    made = layers.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    made.support_avx512bf16_for_cpu = fast and made.support_avx512bf16_for_cpu  # a kernel without gradients, in bfloat16
    made.weight = layers.Params4bit(linear.weight.data.clone(), quant_type="nf4", requires_grad=False)
    return made


KINDS = {
    "torchao int8": of_torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao int4": of_torchao(lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
    "bitsandbytes 8 bits": of_bitsandbytes(eight_bits),
    "bitsandbytes 4 bits": of_bitsandbytes(four_bits),
}


def changed(quantise, change=lambda decoder: None):
    """The demo, whose text decoder was changed and then quantised."""
    vlm = si.load("demo")
    change(vlm.decoder)
    quantise(vlm.decoder)
    return si.load(vlm.hf_model, vlm.processor)


@pytest.fixture(scope="module", params=KINDS)
def quantised(request):
    return changed(KINDS[request.param])


def zeroed(vlm, heads):
    scale = torch.ones(len(heads), vlm.n_layers, vlm.n_heads)
    for n, (layer, head) in enumerate(heads):
        scale[n, layer, head] = 0
    return si.Edit(scale=scale)


def test_edits_and_captures_are_those_of_plain_hooks(quantised):
    vlm, heads = quantised, [(0, 1), (2, 3), (5, 7)]
    edit = zeroed(vlm, heads)
    expected = torch.stack([torch.stack([hooked_scores(vlm, q, edit, n) for n in range(len(heads))]) for q in QUESTIONS])
    for path in ("packed", "reference"):
        assert (si.run_edits(vlm, QUESTIONS, edit, path=path) - expected).abs().max() <= 1e-4 * expected.abs().max()
    seen = []
    hook = vlm.decoder.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].detach()))
    with torch.no_grad():
        vlm.hf_model(**vlm.encode(QUESTIONS[0]), use_cache=False)
    hook.remove()
    assert torch.allclose(si.capture(vlm, QUESTIONS).z[0, 2].flatten(), seen[0], atol=1e-3)


def test_patching_and_gradients(quantised):
    pairs = si.contrasts(QUESTIONS[:1])
    packed, whole = (si.patch(quantised, pairs, path=path).scores for path in ("packed", "reference"))
    assert (packed - whole).abs().max() <= 1e-3 * max(1.0, float(whole.abs().max()))
    linear = si.attribute(quantised, pairs).scores
    assert torch.isfinite(linear).all() and linear.abs().max() > 0


def test_scalars_are_fitted_and_act_on_the_plain_model_too(quantised):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some matrices hidden dimension")  # bitsandbytes, of its slow way on a CPU
        scale = si.fit_scale(quantised, TRAIN, heads=[(2, 3), (4, 1)], epochs=2)
    assert (scale.scalars[[2, 4], [3, 1]] != 1).all()
    found = si.evaluate(quantised, QUESTIONS, edit=scale)
    with scale.attached(quantised):
        attached = si.evaluate(quantised, QUESTIONS, path="reference")
        assert quantised.generate(QUESTIONS[0], max_new_tokens=1)
    assert (found.scores - attached.scores).abs().max() <= 1e-3
    assert (found.scores - si.evaluate(quantised, QUESTIONS).scores).abs().max() > 1e-4


def as_floats(linear):
    """The weights of a quantised layer as numbers."""
    weight = linear.weight
    if hasattr(weight, "dequantize") and "torchao" in type(weight.data).__module__:
        return weight.dequantize()
    if hasattr(weight, "quant_state"):
        return library("bitsandbytes").functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.CB.float() * weight.SCB[:, None] / 127


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_the_logits_are_those_of_the_weights_in_floats(kind):
    vlm, floats = changed(KINDS[kind]), si.load("demo")
    for name, module in floats.decoder.named_modules():
        if type(module) is nn.Linear:
            module.weight.data = as_floats(vlm.decoder.get_submodule(name)).float().clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*computes in few bits")
        found = si.logit_attribution(vlm, QUESTIONS).scores
    expected = si.logit_attribution(floats, QUESTIONS).scores
    rounding = 1e-4 if "torchao" in kind else 0.03
    assert (found - expected).abs().max() <= rounding * expected.abs().max()
    assert (found - si.logit_attribution(si.load("demo"), QUESTIONS).scores).abs().max() > 1e-4  # quantisation shows


def test_activations_in_eight_bits_are_warned_of():
    vlm = changed(KINDS["bitsandbytes 8 bits"])
    with pytest.warns(si.errors.RunWarning, match="Linear8bitLt computes in few bits"):
        si.logit_attribution(vlm, QUESTIONS)


def test_a_kernel_without_gradients_is_refused_where_they_are_needed():
    """bitsandbytes' of 4 bits on a CPU with bfloat16: a fit on it would leave every scalar at 1."""
    vlm = changed(of_bitsandbytes(lambda layers, linear: four_bits(layers, linear, fast=True)))
    if not vlm.decoder.layers[0].mlp.down_proj.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no such kernel")
    edit = zeroed(vlm, [(0, 1), (5, 7)])
    packed, whole = (si.run_edits(vlm, QUESTIONS, edit, path=path) for path in ("packed", "reference"))
    assert (packed - whole).abs().max() <= 0.04 * whole.abs().max()
    pairs = si.contrasts(QUESTIONS)
    for ask in (lambda: si.fit_scale(vlm, TRAIN, heads=[(2, 3)], path="packed"), lambda: si.attribute(vlm, pairs, path="packed")):
        with pytest.raises(si.errors.ModelError, match=r"none passes through .*Linear4bit"):
            ask()


def doubled(decoder):
    decoder.layers[1].self_attn.o_proj.weight.data *= 2  # the same whole numbers, other scales


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_sees_scales(kind):
    vlm, other = changed(KINDS[kind]), changed(KINDS[kind], doubled)
    before = vlm.fingerprint
    assert before == changed(KINDS[kind]).fingerprint == copy.deepcopy(vlm).fingerprint
    assert before != other.fingerprint and before != si.load("demo").fingerprint
    si.evaluate(vlm, QUESTIONS)
    assert vlm.fingerprint == before


def test_the_fingerprint_sees_how_activations_are_rounded():
    weights = changed(KINDS["torchao int8"])
    both = changed(of_torchao(lambda ao: ao.Int8DynamicActivationInt8WeightConfig()))
    assert weights.fingerprint != both.fingerprint
    plain, outliers = (changed(of_bitsandbytes(lambda layers, linear, t=t: eight_bits(layers, linear, t))).fingerprint for t in (0.0, 6.0))
    assert plain != outliers


def test_four_bits_of_widths_that_are_no_whole_blocks():
    """The fast kernel packs blocks of 64, and there are layers of 48 and 96."""
    library("bitsandbytes")
    vlm = si.load("tiny-random/qwen2_5_vl", quantization_config="nf4", device="cpu")
    assert {m.in_features % 64 for m in vlm.decoder.modules() if isinstance(m, nn.Linear)} - {0}
    edit = zeroed(vlm, [(0, 1), (2, 3)])
    packed, whole = (si.run_edits(vlm, QUESTIONS, edit, path=path) for path in ("packed", "reference"))
    assert torch.isfinite(packed).all() and (packed - whole).abs().max() <= 4e-2 * max(1.0, float(whole.abs().max()))
    fresh = si.load("demo", quantization_config="nf4", device="cpu")  # its first pass changes no weight, and gradients go through it
    assert torch.isfinite(si.ablate(fresh, QUESTIONS).scores).all()
    assert (si.fit_scale(fresh, TRAIN, mlp=False, epochs=1).scalars != 1).all()
