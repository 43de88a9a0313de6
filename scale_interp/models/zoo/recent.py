"""Tiny models of the families of 2025 and 2026: hybrids, experts, shared keys and values, attention sinks, gates.

Layers of every kind that the family has occur at least once, and the first layer of a hybrid has no heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    GotOcr2ImageProcessorPil,
    GptOssConfig,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4Processor,
    Llama4TextConfig,
    Llama4VisionConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Siglip2VisionConfig,
)

from ..image_only import image_only
from .families import (
    PATCH,
    SIDE,
    Built,
    _id,
    _im,
    _mrope,
    _qwen_ids,
    _qwen_images,
    _qwen_words,
    _siglip,
    _template,
    _text,
    internvl_around,
)
from .images import ImagesByRows, Lfm2VlImages, Llama4Images, own_or
from .words import tokenizer


def mistral3() -> Built:
    """Every layer slides, as in a Mistral configuration that does not name its window."""
    words = tokenizer(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        special=["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"],
        chat=_template("[INST]", "[IMG]", "[/INST]"),
    )
    kind: Any = PixtralVisionConfig
    vision = kind(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=4 * SIDE, patch_size=PATCH, head_dim=16
    )
    config = Mistral3Config(
        vision_config=vision,
        text_config=MistralConfig(**_text(words, head_dim=24, sliding_window=16)),
        image_token_index=_id(words, "[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 4 * SIDE}, patch_size={"height": PATCH, "width": PATCH})
    by_rows = own_or(ImagesByRows, "PixtralProcessor")
    processor = by_rows(images, words, patch_size=PATCH, spatial_merge_size=2, chat_template=words.chat_template)
    return Mistral3ForConditionalGeneration(config), processor


def glm4v() -> Built:
    """Norms after attention and MLP under names of its own."""
    words = tokenizer(
        pad="<|endoftext|>",
        eos="<|user|>",
        special=[
            "<|assistant|>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>",
        ],
        chat=_template("<|{{ m['role'] }}|>\n", "<|begin_of_image|><|image|><|end_of_image|>", "", "<|assistant|>\n"),
    )  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": 64,
        "image_size": 4 * SIDE,
    }  # fmt: skip
    config = Glm4vConfig(
        vision_config=vision,
        text_config=_text(words, rope_parameters=_mrope([2, 2, 4]) | {"partial_rotary_factor": 1.0}),
        image_token_id=_id(words, "<|image|>"),
        video_token_id=_id(words, "<|video|>"),
        image_start_token_id=_id(words, "<|begin_of_image|>"),
        image_end_token_id=_id(words, "<|end_of_image|>"),
        video_start_token_id=_id(words, "<|begin_of_video|>"),
        video_end_token_id=_id(words, "<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    reader: Any = Glm4vImageProcessorPil
    images = reader(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (2 * PATCH) ** 2 * 2, "longest_edge": (6 * PATCH) ** 2 * 2},
    )
    processor = image_only(Glm4vProcessor)(images, words, None, words.chat_template)
    return Glm4vForConditionalGeneration(config), processor


def _qwen3_vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
    }


def _qwen3_processor(words: Any) -> ProcessorMixin:
    return image_only(Qwen3VLProcessor)(_qwen_images(16), words, None, words.chat_template)


def qwen3_vl_moe() -> Built:
    words = _qwen_words()
    text = _text(words, head_dim=24, moe_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, mlp_only_layers=[1])
    config = Qwen3VLMoeConfig(
        vision_config=_qwen3_vision() | {"deepstack_visual_indexes": [0, 1]},
        text_config=text | {"rope_parameters": _mrope([4, 4, 4]) | {"mrope_interleaved": True}},
        tie_word_embeddings=False,
        **_qwen_ids(words),
    )
    return Qwen3VLMoeForConditionalGeneration(config), _qwen3_processor(words)


def qwen3_5() -> Built:
    """A hybrid: some layers keep a recurrent state, and the others gate their heads."""
    words = _qwen_words()
    text = _text(
        words,
        head_dim=24,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention", "full_attention", "linear_attention"],
        linear_key_head_dim=32,  # a norm divides what such a head computes by its size, which is next to nothing for narrow ones
        linear_value_head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=_mrope([2, 2, 2]) | {"mrope_interleaved": True, "partial_rotary_factor": 0.5},
    )
    config = Qwen3_5Config(vision_config=_qwen3_vision(), text_config=text, tie_word_embeddings=False, **_qwen_ids(words))
    return Qwen3_5ForConditionalGeneration(config), _qwen3_processor(words)


def gemma4() -> Built:
    """Heads wider in full layers than in sliding ones, inputs per layer, and the last two layers read earlier keys and values."""
    words = tokenizer(
        pad="<pad>",
        eos="<eos>",
        bos="<bos>",
        unk="<unk>",
        special=["<|turn>", "<turn|>", "<|video|>"],
        named={
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "audio_token": "<|audio|>",
        },
        chat="{{ bos_token }}" + _template("<|turn>{{ m['role'] }}\n", "<|image|>", "<turn|>\n", "<|turn>model\n"),
    )
    text = _text(words, num_hidden_layers=4, head_dim=16, global_head_dim=24, sliding_window=12, tie_word_embeddings=True)
    text |= {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(words),
        "num_kv_shared_layers": 2,
        "final_logit_softcapping": 30.0,
    }
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=4,
        pooling_kernel_size=3,
        position_embedding_size=256,
    )
    config = Gemma4Config(
        vision_config=vision,
        text_config=Gemma4TextConfig(**text),
        boi_token_id=_id(words, "<|image>"),
        eoi_token_id=_id(words, "<image|>"),
        image_token_id=_id(words, "<|image|>"),
        video_token_id=_id(words, "<|video|>"),
    )
    images = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    sounds = Gemma4AudioFeatureExtractor()
    processor = image_only(Gemma4Processor)(sounds, images, words, None, words.chat_template, image_seq_length=70)
    return Gemma4ForConditionalGeneration(config), processor


def aya_vision() -> Built:
    """Attention and MLP side by side, and layers without positions."""
    tiles = [f"TILE_{i}" for i in range(1, 5)]
    words = tokenizer(
        pad="<PAD>",
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        special=[
            "<|START_OF_TURN_TOKEN|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_GLOBAL", *tiles,
        ],
        chat="<BOS_TOKEN>"
        + _template("<|START_OF_TURN_TOKEN|>{{ m['role'] }}\n", "<image>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>"),
    )  # fmt: skip
    text = _text(words, sliding_window=24, layer_types=["sliding_attention", "full_attention", "sliding_attention"], logit_scale=0.5)
    config = AyaVisionConfig(
        vision_config=_siglip(2 * SIDE),
        text_config=Cohere2Config(**text | {"tie_word_embeddings": True}),
        image_token_index=_id(words, "<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 2 * SIDE, "width": 2 * SIDE}, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = AyaVisionProcessor(images, words, PATCH, 2 * SIDE, downsample_factor=2, chat_template=words.chat_template)
    return AyaVisionForConditionalGeneration(config), processor


def lfm2_vl() -> Built:
    """A hybrid: most layers are short convolutions."""
    tiles = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5) if row * col <= 4]
    words = tokenizer(
        pad="<|pad|>",
        bos="<|startoftext|>",
        eos="<|im_end|>",
        special=["<|im_start|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles],
        chat="<|startoftext|>" + _im("<image>"),
    )
    text = _text(words, num_hidden_layers=5, layer_types=["conv", "full_attention", "conv", "full_attention", "conv"])
    text |= {"block_auto_adjust_ff_dim": False, "conv_L_cache": 3}
    vision = Siglip2VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=16,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = Lfm2VlConfig(
        vision_config=vision,
        text_config=Lfm2Config(**text),
        image_token_id=_id(words, "<image>"),
        projector_hidden_size=48,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    images = own_or(Lfm2VlImages, "Lfm2VlImageProcessor")(
        encoder_patch_size=PATCH,
        tile_size=2 * SIDE,
        min_tiles=2,
        max_tiles=4,
        min_image_tokens=2,
        max_image_tokens=6,
        max_pixels_tolerance=1.0,
    )
    return Lfm2VlForConditionalGeneration(config), Lfm2VlProcessor(images, words, words.chat_template)


def llama4() -> Built:
    """Experts under another name that return a tuple, chunks in place of windows, and layers without positions that scale queries."""
    words = tokenizer(
        pad="<|pad|>",
        bos="<|begin_of_text|>",
        eos="<|eot|>",
        special=[
            "<|header_start|>", "<|header_end|>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>",
            "<|tile_y_separator|>",
        ],
        chat="<|begin_of_text|>"
        + _template("<|header_start|>{{ m['role'] }}<|header_end|>\n", "<|image|>", "<|eot|>", "<|header_start|>assistant<|header_end|>\n"),
    )  # fmt: skip
    text = _text(
        words,
        num_hidden_layers=4,
        head_dim=24,
        intermediate_size=48,
        intermediate_size_mlp=64,
        num_local_experts=4,
        num_experts_per_tok=1,
        moe_layers=[0, 2],
        attention_chunk_size=16,
        no_rope_layers=[1, 1, 0, 1],
        layer_types=["chunked_attention", "chunked_attention", "full_attention", "chunked_attention"],
        floor_scale=8,
    )
    vision = Llama4VisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=2 * SIDE,
        patch_size=PATCH,
        vision_output_dim=48,
        projector_input_dim=48,
        projector_output_dim=48,
    )
    config = Llama4Config(
        vision_config=vision,
        text_config=Llama4TextConfig(**text),
        boi_token_index=_id(words, "<|image_start|>"),
        eoi_token_index=_id(words, "<|image_end|>"),
        image_token_index=_id(words, "<|patch|>"),
        tie_word_embeddings=False,
    )
    images = own_or(Llama4Images, "Llama4ImageProcessor")(size={"height": 2 * SIDE, "width": 2 * SIDE}, max_patches=3)
    return Llama4ForConditionalGeneration(config), Llama4Processor(images, words, PATCH, 0.5, chat_template=words.chat_template)


def internvl_gpt_oss() -> Built:
    """InternVL around a GPT-OSS text model: attention sinks, sliding layers, experts that return a tuple."""

    def text(words: PreTrainedTokenizerFast) -> GptOssConfig:
        given = _text(words, intermediate_size=32, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=12)
        given |= {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
        return GptOssConfig(**given)

    return internvl_around(SIDE, text)


RECENT: dict[str, Callable[[], Built]] = {
    build.__name__: build for build in (mistral3, glm4v, qwen3_vl_moe, qwen3_5, gemma4, aya_vision, lfm2_vl, llama4, internvl_gpt_oss)
}
OWN_PROCESSORS = ("mistral3", "lfm2_vl", "llama4")
"""Models whose processor is made here rather than read back: transformers does not open it without torchvision."""
