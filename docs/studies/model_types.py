"""Which model types of transformers this package loads, and by which path their edits run: a table in docs/model_types.md.

    python -m docs.studies.model_types [TYPE ...]     (with types, those rows alone are made again)

Every model type that transformers opens as image-text-to-text is built from its configuration class with a small text model and random
weights, and checked as `si.load` checks a model. Types of the zoo are asked about an image; the others are asked in text, as an image
processor for each of them would say nothing about the text decoder. What cannot be built that way is listed with its reason.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin, SiglipVisionConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES

import scale_interp as si
from scale_interp.interventions.check import SAMPLE, check
from scale_interp.models import zoo
from scale_interp.models.zoo.words import tokenizer
from scale_interp.vlm.families import KNOWN, PLAIN

PAGE = Path(__file__).parents[1] / "model_types.md"
ROWS = Path(__file__).with_suffix(".json")
TEXT = si.Question("Where is the red circle relative to the blue square?", ("left", "right"), 0, id="text")
ZOO = {name.removesuffix("2"): name for name in zoo.NAMES if name not in ("paligemma", "internvl_gpt_oss")}
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "d_model": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "sliding_window": 12,
    "hidden_size_per_layer_input": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    "tie_word_embeddings": False,
    "ssm_state_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "block_auto_adjust_ff_dim": False,
    "attention_chunk_size": 16,
}
"""Small sizes by the name of the setting, given where a text configuration has it."""
NARROW = {
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "num_heads": 2,
    "head_dim": 16, "out_hidden_size": 64, "text_hidden_size": 64, "projection_dim": 64,
}  # fmt: skip
"""Sizes of the other parts."""
LARGE = 100_000_000
"""Weights outside of the text decoder up to which a model is asked about an image."""
DEPTH = ("num_hidden_layers", "num_layers", "depth", "n_layers", "encoder_layers", "decoder_layers", "layers")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN: dict[str, dict[str, Any]] = {
    **{kind: {"rope_parameters": ROPE | {"mrope_section": [2, 2, 4]}} for kind in ("glm46v", "glmga", "glm_ocr", "paddleocr_vl")},
    **{kind: {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}} for kind in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
    "glm4v_moe": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    "mistral_large4": {"num_key_value_heads": 4},
    **{kind: {"num_key_value_heads": 4, "head_dim": 8} for kind in ("kimi_k25", "mistral4")},
    "step3p7": {"sliding_window": 12},
    "inkling2": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16},
    "inkling_mm_model": {"num_key_value_heads": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16},
    "hunyuan_vl": {"rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
    "cohere_compass": {"rope_parameters": {"full_attention": ROPE | {"mrope_section": [2, 3, 3]}}},
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "global_head_dim": 24},
    "dots3_note": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 12,
    },
    "gemma3n": {"num_kv_shared_layers": 2, "laurel_rank": 8},
    "ernie4_5_vl_moe": {"rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}},
    "glm5_next": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "linear_head_dim": 16, "linear_num_heads": 4, "index_kpool": 4},
    "qwen4_exp": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
}
"""What some types need besides, for their text configuration."""
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QUERIES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "encoder_hidden_size": 32}
TOWER = SiglipVisionConfig(
    **VISION, vision_use_head=False, vocab_size=8, vocab_offset=262144, rms_norm_eps=1e-6, model_args={"embed_dim": 32}
)
"""What stands in for the vision towers of timm, which wants torchvision."""
WORDS_OF_IMAGES = 8
PARTS: dict[str, dict[str, Any]] = {
    **{kind: {"vision_config": VISION, "qformer_config": QUERIES, "num_query_tokens": 4} for kind in ("blip-2", "instructblip")},
    "chameleon": {
        "vq_config": {
            "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 16, "latent_channels": 16,
            "num_embeddings": WORDS_OF_IMAGES, "resolution": 32,
        },
    },
    "emu3": {
        "vq_config": {
            "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "hidden_size": 32, "codebook_size": WORDS_OF_IMAGES,
            "attn_resolutions": [],
        },
    },
    "dots3_note": {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "adapter_in_dim": 32,
            "adapter_out_dim": 64, "mlp_layer_types": ["dense", "dense"],
        },
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "adapter_input_size": 32, "adapter_out_dim": 64, "downsample_hidden_size": 8,
        },
    },
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": {
                "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
                "downsample_channels": [16, 32], "global_attn_indexes": [1], "window_size": 2,
            },
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            },
        },
    },
    "fast_vlm": {"vision_config": TOWER},
    "gemma3n": {"vision_config": TOWER, "vision_soft_tokens_per_image": 4},
    "perception_lm": {"vision_config": TOWER},
    "granite4_vision": {
        "vision_config": VISION | {"hidden_size": 64, "image_size": 56, "model_type": "siglip_vision_model"},
        "qformer_config": QUERIES | {"hidden_size": 64, "num_hidden_layers": 1, "encoder_hidden_size": 64},
        "image_grid_pinpoints": [[56, 112], [112, 56]],
        "vision_feature_select_strategy": "full",
        "downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0], [-2, 1]], "spatial_target_layers": [0, 1, 2, 3],
    },
    "idefics": {
        "vision_config": {
            "embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        "perceiver_config": {"use_resampler": False},
        "additional_vocab_size": 0, "cross_layer_interval": 2,
    },
    "mllama": {
        "vision_config": {
            "hidden_size": 32,
            "attention_heads": 2,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "intermediate_size": 48,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
        },
    },
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "shieldgemma2": {"mm_tokens_per_image": 49},
    "molmo2": {
        "vision_config": VISION | {"image_size": [56, 56], "num_key_value_heads": 2, "head_dim": 16},
        "adapter_config": {
            "vision_feature_layer": [-1, -2], "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
            "intermediate_size": 48, "text_hidden_size": 64,
        },
    },
    "muse_spark": {
        "audio_config": {"hidden_sizes": [16] * 4, "depths": [1] * 4, "out_hidden_size": 64},
        "out_hidden_size": 128, "projector_hidden_size": 64,
    },
}  # fmt: skip
"""Other parts of some types."""
IMAGES = {
    "chameleon": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "emu3": {"min_pixels": 32 * 32, "max_pixels": 64 * 64},
    "deepseek_ocr2": {"size": {"height": 64, "width": 64}, "tile_size": 64},
}
"""What the image processors of some types are given."""
READERS = {kind: "Qwen2VLImageProcessorPil" for kind in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")}
READERS |= {kind: "Glm4vImageProcessorPil" for kind in ("glm4v_moe", "glm_ocr")}
"""The image processors of types that transformers' table of them does not name."""
NOT_BUILT = {
    "pi0": "a policy of robot actions around PaliGemma, of billions of weights by default",
    "instructblipvideo": "it takes frames of a video",
    "evolla": "reads proteins, not images",
}
"""Types that are not tried, and why."""
OMNI = {"vision_start_token_id": 6, "vision_end_token_id": 7, "audio_start_token_id": 8, "audio_end_token_id": 9}
PARTS |= {kind: OMNI for kind in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")}


@dataclass(frozen=True)
class Row:
    """One model type: its class, what came of it ("packed", "reference", "refused", "not built"), and why."""

    kind: str
    name: str
    outcome: str
    heads: str
    asked: str
    agreement: str
    why: str


class Reader(ProcessorMixin):
    """A tokenizer, and for images the type's own image processor or plain pixels: as many placeholders as an image has features."""

    image_token = "<image>"

    def __init__(self, tokenizer: Any, chat_template: str | None = None):
        super().__init__(tokenizer, chat_template=chat_template)
        self.model: Any = None
        self.images: Callable[[list[Any]], Mapping[str, Any]] | None = None
        """What is made of images; None where questions are in text alone."""
        self.first = False
        """Whether an image's tokens come before the prompt, which has no placeholder."""

    def __call__(self, text: Any = None, images: Any = None, **options: Any) -> BatchFeature:
        if self.first:
            text = [self.image_token * bool(images) + words for words in text]
        shown = [image for some in images or () for image in (some if isinstance(some, list | tuple) else [some])]
        if shown:
            counts = iter([n_features(self.model, self.images([image])) for image in shown])
            text = [re.sub(self.image_token, lambda _: self.image_token * next(counts), words) for words in text]
        out = dict(self.tokenizer(text, **options)) | (dict(self.images(shown)) if shown else {})
        mark, takes = out["input_ids"] == self.tokenizer.convert_tokens_to_ids(self.image_token), arguments(self.model)
        if "mm_token_type_ids" in takes:
            out["mm_token_type_ids"] = mark.long()
        if "image_embeds_position_mask" in takes and shown:
            out["image_embeds_position_mask"] = mark.long()
        sees = (mark.cumsum(1) > 0).long()
        if "image_attention_mask" in takes and shown:
            out["image_attention_mask"] = sees[..., None]
        if "cross_attention_mask" in takes and "aspect_ratio_mask" in out:
            out["cross_attention_mask"] = sees[:, :, None, None] * out["aspect_ratio_mask"][:, None]
        if "qformer_input_ids" in takes:
            out |= {"qformer_input_ids": out["input_ids"][:, -4:], "qformer_attention_mask": out["attention_mask"][:, -4:]}
        return BatchFeature(out)


def arguments(model: Any) -> set[str]:
    """The names of what the model's forward pass takes."""
    return set(inspect.signature(model.forward).parameters)


def n_features(model: Any, given: Mapping[str, Any]) -> int:
    """How many tokens stand for one image, by the features that the model makes of it."""
    for name in ("num_query_tokens", "latent_query_num"):
        if isinstance(n := getattr(model.config, name, None), int):
            return n
    if not hasattr(model.base_model, "get_image_features"):
        return 1  # layers of cross-attention see it
    takes = inspect.signature(model.base_model.get_image_features).parameters
    with torch.no_grad():
        found = model.base_model.get_image_features(**{key: part for key, part in given.items() if key in takes}, return_dict=True)
    found = getattr(found, "pooler_output", found)
    parts = list(found) if isinstance(found, list | tuple) else [found]
    return sum(part.numel() for part in parts) // model.config.get_text_config().hidden_size


def plain_pixels(model: Any, tiles: bool = False) -> Callable[[list[Any]], Mapping[str, Any]]:
    """Images as [n, 3, side, side]; with tiles, as one tile each, [n, 1, 3, side, side]."""
    side = model.config.vision_config.image_size
    side = side[0] if isinstance(side, list | tuple) else side

    def read(images: list[Any]) -> Mapping[str, Any]:
        seen = [np.asarray(image.convert("RGB").resize((side, side)), dtype=np.float32) / 127.5 - 1 for image in images]
        pixels = torch.tensor(np.stack(seen)).permute(0, 3, 1, 2)
        return {"pixel_values": pixels[:, None] if tiles else pixels}

    return read


def own_images(model: Any) -> Callable[[list[Any]], Mapping[str, Any]]:
    """Images by the type's own image processor, for patches of the size that this model has."""
    named = READERS.get(model.config.model_type)
    kind = getattr(transformers, named) if named else IMAGE_PROCESSOR_MAPPING[type(model.config)]["pil"]
    vision, sizes = getattr(model.config, "vision_config", None), {}
    for key, names in {
        "patch_size": ("patch_size", "spatial_patch_size"),
        "merge_size": ("spatial_merge_size", "merge_size"),
        "temporal_patch_size": ("temporal_patch_size",),
    }.items():
        if hasattr(kind, key):
            found = [value for name in names if isinstance(value := getattr(vision, name, None), int)]
            sizes |= dict.fromkeys([key] if found else [], found[0] if found else None)
    side = getattr(vision, "image_size", None)
    if isinstance(side, int) and (size := getattr(kind, "size", None)) and set(size) <= {"height", "width", "shortest_edge"}:
        sizes["size"] = dict.fromkeys(size, side)
        if getattr(kind, "crop_size", None):
            sizes["crop_size"] = {"height": side, "width": side}
    if pinpoints := getattr(model.config, "image_grid_pinpoints", None):
        sizes["image_grid_pinpoints"] = pinpoints
    sizes |= IMAGES.get(model.config.model_type, {})
    reader, takes = kind(**sizes), arguments(model)

    def read(images: list[Any]) -> Mapping[str, Any]:
        shown: list[Any] = [image.convert("RGB") for image in images]
        given = reader([[image] for image in shown] if "cross_attention_mask" in takes else shown, return_tensors="pt")
        return {key: part for key, part in given.items() if key in takes - {"attention_mask"}}

    return read


@torch.no_grad()
def show_images(model: Any, reader: Reader) -> bool:
    """Whether the model takes images, as plain pixels or by its own image processor; the reader is told how."""
    towers = sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in model.get_decoder().parameters())
    if towers > LARGE:
        return False  # its default vision tower takes minutes, and the text decoder does not depend on it
    for way in (plain_pixels, partial(plain_pixels, tiles=True), own_images):
        try:
            reader.images = way(model)
            model(**reader(text=[reader.image_token * (not reader.first) + " where"], images=[SAMPLE.images], return_tensors="pt"))
        except Exception:  # it wants other things of its images
            reader.images = None
        else:
            return True
    return False


