"""Attention written out for some rows, as each family computes it: what its edits start from, and the check that it is the layer's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..errors import EditError
from ..vlm.decoder import describe_layers
from .rows import NAME as PACKED
from .rows import packed_attention, sink_logits


def base_of(decoder: PreTrainedModel) -> str:
    """The decoder's own function where masks can be given to it, else torch's, or plain attention for logits with a cap."""
    own = str(decoder.config._attn_implementation)
    if own in ("sdpa", "eager"):
        return own
    if "flash" not in own and "flex" not in own:
        raise EditError(f"attention function {own!r} may do more than a softmax of q.k: load the model with attn_implementation='eager'")
    sinks = any(sink_logits(block.attention(), {}) is not None for block in describe_layers(decoder).heads)
    return "sdpa" if decoder._supports_sdpa and not sinks else "eager"


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    for kind in type(module).__mro__:
        if (eager := getattr(sys.modules[kind.__module__], "eager_attention_forward", None)) is not None:
            return eager(module, *args, **kwargs)
    raise EditError(f"a {type(module).__name__} has no attention function in plain torch: load the model with attn_implementation='sdpa'")


BASES: dict[str, Callable[..., Any]] = {"sdpa": sdpa_attention_forward, "eager": _eager, PACKED: packed_attention}


def masked(logits: Tensor, mask: Tensor | None, rows: slice | Tensor, S: int, spare: int = 0) -> Tensor:
    """Logits [B, H, rows, K] after the mask, or after a causal one if there is none.

    spare: how many places at the end of a static cache hold no token yet.
    """
    K = logits.shape[-1]
    if mask is None:
        causal = torch.ones(S, K, dtype=torch.bool, device=logits.device).tril(K - spare - S)[rows]
        return logits.masked_fill(~causal, torch.finfo(logits.dtype).min)
    mask = mask[:, :, rows, -K:]
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min) if mask.dtype == torch.bool else logits + mask


def softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Attention weights of masked logits [B, H, ..., K]; sinks [H]: logits of a column that has no value."""
    if sinks is None:
        return logits.softmax(-1)
    column = sinks.float().view(1, -1, *[1] * (logits.ndim - 2)).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, column], -1).softmax(-1)[..., :-1]


ROUNDING = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What rounding explains of a layer's difference, relative to what it is the difference of (as norms)."""


def require_same(module: nn.Module, layer: int, found: Tensor, kept: Tensor, mask: Tensor | None, rows: slice | Tensor) -> None:
    """Raise EditError where attention written out with unchanged logits [B, H, rows, D] is not what this layer computes."""
    sees = torch.ones(1, dtype=torch.bool, device=kept.device)
    if mask is not None:  # a row of padding sees nothing, and what comes of it is never used
        seen = mask[:, :, rows]
        sees = (seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2).any(-1, keepdim=True)
    difference = torch.where(sees, (found - kept).float(), 0.0).norm()
    whole = torch.where(sees, kept.float(), 0.0).norm()
    if not bool(difference <= ROUNDING.get(kept.dtype, 1e-1) * whole):
        raise EditError(
            f"layer {layer} ({type(module).__name__}): attention written out with unchanged logits differs from the layer's own by "
            f"{float(difference / whole):.2g} of its size, so its logits cannot be rewritten: it is more than a softmax of q.k, mask, cap "
            "and sinks; edit its heads instead (ScAle, Steering)"
        )
