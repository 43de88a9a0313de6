"""The attention of packed rows: each variant sees the prompt and its own rows, never another variant's.

Computed explicitly instead of with one mask over all rows: the cost of N variants grows with N x prompt, not N x (prompt + N), and
the numbers of a row do not depend on its place among the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from ..errors import PathWarning
from ..vlm.lock import alone

NAME = "scale_interp_packed"


def packed_attention(
    module: object,
    query: Float[Tensor, "questions heads rows head_dim"],
    key: Float[Tensor, "questions kv_heads keys head_dim"],
    value: Float[Tensor, "questions kv_heads keys value_dim"],
    attention_mask: Bool[Tensor, "questions 1 rows_per_variant seen"],
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **given: object,
) -> tuple[Float[Tensor, "questions rows heads value_dim"], None]:
    """Attention of n variants of R rows each over a shared prompt of K tokens.

    Args:
        module: The attention layer.
        query: [B, H, n * R, D].
        key: [B, Hkv, K + n * R, D], the prompt's first.
        value: [B, Hkv, K + n * R, Dv].
        attention_mask: Which keys each row of one variant sees, [B, 1, R, P + R], with P >= K (a sliding layer keeps the last K of P).
        scaling: The factor on the products.
        dropout: Ignored, as models are in evaluation mode.
        softcap: The soft cap of the scores, if the model has one.
        given: Further arguments; `s_aux` holds attention sinks.

    Returns:
        [B, n * R, H, Dv], and None in place of attention weights.
    """
    query = with_own_temperature(module, query, attention_mask)
    B, H, S, D = query.shape
    Hkv, R, Dv = key.shape[1], attention_mask.shape[2], value.shape[-1]
    G, n, K = H // Hkv, S // R, key.shape[2] - S
    seen, own = attention_mask[..., -R - K : -R], attention_mask[..., -R:]
    sinks = sink_logits(module, given)
    if R == 1 and Dv == D and softcap is None and sinks is None and query.device.type == "cpu" and not torch.is_grad_enabled():
        return _one_row_each(query, key, value, seen, scaling), None
    query = query * scaling
    queries = query.view(B, Hkv, G, n, R, 1, D)
    to_prompt = (query.reshape(B, Hkv, G * S, D) @ key[:, :, :K].mT).float().view(B, Hkv, G, n, R, K)
    to_own = (queries * key[:, :, K:].reshape(B, Hkv, 1, n, 1, R, D)).sum(-1, dtype=torch.float32)
    if softcap is not None:
        to_prompt, to_own = (torch.tanh(scores / softcap) * softcap for scores in (to_prompt, to_own))
    # In place: with hundreds of rows, passes over these scores take more time than the products.
    if seen.device.type != "cpu" or not seen.all():
        to_prompt = to_prompt.masked_fill_(~seen[:, :, None, None], float("-inf"))
    to_own = to_own.masked_fill(~own[:, :, None, None], float("-inf"))
    largest = torch.maximum(to_prompt.detach().amax(-1, keepdim=True), to_own.detach().amax(-1, keepdim=True))
    if sinks is not None:
        sink = sinks.float().view(1, Hkv, G, 1, 1, 1)
        largest = torch.maximum(largest, sink.detach())
    to_prompt, to_own = to_prompt.sub_(largest).exp_(), (to_own - largest).exp()
    total = to_prompt.sum(-1, keepdim=True) + to_own.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sink - largest).exp()
    if value.dtype == torch.float16:
        # a sum over a long prompt exceeds the largest float16
        to_prompt, to_own, total = to_prompt / total, to_own / total, torch.ones_like(total)
    from_prompt = to_prompt.view(B, Hkv, G * S, K).to(value.dtype) @ value[:, :, :K]
    from_own = (to_own[..., None] * value[:, :, K:].reshape(B, Hkv, 1, n, 1, R, Dv)).sum(-2)
    out = (from_prompt.view(B, Hkv, G, n, R, Dv) + from_own) / total
    return out.view(B, H, S, Dv).to(value.dtype).transpose(1, 2), None


def with_own_temperature(module: object, query: Tensor, mask: Tensor) -> Tensor:
    """Queries [B, H, S, D] with the scale of each row's own position, where a layer without rotary positions scales them (Llama 4).

    The layer counts the rows of one call as tokens that follow each other, and rows of many variants would seem to be far into a text.
    """
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return query
    floor, factor, (S, R) = module.floor_scale, module.attn_scale, (query.shape[2], mask.shape[2])  # type: ignore[attr-defined]
    behind = mask.shape[-1] - R

    def scale(positions: Tensor) -> Tensor:
        return torch.log1p(torch.floor((positions.float() + 1.0) / floor)) * factor + 1.0

    given = scale(torch.arange(behind, behind + S, device=query.device))
    own = scale(mask[:, 0].sum(-1) - 1).tile(S // R)  # such a layer sees the whole text before a row
    return query * (own / given)[:, None, :, None].to(query.dtype)


def sink_logits(module: object, given: Mapping[str, object]) -> Tensor | None:
    """A learned logit for each head [H] that takes its share of the softmax and has no value (GPT-OSS); None without one."""
    sinks = given.get("s_aux")
    sinks = getattr(module, "sinks", None) if sinks is None else sinks
    return sinks if isinstance(sinks, Tensor) else None


def _one_row_each(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """The same for variants of one row each, with torch's fused kernel for the prompt, followed by the row's own key and value.

    The kernel returns the log-sum-exp of its scores, so the row's own score can be added afterwards and no scores are stored.
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
    """Give the text decoder another attention function, and restore its own afterwards; other threads wait until then."""
    with alone(decoder):
        yield from _attention(decoder, name)


def _attention(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    before = decoder.config._attn_implementation
    if str(before).startswith("flash"):
        warnings.warn(
            f"{before} does not support the masks of packed rows: it reads the prompts, and packed runs use plain torch",
            PathWarning,
            stacklevel=4,
        )
    decoder.set_attn_implementation(name)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)