def processor() -> Reader:
    words = tokenizer(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        special=["<image>"],
        chat="{% for m in messages %}{% for part in m['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}"
        "{% endfor %}{% endfor %} answer:",
    )
    return Reader(words, words.chat_template)


def tiny(kind: str, words: Any) -> PreTrainedModel:
    """A tiny model of this type; where its other parts cannot be narrow, they are as wide as by default."""
    try:
        return _tiny(kind, words, NARROW)
    except Exception:
        return _tiny(kind, words, {})


def _tiny(kind: str, words: Any, narrow: dict[str, int]) -> PreTrainedModel:
    default = CONFIG_MAPPING[kind]()
    text = default.get_text_config()
    inner = next((key for key, value in vars(default).items() if value is text), None)
    small = _small(text, words, OWN.get(kind, {}))
    image = words.convert_tokens_to_ids("<image>")
    ids: dict[str, Any] = {key: image for key in vars(default) if key in ("image_token_id", "image_token_index", "image_patch_id")}
    if "vocabulary_map" in vars(default):
        ids["vocabulary_map"] = words_of_images(kind, image)
    if inner is None:
        config = type(default)(**small | ids | PARTS.get(kind, {}))
    else:
        parts = {
            key: _shallow(value, narrow) for key, value in vars(default).items() if isinstance(value, PreTrainedConfig) and key != inner
        }
        others = parts | ids | PARTS.get(kind, {})
        built = {key: value for key, value in others.items() if isinstance(value, PreTrainedConfig)}
        config = type(default)(**{inner: small | {"model_type": text.model_type}} | {k: v for k, v in others.items() if k not in built})
        vars(config).update(built)
    return getattr(transformers, TYPES[kind])(config)


