"""TransformerLens as an oracle of `capture`, on the families that its bridge boots; and what its patching does to a picture."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import scale_interp as si

pytest.importorskip("transformer_lens")
FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """It would install torchvision by itself, and ask a hub about every model name."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.sources.transformers import helpers

    monkeypatch.setattr(ArchitectureAdapter, "_check_required_libraries", lambda self: None)
    monkeypatch.setattr(helpers, "_ensure_torchvision", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def bridge(vlm):
    from transformer_lens.model_bridge import TransformerBridge

    # it rewrites the module tree
    return TransformerBridge.boot_transformers(vlm.name, hf_model=copy.deepcopy(vlm.hf_model), tokenizer=vlm.tokenizer)


def noise(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", FAMILIES)
def test_z_is_bit_equal_to_hook_z(name):
    vlm = si.load(f"tiny-random/{name}")
    vlm.hf_model.set_attn_implementation("eager")
    theirs = bridge(vlm)
    for question in (
        si.Question("Where is the red circle?", ("left", "right"), 0, picture=noise(60, 40, 0)),
        si.Question("Is there a cat in the picture?", ("yes", "no"), 0, picture=noise(40, 90, 1)),
    ):
        inputs = dict(vlm.encode(question))
        with torch.no_grad():
            _, cache = theirs.run_with_cache(inputs.pop("input_ids"), **inputs)
        z = torch.stack([cache[f"blocks.{layer}.attn.hook_z"][0, -1] for layer in range(vlm.n_layers)])
        assert torch.equal(si.capture(vlm, question).z[0], z.view(vlm.n_layers, vlm.n_heads, vlm.head_dim))


def test_its_patching_loses_the_picture_and_ours_keeps_it(vlm):
    from transformer_lens import patching

    vlm.hf_model.set_attn_implementation("eager")
    try:
        theirs = bridge(vlm)
    finally:
        vlm.hf_model.set_attn_implementation("sdpa")
    clean, corrupt, other = si.load_questions("scenes/relation", n=3)
    corrupt, other = (si.Question(clean.text, clean.choices, (clean.answer + 1) % 4, picture=q.picture) for q in (corrupt, other))
    left, right = (ids[0] for ids in vlm.choice_ids(clean)[:2])
    inputs = dict(vlm.encode(clean))
    tokens = inputs.pop("input_ids")
    with torch.no_grad():
        _, cache = theirs.run_with_cache(tokens, **inputs)

        def metric(logits):
            return logits[0, -1, left] - logits[0, -1, right]

        by_tokens = {
            q.id: patching.get_act_patch_attn_head_out_all_pos(theirs, vlm.encode(q)["input_ids"], cache, metric) for q in (corrupt, other)
        }
    assert torch.equal(by_tokens[corrupt.id], by_tokens[other.id]), "two pictures, one result: it never saw them"
    ours = {q.id: si.patch(vlm, [si.Contrast(clean, q)]).per_question for q in (corrupt, other)}
    assert (ours[corrupt.id] - ours[other.id]).abs().max() > 1e-3
