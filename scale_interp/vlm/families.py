"""What a family does otherwise than a plain causal decoder: each quirk in one place.

Sliding windows need no entry: the keys and values that a layer keeps say how far it sees.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """How a family's prompts are written and read.

    bidirectional: prompt tokens attend to those after them, so that an edit of the last one reaches them all.
    first_position: the number of the first token. prompt: the template where the checkpoints have no chat template.
    prompt_end: what the processor adds to a prompt. answer_type: the `token_type_ids` of tokens after the prompt.
    """

    bidirectional: bool = False
    first_position: int = 0
    prompt: str | None = None
    prompt_end: str = ""
    answer_type: int = 0


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
    "paligemma": Family(bidirectional=True, first_position=1, prompt="{images}answer en {text}", prompt_end="\n", answer_type=1),
}
"""model_type -> quirks; any other family is tried as a plain one and checked on load."""


def position_ids(model: PreTrainedModel, family: Family, inputs: Any) -> Tensor:
    """The position of every token as the model itself numbers one unpadded prompt: [B, T], or [3, B, T] for mrope.

    Qwen-VL's mrope numbers image tokens by time, row and column, so that the last token is not at T - 1.
    """
    core: Any = getattr(model, "model", model)
    if hasattr(core, "get_rope_index"):
        takes = inspect.signature(core.get_rope_index).parameters
        return core.get_rope_index(**{k: v for k, v in inputs.items() if k in takes})[0]
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + family.first_position


def norms_after(layer: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms between the sum over heads, or the MLP, and the residual stream (Gemma 2 and 3; none elsewhere)."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return layer.post_attention_layernorm, layer.post_feedforward_layernorm  # type: ignore[return-value]
    return None, None