def words_of_images(kind: str, image: int) -> dict[str, int]:
    """Names of the words that images are made of, as Chameleon and Emu3 name them, and which rare tokens they are here."""
    numbers = range(WORDS_OF_IMAGES)
    found = {f"IMGIMG{chr(ord('A') + n)}Z" if kind == "chameleon" else f"<|visual token {n:06d}|>": 30 + n for n in numbers}
    return found | {"<image>": image, "<|extra_200|>": 29}


def _small(text: PreTrainedConfig, words: Any, own: dict[str, Any]) -> dict[str, Any]:
    has = set(vars(text)) | set(getattr(type(text), "attribute_map", {}))
    out = {key: value for key, value in SMALL.items() if key in has and (_default(text, key) is not None or key == "head_dim")}
    for key, value in out.items():
        if isinstance(before := _default(text, key), list):
            out[key] = [value] * (4 if len(before) == _default(text, "num_hidden_layers") else len(before))
    out |= {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id}
    out |= {"eos_token_id": words.eos_token_id}
    if "vocab_size_per_layer_input" in has:
        out["vocab_size_per_layer_input"] = len(words)
    kinds = getattr(text, "layer_types", None)
    n = 4
    if kinds:
        some = list(dict.fromkeys(kinds))
        out["layer_types"] = [*some, *some] if len(some) > 1 else some * n
        n = len(out["layer_types"])
    for key in DEPTH:
        if key in has:
            out[key] = n
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        out["rope_parameters"] = rope | {"mrope_section": [2, 3, 3]}
    return out | own


