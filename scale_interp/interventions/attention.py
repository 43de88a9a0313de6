"""The attention of packed rows: each variant sees the prompt and its own rows, never another variant's.

Written out instead of one mask over all rows: the cost of N variants grows with N x prompt, not N x (prompt + N), and
a row's numbers do not hang on its place among the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ..errors import PathWarning

NAME = "scale_interp_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of n variants of R rows each over a shared prompt of K tokens.

    query [B, H, n * R, D]; key, value [B, Hkv, K + n * R, D], the prompt's first; attention_mask [B, 1, R, P + R],
    True where one variant's row sees, P >= K (a sliding layer keeps the last K of P).
    """
    B, H, S, D = query.shape
    Hkv, R = key.shape[1], attention_mask.shape[2]
    G, n, K = H // Hkv, S // R, key.shape[2] - S
    seen, own = attention_mask[..., -R - K : -R], attention_mask[..., -R:]
    query = query * scaling
    to_prompt = query.reshape(B, Hkv, G * S, D) @ key[:, :, :K].mT
    queries = query.view(B, Hkv, G, n, R, 1, D)
    to_own = (queries * key[:, :, K:].reshape(B, Hkv, 1, n, 1, R, D)).sum(-1)
    scores = torch.cat([to_prompt.view(B, Hkv, G, n, R, K), to_own], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    visible = torch.cat([seen, own], -1)[:, :, None, None]
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    from_prompt = weights.view(B, Hkv, G * S, K + R)[..., :K] @ value[:, :, :K]
    from_own = (weights[..., K:, None] * value[:, :, K:].reshape(B, Hkv, 1, n, 1, R, D)).sum(-2)
    out = from_prompt.view(B, Hkv, G, n, R, D) + from_own
    return out.view(B, H, S, D).transpose(1, 2), None


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def attention(decoder: PreTrainedModel, name: str = NAME) -> Iterator[None]:
    """The text decoder with another attention function, put back afterwards."""
    before = decoder.config._attn_implementation
    if str(before).startswith("flash"):
        warnings.warn(
            f"{before} takes no masks of packed rows: it reads the prompts, and packed runs use plain torch", PathWarning, stacklevel=3
        )
    decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
