"""A LLaVA of realistic shape with random weights, built in memory: 576 image tokens, and text that sees them all."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

from ..errors import ModelError
from ..models.load import load
from ..models.placement import require_device
from ..models.zoo import draw, families
from ..vlm.vlm import VLM

PREFIX = "realistic/"
SHAPES = (PREFIX + "8x8x512", PREFIX + "32x32x1024")
"""Layers x heads x width: 64 heads, and 1,024 heads (1.6 GB of weights in float32)."""
SIDE, PATCH = 336, 14
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(name: str, device: str | None = None, dtype: str | None = None) -> VLM:
    """Load a model to measure.

    Args:
        name: "realistic/LAYERSxHEADSxWIDTH", or any name that `load` takes.
        device: where it runs; by default as in `load`.
        dtype: float32, bfloat16 or float16; None for the model's own.

    Raises:
        ModelError: there is no such model.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if not name.startswith(PREFIX):
        return load(name, device=device, dtype=dtype and DTYPES[dtype])
    shape = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name.removeprefix(PREFIX))
    if shape is None:
        raise ModelError(f"no model {name!r}: write {PREFIX}LAYERSxHEADSxWIDTH, such as {SHAPES[0]}")
    vlm = realistic(*(int(n) for n in shape.groups()))
    vlm.hf_model.to(device=require_device(device), dtype=DTYPES[dtype or "float32"])
    return vlm


def realistic(layers: int, heads: int, width: int) -> VLM:
    """Build a LLaVA with random weights from one seed: the zoo's tokenizer, a decoder of this shape and a small vision tower.

    Args:
        layers: how many the decoder has.
        heads: how many each layer has.
        width: the size of the residual stream.

    Raises:
        ModelError: the width cannot be divided into heads of an even size.
    """
    if not heads or width % (2 * heads):
        raise ModelError(f"{width} units cannot be divided into {heads} heads of an even width")
    tiny, processor = families.llava()
    config: Any = tiny.config
    config.vision_config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    config.image_seq_length = (SIDE // PATCH) ** 2
    config.text_config = LlamaConfig(
        **config.text_config.to_dict()
        | {
            "hidden_size": width,
            "intermediate_size": width * 43 // 16,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": width // heads,
            "max_position_embeddings": 4096,
        }
    )
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        draw(model)
    model.requires_grad_(False)
    return VLM(model, processor, f"{PREFIX}{layers}x{heads}x{width}")