def _default(config: PreTrainedConfig, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except (AttributeError, RuntimeError):  # it differs by layer
        return None


def _shallow(part: PreTrainedConfig | dict[str, Any], narrow: dict[str, int]) -> dict[str, Any]:
    """Another part of the model, with few layers and these sizes."""
    found = part if isinstance(part, dict) else part.to_dict()
    found |= {key: value for key, value in narrow.items() if isinstance(found.get(key), int)}
    for key in DEPTH:
        if isinstance(found.get(key), int) and found[key] > 2:
            found[key] = 2
    for key in ("layer_types", "layers_block_type"):
        if isinstance(found.get(key), list):
            found[key] = found[key][:2]
    for value in found.values():
        if isinstance(value, dict):
            _shallow(value, narrow)
    return found


def _encoder_decoder(kind: str) -> bool:
    try:
        return bool(getattr(CONFIG_MAPPING[kind](), "is_encoder_decoder", False))
    except ValueError:  # made of two configurations (vision-encoder-decoder)
        return "encoder-decoder" in kind


def row(kind: str) -> Row:
    name, asked = TYPES[kind], "image" if kind in ZOO else "text"

    def made(outcome: str, why: str, heads: str = "", agreement: str = "") -> Row:
        return Row(kind, name, outcome, heads, asked, agreement, " ".join(why.split()))

    if kind in NOT_BUILT:
        return made("not built", NOT_BUILT[kind])
    if _encoder_decoder(kind):
        return made("refused", "an encoder-decoder model; this toolkit edits decoder-only models")
    if kind in ZOO:
        vlm = si.load(zoo.PREFIX + ZOO[kind], check=False)
        report = check(vlm)
    else:
        reader = processor()
        try:
            torch.manual_seed(0)
            model = tiny(kind, reader.tokenizer)
            zoo.draw(model.eval())
            reader.model, reader.first = model, KNOWN.get(kind, PLAIN).images_first
            if reader.first:
                reader.chat_template = None
            asked = "image" if show_images(model, reader) else "text"
        except Exception as error:
            return made("not built", f"{type(error).__name__}: {error}"[:160])
        try:
            vlm = si.load(model, reader, check=False)
            report = check(vlm, SAMPLE if asked == "image" else TEXT)
        except si.errors.ScaleInterpError as error:
            if asked == "text" and "pixel" in str(error):
                return made("not built", "it runs on images alone, and they want more than pixels")
            return made("refused", str(error))
    others = ", ".join(dict.fromkeys(vlm.parts.others.values()))
    heads = f"{vlm.n_layers} of {len(vlm.all_layers)} layers x {vlm.n_heads}" + (f" (others: {others})" if others else "")
    if report.nnsight > report.allowed:
        return made("refused", "whole passes with an edited head differ from a plain nnsight trace", heads)
    vlm.report = report
    away = max(report.packed_reference, report.clean) if report.path == "packed" else report.nnsight
    away = max(away, away_from_hooks(vlm, SAMPLE if asked == "image" else TEXT))
    if away > report.allowed and report.path != "packed":
        return made("refused", "edits in whole passes differ from plain torch hooks", heads, f"{away:.0e}")
    return made(report.path, "" if report.path == "packed" else report.why, heads, f"{away:.0e}")


@torch.no_grad()
def away_from_hooks(vlm: si.VLM, question: si.Question) -> float:
    """How far the scores without one head are from those of a whole pass with a plain torch hook."""
    row, scale = vlm.n_layers // 2, torch.ones(1, vlm.n_layers, vlm.n_heads)
    scale[0, row, 0] = 0

    def silence(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].clone()
        z[0, -1, : vlm.head_layers[row].head_dim] = 0
        return (z, *args[1:])

    hook = vlm.head_layers[row].output().register_forward_pre_hook(silence)
    try:
        logits = vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1]
    finally:
        hook.remove()
    right = logits[[ids[0] for ids in vlm.choice_ids(question)]]
    return float((si.run_edits(vlm, question, si.Edit(scale))[0, 0] - right).abs().max())


