"""Layers that are more than their weight are called, not read: adapters, quantisation, hooks, parametrisations, a forward of one's own."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

import scale_interp as si
from scale_interp.errors import ModelError
from scale_interp.vlm.plain import is_plain

QUESTIONS = si.load_questions("scenes/relation", n=3)


def logit_shares(vlm):
    return si.logit_attribution(vlm, QUESTIONS, path="packed").scores


def assert_as_whole_passes(vlm, unlike):
    """The packed path's clean scores are those of whole passes, and not those of the model without what was put around its layers."""
    packed, reference = (si.run_edits(vlm, QUESTIONS, path=path) for path in ("packed", "reference"))
    assert torch.allclose(packed, reference, atol=1e-4)
    assert (packed - si.run_edits(unlike, QUESTIONS, path="packed")).abs().max() > 0.1


def adapted(name, targets, config=LoraConfig):
    vlm = si.load(name)
    torch.manual_seed(0)
    given = {"r": 2, "init_lora_weights": False} if config is LoraConfig else {"init_ia3_weights": False, "feedforward_modules": []}
    return vlm.processor, get_peft_model(vlm.hf_model, config(target_modules=targets, **given))


def scaled(head, by=3.0):
    head.register_forward_hook(lambda _, __, out: out * by)


def weight_normed(head):
    nn.utils.parametrizations.weight_norm(head)
    head.parametrizations.weight.original0.data *= 2


def own_forward(head):
    head.forward = lambda x: nn.functional.linear(x, head.weight) * 0.25


@pytest.mark.parametrize("change", [scaled, weight_normed, own_forward])
def test_an_output_embedding_that_is_changed_from_outside(change):
    vlm = si.load("tiny-random/llava")
    change(vlm.hf_model.lm_head)
    vlm = si.load(vlm.hf_model, vlm.processor)
    assert not is_plain(vlm.hf_model.lm_head)
    assert_as_whole_passes(vlm, si.load("tiny-random/llava"))


def test_lora_on_the_output_embedding():
    processor, model = adapted("tiny-random/llava", r"lm_head|.*\.lm_head")
    assert_as_whole_passes(si.load(model, processor), si.load("tiny-random/llava"))


@pytest.mark.parametrize(
    ("name", "targets", "config"),
    [
        ("tiny-random/llava", r".*language_model.*o_proj", LoraConfig),
        ("tiny-random/llava", r".*language_model.*o_proj|.*lm_head", LoraConfig),
        ("tiny-random/gemma3", r".*language_model.*o_proj", LoraConfig),  # a norm behind the heads
        ("tiny-random/qwen2_5_vl", r".*language_model.*o_proj", IA3Config),
    ],
)
def test_logit_attribution_reads_an_adapter_as_if_it_were_merged(name, targets, config):
    processor, model = adapted(name, targets, config)
    found = logit_shares(si.load(model, processor))
    merged = si.load(copy.deepcopy(model).merge_and_unload(), processor)
    assert is_plain(merged.decoder.layers[0].self_attn.o_proj)
    expected = logit_shares(merged)
    assert (found - expected).abs().max() < 1e-4
    assert (logit_shares(si.load(name)) - expected).abs().max() > 0.01  # the adapter matters


def test_logit_attribution_calls_a_projection_with_a_hook():
    doubled, hooked = si.load("tiny-random/llava"), si.load("tiny-random/llava")
    doubled.decoder.layers[1].self_attn.o_proj.weight.data *= 2
    hooked.decoder.layers[1].self_attn.o_proj.register_forward_hook(lambda _, __, out: out * 2)
    assert (logit_shares(hooked) - logit_shares(doubled)).abs().max() < 1e-5


class WeightOnly(nn.Module):
    """A linear layer in int8 with a scale per row, as quantisation of weights alone makes it; its weight is not a matrix of floats."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale)


def test_weight_only_quantisation_is_read_as_its_weights_in_floats():
    quantised, rounded = si.load("tiny-random/llava"), si.load("tiny-random/llava")
    for number, layer in enumerate(quantised.decoder.layers):
        layer.self_attn.o_proj = WeightOnly(layer.self_attn.o_proj)
        o_proj = layer.self_attn.o_proj
        rounded.decoder.layers[number].self_attn.o_proj.weight.data = o_proj.weight * o_proj.scale
    with pytest.warns(UserWarning, match="not a plain linear layer"):
        quantised = si.load(quantised.hf_model, quantised.processor)
    assert (logit_shares(quantised) - logit_shares(rounded)).abs().max() < 1e-5


def test_a_layer_that_is_not_linear_is_refused_by_name():
    """Activations in int8, with a scale that depends on the whole batch: a head has no share of its own."""
    vlm = si.load("tiny-random/llava")
    torch.ao.quantization.quantize_dynamic(vlm.hf_model.model.language_model, {nn.Linear}, inplace=True)
    torch.ao.quantization.quantize_dynamic(vlm.hf_model, {"lm_head": torch.ao.quantization.default_dynamic_qconfig}, inplace=True)
    with pytest.warns(UserWarning, match="not a plain linear layer"):
        vlm = si.load(vlm.hf_model, vlm.processor)
    with pytest.raises(ModelError, match=r"not linear|miss the residual stream"):
        logit_shares(vlm)


def test_planting_refuses_a_projection_with_an_adapter():
    processor, model = adapted("tiny-random/llava", r".*language_model.*o_proj")
    with pytest.raises(ModelError, match="o_proj of layer 1 is not a plain linear layer"):
        si.testbeds.plant(si.load(model, processor), [(1, 0)], factor=0.5)
