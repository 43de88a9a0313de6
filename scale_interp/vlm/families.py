"""How each family differs from a plain causal decoder: every quirk in one place.

Sliding windows need no entry: the keys and values that a layer caches show how far back it attends.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ModelError
from .decoder import PARTS, Decoder, Parts, find_decoder, setting


@dataclass(frozen=True)
class Family:
    """How a family's prompts are written and read.

    Attributes:
        bidirectional: Whether prompt tokens attend to later ones, so that an edit of the last token affects them all.
        first_position: The position number of the first token.
        numbered_alone: Whether prompts of a batch are numbered one by one, as the model's own numbers count images across the batch.
        after_padding: Whether positions begin behind the padding token's id, as in fairseq, beside `first_position`.
        prompt: The template, if the checkpoints have no chat template.
        prompt_end: What the processor appends to a prompt.
        answer_type: The `token_type_ids` of tokens after the prompt.
        images_first: Whether the processor itself puts an image's tokens before the prompt, which then has no placeholder.
        flat_images: Whether the processor takes the images of several prompts as one list.
        unpadded: Whether prompts of different lengths are read one by one, as the model itself counts padding as text.
        singly: Whether prompts are always read one by one, as what the model makes of an image depends on those before it in a batch.
        staircase: Whether a packed variant may join at its first edited layer: what a layer hands on is the residual stream alone.
        parts: The names of its text decoder's parts, where they are not the usual ones.
    """

    bidirectional: bool = False
    first_position: int = 0
    numbered_alone: bool = False
    after_padding: bool = False
    prompt: str | None = None
    prompt_end: str = ""
    answer_type: int = 0
    images_first: bool = False
    flat_images: bool = False
    unpadded: bool = False
    singly: bool = False
    staircase: bool = True
    parts: Parts = PARTS


PLAIN = Family()
KNOWN = {
    "llava": PLAIN,
    "llava_next": PLAIN,
    "llava_onevision": PLAIN,
    "qwen2_vl": PLAIN,
    "qwen2_5_vl": PLAIN,
    "qwen3_vl": PLAIN,
    "internvl": PLAIN,
    "gemma3": PLAIN,
    "idefics3": PLAIN,
    "smolvlm": PLAIN,
    "mistral3": PLAIN,
    "glm4v": PLAIN,
    "qwen3_vl_moe": PLAIN,
    "qwen3_5": PLAIN,
    "gemma4": PLAIN,
    "aya_vision": PLAIN,
    "lfm2_vl": PLAIN,
    "blip-2": Family(prompt="Question: {text} Answer:", images_first=True),
    "instructblip": Family(prompt="{text} Short answer:", images_first=True, unpadded=True),
    "llama4": Family(unpadded=True),
    "mllama": Family(unpadded=True),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), Family(singly=True)),
    "hunyuan_vl": Family(numbered_alone=True),
    "kosmos-2.5": Family(after_padding=True, prompt="{images}{text}"),
    "got_ocr2": Family(
        flat_images=True,
        prompt="<|im_start|>system\nYou should follow the instructions carefully and explain your answers in detail.<|im_end|>"
        "<|im_start|>user\n<img>{images}</img>\n{text}<|im_end|><|im_start|>assistant\n",
    ),
    "paligemma": Family(bidirectional=True, first_position=1, prompt="{images}answer en {text}", prompt_end="\n", answer_type=1),
}
"""Quirks by model_type. Any other family is treated as a plain one and checked when it is loaded."""


BROKEN = {("llama4", "5.24.0"): "its Llama 4 asks its own outputs for the features of images, which they do not hold"}
"""Families that one release of transformers cannot run at all, with or without this package."""


def cannot_run(family: str) -> str:
    """Why the transformers that is installed cannot run a family, with what to do; nothing where it can."""
    why = BROKEN.get((family, release := transformers.__version__))
    if why is None:
        return ""
    return f"transformers {release} itself cannot run it ({why}): install another release: pip install 'transformers==5.23.0'"


def position_ids(model: PreTrainedModel, family: Family, inputs: Any) -> Tensor:
    """The position of every token of an unpadded prompt, as the model itself numbers them.

    Qwen-VL's mrope numbers image tokens by time, row and column, so the last token is not at position T - 1.

    Args:
        model: The transformers model.
        family: Its quirks.
        inputs: The processor's output for the prompts.

    Returns:
        [B, T], or [3, B, T] for mrope.
    """
    core: Any = getattr(model, "model", model)
    if hasattr(core, "get_rope_index"):
        if family.numbered_alone and len(inputs["input_ids"]) > 1:
            return torch.cat([position_ids(model, family, one) for one in _one_by_one(inputs)], -2)
        takes = inspect.signature(core.get_rope_index).parameters
        return core.get_rope_index(**{k: v for k, v in inputs.items() if k in takes})[0]
    first = family.first_position + (model.config.get_text_config().pad_token_id + 1 if family.after_padding else 0)
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + first


def _one_by_one(inputs: Any) -> Iterator[dict[str, Any]]:
    """The inputs of each prompt of a batch, with the grids of its own images."""
    used = 0
    for row in range(len(inputs["input_ids"])):
        one = {key: part[row : row + 1] for key, part in inputs.items() if key in ("input_ids", "attention_mask", "mm_token_type_ids")}
        image = F.pad((one["mm_token_type_ids"][0] * one["attention_mask"][0] == 1).int(), (1, 0))
        n = int((image.diff() == 1).sum())
        yield one | {key: part[used : used + n] for key, part in inputs.items() if key == "image_grid_thw"}
        used += n


def after_head(model: PreTrainedModel) -> tuple[float, float | None]:
    """The factor on a model's logits after its head, and their final soft cap, if its code applies what its configuration names.

    A text model's configuration may name them although the model around it applies neither (a LLaVA around Gemma 2).
    """
    config, factor, cap = model.config.get_text_config(), 1.0, None
    parts = [model, *(inner for inner in model.children() if hasattr(inner, "lm_head"))]
    code = "".join(inspect.getsource(inspect.unwrap(type(part).forward)) for part in parts)
    for name in ("logits_scaling", "logit_scale", "output_multiplier"):
        found = re.search(rf"([*/])\s*self\.(?:[\w.]+\.)?{name}\b", code)
        if found and isinstance(value := setting(config, name), float | int):
            factor = factor * value if found[1] == "*" else factor / value
    if "final_logit_softcapping" in code:
        cap = setting(config, "final_logit_softcapping")
    return factor, cap


def head_of(model: PreTrainedModel, name: str) -> Any:
    """The head that makes logits: the model's own, or that of the text model within it (Nemotron-H Omni). ModelError without one."""
    for part in (model, *model.children(), *getattr(model, "base_model", model).children()):
        if isinstance(part, PreTrainedModel) and (head := part.get_output_embeddings()) is not None:
            return head
    raise ModelError(f"{name}: it has no head that makes logits (get_output_embeddings): load a model that generates text")


def describe(model: PreTrainedModel, name: str) -> Decoder:
    """What the layers of a model's text decoder are, by the names of its family. Raises ModelError where heads cannot be addressed."""
    return find_decoder(model, name, KNOWN.get(model.config.model_type, PLAIN).parts)
