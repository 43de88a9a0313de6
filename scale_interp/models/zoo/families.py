"""One tiny model and processor per family: the real classes and configurations, with few and narrow layers.

Head dimensions are not width / heads, key-value heads are fewer than query heads, and sliding windows are shorter than
the prompts, so that code which assumes otherwise fails here first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from ..image_only import image_only
from .words import tokenizer

Built = tuple[PreTrainedModel, ProcessorMixin]

PATCH, SIDE = 14, 28


def _template(head: str, image: str, tail: str, generation: str = "") -> str:
    return (
        "{% for m in messages %}" + head + "{% for part in m['content'] %}{% if part['type'] == 'image' %}" + image
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}" + tail
        + "{% endfor %}{% if add_generation_prompt %}" + generation + "{% endif %}"
    )  # fmt: skip


def _im(image: str) -> str:
    return _template("<|im_start|>{{ m['role'] }}\n", image, "<|im_end|>\n", "<|im_start|>assistant\n")


def _id(words: PreTrainedTokenizerFast, token: str) -> Any:
    return words.convert_tokens_to_ids(token)


def _text(words: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "tie_word_embeddings": False,
    } | more


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )


def _siglip(side: int = SIDE) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
        vision_use_head=False,
    )


def llava() -> Built:
    words = tokenizer(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        special=["<image>"],
        chat=_template("{{ m['role'].upper() }}: ", "<image>\n", " ", "ASSISTANT:"),
    )
    config = LlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**_text(words)),
        image_token_index=_id(words, "<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(images, words, PATCH, "default", words.chat_template, num_additional_image_tokens=1)
    return LlavaForConditionalGeneration(config), processor


GRID = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def llava_next() -> Built:
    words = tokenizer(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        special=["<image>"],
        chat=_template("[INST] ", "<image>\n", " [/INST]"),
    )
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**_text(words)),
        image_token_index=_id(words, "<image>"),
        image_grid_pinpoints=GRID,
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=GRID)
    processor = LlavaNextProcessor(images, words, PATCH, "default", words.chat_template, num_additional_image_tokens=1)
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Built:
    words = tokenizer(pad="<|endoftext|>", eos="<|im_end|>", special=["<|im_start|>", "<image>", "<video>"], chat=_im("<image>\n"))
    config = LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=Qwen2Config(**_text(words)),
        image_token_index=_id(words, "<image>"),
        video_token_index=_id(words, "<video>"),
        image_grid_pinpoints=GRID,
        tie_word_embeddings=False,
    )
    images = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=GRID)
    processor = image_only(LlavaOnevisionProcessor)(
        images, words, None, num_image_tokens=(SIDE // PATCH) ** 2, vision_feature_select_strategy="full", chat_template=words.chat_template
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen_words() -> PreTrainedTokenizerFast:
    return tokenizer(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        special=["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        chat="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + _im(VISION),
    )


def _qwen_ids(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_id": _id(words, "<|image_pad|>"),
        "video_token_id": _id(words, "<|video_pad|>"),
        "vision_start_token_id": _id(words, "<|vision_start|>"),
        "vision_end_token_id": _id(words, "<|vision_end|>"),
    }


def _qwen_images(patch: int) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, temporal_patch_size=2, size={"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    )


def _mrope(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def qwen2_vl() -> Built:
    words = _qwen_words()
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH},
        text_config=_text(words, rope_parameters=_mrope([2, 3, 3])),
        tie_word_embeddings=False,
        **_qwen_ids(words),
    )
    return Qwen2VLForConditionalGeneration(config), image_only(Qwen2VLProcessor)(_qwen_images(PATCH), words, None, words.chat_template)


def qwen2_5_vl() -> Built:
    words = _qwen_words()
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": 64,
        "window_size": 2 * PATCH * 2,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=_text(words, rope_parameters=_mrope([2, 3, 3])), tie_word_embeddings=False, **_qwen_ids(words)
    )
    return Qwen2_5_VLForConditionalGeneration(config), image_only(Qwen2_5_VLProcessor)(
        _qwen_images(PATCH), words, None, words.chat_template
    )


def qwen3_vl() -> Built:
    words = _qwen_words()
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config=_text(words, head_dim=24, rope_parameters=_mrope([4, 4, 4]) | {"mrope_interleaved": True}),
        tie_word_embeddings=False,
        **_qwen_ids(words),
    )
    return Qwen3VLForConditionalGeneration(config), image_only(Qwen3VLProcessor)(_qwen_images(16), words, None, words.chat_template)


def internvl() -> Built:
    return internvl_around(2 * SIDE, lambda words: Qwen2Config(**_text(words)))


def internvl_around(side: int, text: Callable[[PreTrainedTokenizerFast], PreTrainedConfig]) -> Built:
    """InternVL for images of this many pixels a side, around the text model that `text` configures for its tokenizer."""
    words = tokenizer(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        special=["<|im_start|>"],
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        chat=_im("<IMG_CONTEXT>\n"),
    )
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [side, side],
        "patch_size": [PATCH, PATCH],
    }
    seen = (side // PATCH) ** 2 // 4
    config = InternVLConfig(
        vision_config=vision,
        text_config=text(words),
        image_token_id=_id(words, "<IMG_CONTEXT>"),
        image_seq_length=seen,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = image_only(InternVLProcessor)(images, words, None, image_seq_length=seen, chat_template=words.chat_template)
    return InternVLForConditionalGeneration(config), processor


def gemma3() -> Built:
    words = tokenizer(
        pad="<pad>",
        eos="<eos>",
        bos="<bos>",
        unk="<unk>",
        special=["<start_of_turn>", "<end_of_turn>"],
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        chat="{{ bos_token }}"
        + _template("<start_of_turn>{{ m['role'] }}\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n"),
    )
    seen = 4
    text = _text(words, head_dim=24, query_pre_attn_scalar=24, sliding_window=12)
    text |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": True}
    config = Gemma3Config(
        vision_config=_siglip(2 * SIDE),
        text_config=Gemma3TextConfig(**text),
        mm_tokens_per_image=seen,
        boi_token_index=_id(words, "<start_of_image>"),
        eoi_token_index=_id(words, "<end_of_image>"),
        image_token_index=_id(words, "<image_soft_token>"),
    )
    images = Gemma3ImageProcessorPil(size={"height": 2 * SIDE, "width": 2 * SIDE})
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(images, words, words.chat_template, image_seq_length=seen)


def _idefics_words() -> PreTrainedTokenizerFast:
    tiles = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    return tokenizer(
        pad="<|im_end|>",
        eos="<end_of_utterance>",
        bos="<|im_start|>",
        special=["<fake_token_around_image>", "<image>", "<global-img>", *tiles],
        chat="<|im_start|>" + _template("{{ m['role'].capitalize() }}:", "<image>", "<end_of_utterance>\n", "Assistant:"),
    )


def _idefics(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 2 * SIDE,
        "patch_size": PATCH,
    }
    return {
        "vision_config": vision,
        "text_config": LlamaConfig(**_text(words)),
        "image_token_id": _id(words, "<image>"),
        "scale_factor": 2,
        "pad_token_id": words.pad_token_id,
    }


IDEFICS_IMAGES: dict[str, Any] = {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": 2 * SIDE}}
IDEFICS_SEEN = (2 * SIDE // PATCH) ** 2 // 4


def idefics3() -> Built:
    words = _idefics_words()
    processor = Idefics3Processor(Idefics3ImageProcessorPil(**IDEFICS_IMAGES), words, IDEFICS_SEEN, words.chat_template)
    return Idefics3ForConditionalGeneration(Idefics3Config(**_idefics(words))), processor


def smolvlm() -> Built:
    words = _idefics_words()
    images = SmolVLMImageProcessorPil(**IDEFICS_IMAGES)
    processor = image_only(SmolVLMProcessor)(images, words, None, IDEFICS_SEEN, words.chat_template)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_idefics(words))), processor


def _paligemma(text: type[GemmaConfig] | type[Gemma2Config], **more: Any) -> Built:
    words = tokenizer(pad="<pad>", eos="<eos>", bos="<bos>", unk="<unk>", named={"image_token": "<image>"})
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2  # type: ignore[attr-defined]
    processor = PaliGemmaProcessor(images, words)
    config = PaliGemmaConfig(
        vision_config=_siglip(),
        text_config=text(**_text(words, tie_word_embeddings=True, **more)),
        image_token_index=_id(words, "<image>"),
        projection_dim=64,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def paligemma() -> Built:
    return _paligemma(GemmaConfig, head_dim=16)


def paligemma2() -> Built:
    return _paligemma(Gemma2Config, head_dim=24, query_pre_attn_scalar=24, sliding_window=64)


BUILDERS: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, gemma3, idefics3, smolvlm, paligemma, paligemma2,
    )
}  # fmt: skip
