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
from ..vlm.lock import alone

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
    if R == 1 and softcap is None and query.device.type == "cpu" and not torch.is_grad_enabled():
        return _one_row_each(query, key, value, seen, scaling), None
    query = query * scaling
    queries = query.view(B, Hkv, G, n, R, 1, D)
    to_prompt = (query.reshape(B, Hkv, G * S, D) @ key[:, :, :K].mT).float().view(B, Hkv, G, n, R, K)
    to_own = (queries * key[:, :, K:].reshape(B, Hkv, 1, n, 1, R, D)).sum(-1, dtype=torch.float32)
    if softcap is not None:
        to_prompt, to_own = (torch.tanh(scores / softcap) * softcap for scores in (to_prompt, to_own))
    # In place: at hundreds of rows the passes over these scores, not the products, are what takes time.
    if seen.device.type != "cpu" or not seen.all():
        to_prompt = to_prompt.masked_fill_(~seen[:, :, None, None], float("-inf"))
    to_own = to_own.masked_fill(~own[:, :, None, None], float("-inf"))
    largest = torch.maximum(to_prompt.detach().amax(-1, keepdim=True), to_own.detach().amax(-1, keepdim=True))
    to_prompt, to_own = to_prompt.sub_(largest).exp_(), (to_own - largest).exp()
    total = to_prompt.sum(-1, keepdim=True) + to_own.sum(-1, keepdim=True)
    if value.dtype == torch.float16:
        # a sum over a long prompt passes float16's largest number
        to_prompt, to_own, total = to_prompt / total, to_own / total, torch.ones_like(total)
    from_prompt = to_prompt.view(B, Hkv, G * S, K).to(value.dtype) @ value[:, :, :K]
    from_own = (to_own[..., None] * value[:, :, K:].reshape(B, Hkv, 1, n, 1, R, D)).sum(-2)
    out = (from_prompt.view(B, Hkv, G, n, R, D) + from_own) / total
    return out.view(B, H, S, D).to(value.dtype).transpose(1, 2), None


def _one_row_each(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """The same for variants of one row each, by torch's fused kernel: the prompt's part, and then the row's own key and value.

    The kernel gives the logarithm of its softmax's sum, so the row's own score can join afterwards; no scores are stored.
    """
    B, H, S, D = query.shape
    Hkv, K = key.shape[1], key.shape[2] - S
    queries = query.reshape(B, Hkv, -1, D)
    mask = None
    if not seen.all():
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf")).expand(B, 1, queries.shape[2], K)
    prompt = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, total = prompt(queries, key[:, :, :K], value[:, :, :K], attn_mask=mask, scale=scaling)
    groups = (B, Hkv, H // Hkv, S)
    own = (query.view(*groups, D) * key[:, :, None, K:]).sum(-1, dtype=torch.float32) * scaling
    share = torch.sigmoid(own - total.view(groups))[..., None].to(out.dtype)
    out = torch.lerp(out.view(*groups, D), value[:, :, None, K:].expand(*groups, D), share)
    return out.view(B, H, S, D).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def attention(decoder: PreTrainedModel, name: str = NAME) -> Iterator[None]:
    """The text decoder with another attention function, put back afterwards; other threads wait until then."""
    with alone(decoder):
        yield from _attention(decoder, name)


def _attention(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    before = decoder.config._attn_implementation
    if str(before).startswith("flash"):
        warnings.warn(
            f"{before} takes no masks of packed rows: it reads the prompts, and packed runs use plain torch", PathWarning, stacklevel=4
        )
    decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
