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
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin
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
    **{kind: {"num_key_value_heads": 4} for kind in ("glm5_next", "mistral_large4")},
    **{kind: {"num_key_value_heads": 4, "head_dim": 8} for kind in ("kimi_k25", "mistral4")},
    "step3p7": {"sliding_window": 12},
    "inkling2": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16},
    "inkling_mm_model": {"num_key_value_heads": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16},
    "hunyuan_vl": {"rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
}
"""What some types need besides, for their text configuration."""
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QUERIES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "encoder_hidden_size": 32}
PARTS: dict[str, dict[str, Any]] = {
    kind: {"vision_config": VISION, "qformer_config": QUERIES, "num_query_tokens": 4} for kind in ("blip-2", "instructblip")
}
"""Other parts of some types, which cannot be asked without an image."""
NOT_BUILT = {
    "pi0": "a policy of robot actions around PaliGemma, of billions of weights by default",
    "instructblipvideo": "it takes frames of a video",
    "evolla": "reads proteins, not images",
    "emu3": "its images are words of a vocabulary that a checkpoint brings",
    "chameleon": "its images are words of a vocabulary that a checkpoint brings",
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


class TextProcessor(ProcessorMixin):
    """A tokenizer as a processor: these models are asked in text."""

    image_token = "<image>"

    def __init__(self, tokenizer: Any, chat_template: str | None = None):
        super().__init__(tokenizer, chat_template=chat_template)
        self.types, self.questions, self.first, self.side, self.n_tokens = False, False, False, 0, 0
        """Whether the model takes types of tokens, the question for its vision tower, and images before the prompt; the size of its images,
        and the tokens of each."""

    def __call__(self, text: Any = None, images: Any = None, **options: Any) -> BatchFeature:
        if self.first:
            text = [self.image_token * bool(images) + words for words in text]
        text = [words.replace(self.image_token, self.image_token * max(1, self.n_tokens)) for words in text]
        out = dict(self.tokenizer(text, **options))
        if self.types:
            out["mm_token_type_ids"] = (out["input_ids"] == self.tokenizer.convert_tokens_to_ids(self.image_token)).long()
        if self.questions:
            out |= {"qformer_input_ids": out["input_ids"][:, -4:], "qformer_attention_mask": out["attention_mask"][:, -4:]}
        if images:
            size = (self.side, self.side)
            seen = [np.asarray(image.resize(size), dtype=np.float32) / 127.5 - 1 for some in images for image in some]
            out["pixel_values"] = torch.tensor(np.stack(seen)).permute(0, 3, 1, 2)
        return BatchFeature(out)


@torch.no_grad()
def show_images(model: Any, reader: TextProcessor) -> bool:
    """Whether the model takes images as [n, 3, side, side], each for a number of tokens; the processor is told both."""
    core, vision = model.base_model, getattr(model.config, "vision_config", None)
    side = getattr(vision, "image_size", None)
    side = side[0] if isinstance(side, list | tuple) else side
    try:
        towers = sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in model.get_decoder().parameters())
        if side > 512 or towers > LARGE:
            return False  # its default vision tower takes minutes, and the text decoder does not depend on it
        if hasattr(model.config, "num_query_tokens"):
            reader.side, reader.n_tokens = side, model.config.num_query_tokens
            return True
        features = core.get_image_features(pixel_values=torch.zeros(1, 3, side, side), return_dict=True).pooler_output
        features = features[0] if isinstance(features, list | tuple) else features
        width = model.config.get_text_config().hidden_size
        reader.side, reader.n_tokens = side, features.reshape(-1, width).shape[0]
        ids = [reader.tokenizer.convert_tokens_to_ids("<image>")] * reader.n_tokens + [5]
        types = {"mm_token_type_ids": torch.tensor([[1] * reader.n_tokens + [0]])} if reader.types else {}
        given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        model(**given, pixel_values=torch.zeros(1, 3, side, side), **types)
    except Exception:  # it wants more than pixels
        reader.n_tokens = 0
        return False
    return True


def processor() -> TextProcessor:
    words = tokenizer(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        special=["<image>"],
        chat="{% for m in messages %}{% for part in m['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}"
        "{% endfor %}{% endfor %} answer:",
    )
    return TextProcessor(words, words.chat_template)


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
    ids = {key: image for key in vars(default) if key in ("image_token_id", "image_token_index")}
    if inner is None:
        config = type(default)(**small | ids)
    else:
        parts = {
            key: _shallow(value, narrow) for key, value in vars(default).items() if isinstance(value, PreTrainedConfig) and key != inner
        }
        config = type(default)(**{inner: small | {"model_type": text.model_type}} | parts | ids | PARTS.get(kind, {}))
    return getattr(transformers, TYPES[kind])(config)


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
            reader.first = KNOWN.get(kind, PLAIN).images_first
            if reader.first:
                reader.chat_template = None
            reader.questions = "qformer_input_ids" in inspect.signature(model.forward).parameters
            reader.types = "mm_token_type_ids" in inspect.signature(model.forward).parameters
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
    away = max(report.packed_reference, report.clean) if report.path == "packed" else report.nnsight
    return made(report.path, "" if report.path == "packed" else report.why, heads, f"{away:.0e}")


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
        "- *agreement*: the largest difference of logits between packed and whole passes, or of whole passes and a plain nnsight trace.",
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