def table(rows: list[Row]) -> str:
    counts = {outcome: sum(r.outcome == outcome for r in rows) for outcome in ("packed", "reference", "refused", "not built")}
    lines = [
        "# Model types of transformers",
        "",
        f"What comes of every model type that transformers {transformers.__version__} opens as image-text-to-text, in tiny models with",
        "random weights: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) + ".",
        "This page is made by `python -m docs.studies.model_types`.",
        "",
        "- *packed*: edits run packed and equal whole passes. *reference*: edits run in whole passes. *refused*: the model is not loaded.",
        "- *not built*: no tiny model could be made of the configuration alone, which says nothing about a checkpoint.",
        "- *asked*: whether the check asked about an image, or in text because the images of this type want more than pixels.",
        "- *agreement*: the largest difference of logits between packed and whole passes, of whole passes and a plain nnsight trace,",
        "  and of edits and plain torch hooks on whole passes.",
        "- Images go through the type's own image processor where it needs no torchvision, else in as plain pixels. Gemma3n, FastVLM and",
        "  PerceptionLM have a SigLIP tower here in the place of timm's.",
        "",
        "| model type | outcome | heads | asked | agreement | reason |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        why = r.why.replace("|", "/")
        lines.append(f"| `{r.kind}` | {r.outcome} | {r.heads} | {r.asked} | {r.agreement} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = json.loads(ROWS.read_text()) if ROWS.is_file() else {}
    for kind in sys.argv[1:] or TYPES:
        started = time.monotonic()
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found = row(kind)
        rows[kind] = asdict(found)
        print(f"{time.monotonic() - started:5.1f} {kind:22} {found.outcome:10} {found.heads} {found.agreement} {found.why}", flush=True)
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(table([Row(**rows[kind]) for kind in TYPES if kind in rows]))


if __name__ == "__main__":
    main()
