"""LLaVA around text models whose modules, caches, masks or positions differ: packed, reference and plain hooks agree."""

import pytest
import torch
import transformers
from transformers import BlipImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

import scale_interp as si
from scale_interp.models import zoo
from scale_interp.models.zoo.words import tokenizer
from tests.support.zoo_models import three_questions

EXACT = 1e-5
SAME = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "pad_token_id", "eos_token_id")
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
TEXTS = {
    "PhiConfig": {"partial_rotary_factor": 0.5},
    "MistralConfig": {"sliding_window": 12},
    "DeepseekV3Config": MLA,
    "Ministral3Config": {
        "head_dim": 16,
        "rope_parameters": YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "MiMoV2FlashConfig": {
        "head_dim": 24,
        "v_head_dim": 16,
        "sliding_window": 12,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "GraniteConfig": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
}


def around(name):
    """A tiny LLaVA around this text model."""
    tiny = si.load("tiny-random/llava")
    old = tiny.hf_model.config
    same = {key: getattr(old.text_config, key) for key in SAME}
    text = getattr(transformers, name)(**same | {"num_hidden_layers": 3, "max_position_embeddings": 256} | TEXTS[name])
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=old.vision_config, text_config=text, image_token_index=tiny.image_token_id, image_seq_length=4)
    model = LlavaForConditionalGeneration(config).eval()
    zoo.draw(model)
    return si.load(model, tiny.processor, check=True)


def hooked(vlm, question, row, scale, names):
    """Scores of the choices with the heads of one layer scaled, by plain torch hooks on the modules of these names."""
    ids = [tokens[0] for tokens in vlm.choice_ids(question)]
    layers, attention, output = names
    module = layers[row].get_submodule(f"{attention}.{output}")

    def edit(_, args):
        z = args[0].clone()
        z[0, -1] = (z[0, -1].view(len(scale), -1) * scale[:, None]).flatten()
        return (z, *args[1:])

    hook = module.register_forward_pre_hook(edit)
    try:
        with torch.no_grad():
            return vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1][ids]
    finally:
        hook.remove()


def agrees(vlm, names):
    questions = three_questions()
    assert vlm.report.path == "packed" and vlm.report.agrees, vlm.report
    scale = torch.ones(1, vlm.n_layers, vlm.n_heads)
    scale[0, 1] = torch.linspace(0, 2, vlm.n_heads)
    for path in ("packed", "reference"):
        found = si.run_edits(vlm, questions, si.Edit(scale), path=path)
        for question, scores in zip(questions, found, strict=True):
            expected = hooked(vlm, question, 1, scale[0, 1], names)
            assert (scores[0, : len(expected)] - expected).abs().max() <= EXACT, path


@pytest.mark.parametrize("name", [n if n == "PhiConfig" else pytest.param(n, marks=pytest.mark.full) for n in TEXTS])
def test_text_models(name):
    vlm = around(name)
    agrees(vlm, (vlm.hf_model.model.language_model.layers, "self_attn", "dense" if name == "PhiConfig" else "o_proj"))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["Blip2", "InstructBlip"])
def test_images_before_the_prompt(kind):
    def words():
        return tokenizer(pad="<pad>", bos="</s>", eos="</s>", unk="<unk>", special=["<image>"])

    own, sizes = words(), {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    text |= {"model_type": "opt", "vocab_size": len(own), "max_position_embeddings": 256, "pad_token_id": own.pad_token_id}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text | {"eos_token_id": own.eos_token_id, "bos_token_id": own.bos_token_id},
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        qformer_config=sizes | {"vocab_size": len(own), "encoder_hidden_size": 32},
        num_query_tokens=4,
        image_token_index=own.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    zoo.draw(model)
    readers = (own, words()) if kind == "InstructBlip" else (own,)
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = getattr(transformers, f"{kind}Processor")(images, *readers, num_query_tokens=4)
    vlm = si.load(model, processor, check=True)
    assert vlm.head_layers[0].output_name == "out_proj" and vlm.head_layers[0].mlp_name == "fc2"
    agrees(vlm, (vlm.decoder.layers, "self_attn", "out_proj"))


def test_pixtral_has_a_grid_and_what_is_not_known_is_refused():
    """A LLaVA by its configuration, with Pixtral's processor: the processor decides."""
    vlm = si.load("tiny-random/mistral3")
    vlm.family = "llava"
    question = three_questions()[0]
    grid = si.patch_grid(vlm, question)
    assert int(grid.shown.sum()) == int((vlm.encode(question)["input_ids"] == vlm.image_token_id).sum())
    vlm = si.load("tiny-random/lfm2_vl")
    vlm.family = "lfm3_vl"
    with pytest.raises(si.errors.ModelError, match=r"'lfm3_vl' with a Lfm2VlProcessor is not known.*read_attention"):
        si.patch_grid(vlm, question)
