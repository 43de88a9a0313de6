"""Heads of the vision encoder: plain hooks on the encoder in whole passes, every family; files of shapes that do not fit."""

import functools

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import contrast_diff, measure
from scale_interp.errors import DataError, ModelError
from scale_interp.models import zoo
from scale_interp.vlm.vision_tower import vision_tower
from tests.support.oracle import plain_inputs
from tests.support.zoo_models import mostly_full, noise, three_questions

PROJECTIONS = {
    "mistral3": "vision_tower.transformer.layers.{}.attention.o_proj",
    "glm4v": "visual.blocks.{}.attn.proj",
    "qwen3_vl_moe": "visual.blocks.{}.attn.proj",
    "qwen3_5": "visual.blocks.{}.attn.proj",
    "internvl_gpt_oss": "vision_tower.encoder.layer.{}.attention.projection_layer",
    "qwen2_vl": "visual.blocks.{}.attn.proj",
    "qwen2_5_vl": "visual.blocks.{}.attn.proj",
    "qwen3_vl": "visual.blocks.{}.attn.proj",
    "internvl": "vision_tower.encoder.layer.{}.attention.projection_layer",
    "idefics3": "vision_model.encoder.layers.{}.self_attn.out_proj",
    "smolvlm": "vision_model.encoder.layers.{}.self_attn.out_proj",
}


@functools.cache
def model(name):
    return si.load(f"tiny-random/{name}")


def projection(vlm, name, layer):
    return vlm.hf_model.model.get_submodule(PROJECTIONS.get(name, "vision_tower.encoder.layers.{}.self_attn.out_proj").format(layer))


def hooked(vlm, name, question, layer, change):
    """Scores of one-token choices, with a layer's heads passed through change(z [..., H * D])."""
    hook = projection(vlm, name, layer).register_forward_pre_hook(lambda module, args: (change(args[0].clone()), *args[1:]))
    try:
        with torch.no_grad():
            logits = vlm.hf_model(**plain_inputs(vlm, question), use_cache=False).logits[0, -1]
    finally:
        hook.remove()
    return logits[[ids[0] for ids in vlm.choice_ids(question)]]


@pytest.mark.parametrize("name", mostly_full([name for name in zoo.NAMES if name not in ("gemma4", "llama4")]))
def test_each_head_is_ablated_as_plain_hooks_do_it(name):
    vlm, questions = model(name), three_questions()[:2]
    tower = vision_tower(vlm)
    assert (tower.n_layers, tower.n_heads) == (2, 2)
    D = tower.head_dim
    mean = si.capture_vision(vlm, questions).mean(0)
    for mode in ("zero", "mean"):
        found = si.ablate_vision(vlm, questions, mode)
        for q, question in enumerate(questions):
            clean = hooked(vlm, name, question, 0, lambda z: z)
            for layer in range(2):
                for head in range(2):

                    def change(z, layer=layer, head=head, mode=mode):
                        z[..., head * D : (head + 1) * D] = 0 if mode == "zero" else mean[layer, head]
                        return z

                    scores = torch.stack([clean, hooked(vlm, name, question, layer, change)])[None]
                    before, after = measure("logit_diff", scores, [question])[0]
                    assert abs(float(found.per_question[q, layer, head] - (before - after))) <= 2e-5, (mode, layer, head)
        unused = name in ("llava", "llava_next")  # they read the encoder's layer before the last
        assert (found.per_question[:, 1] == 0).all() == unused
        assert found.per_question[:, 0].abs().max() > 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "paligemma"])
def test_paths_agree_and_patching_takes_each_patch_from_the_other_image(name):
    vlm = model(name)
    a, b = (si.Question("Where is it?", ("left", "right"), i, picture=noise(40, 40, i), id=str(i)) for i in range(2))
    pairs = [si.Contrast(a, b)]
    found = si.patch_vision(vlm, pairs)
    D, kept = vision_tower(vlm).head_dim, {}

    def keep(z):
        kept[layer] = z
        return z

    def change(z):
        z[..., head * D : (head + 1) * D] = kept[layer][..., head * D : (head + 1) * D]
        return z

    for layer in range(2):
        clean, corrupt = hooked(vlm, name, a, layer, keep), hooked(vlm, name, b, layer, lambda z: z)
        for head in range(2):
            scores = torch.stack([clean, corrupt, hooked(vlm, name, b, layer, change)])[None]
            m_clean, m_corrupt, m_patched = contrast_diff(scores, pairs)[0]
            assert abs(float(found.per_question[0, layer, head] - (m_patched - m_corrupt) / (m_clean - m_corrupt))) <= 1e-3
    whole = si.ablate_vision(vlm, [a, b], path="reference")
    assert (si.ablate_vision(vlm, [a, b]).per_question - whole.per_question).abs().max() <= 1e-5


def test_what_has_no_heads_or_no_image_is_refused():
    with pytest.raises(ModelError, match="no layers of a vision encoder"):
        si.ablate_vision(model("gemma4"), three_questions()[:1])
    vlm = model("qwen2_5_vl")
    with pytest.raises(DataError, match="has no image"):
        si.ablate_vision(vlm, [si.Question("Is it?", ("yes", "no"), 0)])
    a, b = (si.Question("Where is it?", ("left", "right"), i, picture=noise(40 + 60 * i, 40, i), id=str(i)) for i in range(2))
    with pytest.raises(DataError, match="images have the same size"):
        si.patch_vision(vlm, [si.Contrast(a, b)])
