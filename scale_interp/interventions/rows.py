"""The attention of packed rows: each variant sees the prompt and its own rows, never another variant's.

The prompt's part is computed for all rows at once (`shared_prompt.py`), and each row's own keys are joined to it by the logarithm of its
softmax's sum. There is no mask over all rows: the cost of N variants grows with N x prompt, not N x (prompt + N), and the numbers of a
row do not depend on its place among the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from ..errors import ModelError, PathWarning
from ..vlm.lock import alone
from .shared_prompt import PROMPT, Prompt, attend

NAME = "scale_interp_packed"


def packed_attention(
    module: object,
    query: Float[Tensor, "questions heads rows head_dim"],
    key: Float[Tensor, "questions kv_heads keys head_dim"],
    value: Float[Tensor, "questions kv_heads keys value_dim"],
    attention_mask: Bool[Tensor, "questions 1 rows_per_variant seen"] | Float[Tensor, "questions 1 1 keys"],
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **given: object,
) -> tuple[Float[Tensor, "questions rows heads value_dim"], None]:
    """Attention of n variants of R rows each over a shared prompt of K tokens.

    Args:
        module: The attention layer.
        query: [B, H, n * R, D].
        key: The rows' own keys [B, Hkv, n * R, D] with the prompt's apart (`prefix.ApartLayer`), or [B, Hkv, K + n * R, D], the prompt's
            first.
        value: The same with Dv numbers for each.
        attention_mask: Which keys each row of one variant sees, [B, 1, R, P + R], with P >= K (a sliding layer keeps the last K of P); in a
            layer of cross-attention numbers that are added to the scores.
        scaling: The factor on the products.
        dropout: Ignored, as models are in evaluation mode.
        softcap: The soft cap of the scores, if the model has one.
        given: Further arguments; `s_aux` holds attention sinks.

    Returns:
        [B, n * R, H, Dv], and None in place of attention weights.
    """
    if attention_mask.is_floating_point():
        return of_images(query, key, value, attention_mask, scaling), None
    query = with_own_temperature(module, query, attention_mask)
    B, H, S, D = query.shape
    apart = getattr(key, PROMPT, None)
    prompt = apart if apart is not None else _in_front(key, value, attention_mask, S)
    Hkv, R, Dv = key.shape[1], prompt.own.shape[2], value.shape[-1]
    G, n = H // Hkv, S // R
    key, value, own = key[:, :, -S:], value[:, :, -S:], prompt.own
    # Under autocast they are of two dtypes: the rotation of queries and keys makes float32 of them.
    query, key, keys, values = (part.to(value.dtype) for part in (query, key, prompt.keys, prompt.values))
    rows = query.reshape(B, Hkv, G * S, D)
    seen = prompt.seen
    if seen is not None and seen.shape[2] > 1:
        seen = seen[:, :, None].expand(-1, -1, G * n, -1, -1).flatten(2, 3)
    out, total = attend(rows, keys, values, seen, scaling, softcap, prompt.seen_by_all)
    sinks = sink_logits(module, given)
    if R == 1 and softcap is None and sinks is None:
        to_own = (query.reshape(B, Hkv, G, S, D) * key[:, :, None]).sum(-1, dtype=torch.float32) * scaling
        share = torch.sigmoid(to_own - total.view(B, Hkv, G, S))[..., None].to(out.dtype)
        out = torch.lerp(out.view(B, Hkv, G, S, Dv), value[:, :, None].expand(B, Hkv, G, S, Dv), share)
        return out.view(B, H, S, Dv).transpose(1, 2).contiguous(), None
    queries = (query * scaling).reshape(B, Hkv, G, n, R, 1, D)
    to_own = (queries * key.reshape(B, Hkv, 1, n, 1, R, D)).sum(-1, dtype=torch.float32)
    if softcap is not None:
        to_own = torch.tanh(to_own / softcap) * softcap
    to_own = to_own.masked_fill(~own[:, :, None, None], float("-inf"))
    total = total.view(B, Hkv, G, n, R, 1)
    parts = [total, to_own]
    if sinks is not None:
        parts.append(sinks.float().view(1, Hkv, G, 1, 1, 1).expand_as(total))
    of_prompt, of_own = torch.cat(parts, -1).softmax(-1).to(out.dtype)[..., : 1 + R].split([1, R], -1)
    from_own = (of_own[..., None] * value.reshape(B, Hkv, 1, n, 1, R, Dv)).sum(-2)
    out = out.view(B, Hkv, G, n, R, Dv) * of_prompt + from_own
    return out.view(B, H, S, Dv).to(value.dtype).transpose(1, 2).contiguous(), None


def of_images(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention [B, S, H, D] of a layer of cross-attention, whose mask alone is one of numbers: all rows see the same parts of images."""
    rows = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype), scale=scaling, enable_gqa=True)
    return rows.transpose(1, 2).contiguous()


def with_own_temperature(module: object, query: Tensor, mask: Tensor) -> Tensor:
    """Queries [B, H, S, D] with the scale of each row's own position, where a layer without rotary positions scales them (Llama 4).

    The layer counts the rows of one call as tokens that follow each other, and rows of many variants would seem to be far into a text.
    """
    if not has_temperature(module):
        return query
    S, R = query.shape[2], mask.shape[2]
    return at_positions(module, query, (mask[:, 0].sum(-1) - 1).tile(S // R), mask.shape[-1] - R)


def has_temperature(module: object) -> bool:
    """Whether a layer scales its queries by their positions."""
    return getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True)


def at_positions(module: object, query: Tensor, positions: Tensor, behind: int) -> Tensor:
    """Queries [B, H, S, D] scaled for these positions [B, S], which the layer took for those that follow `behind` others.

    Such a layer sees the whole text before a row, so that a row's position is the number of other tokens that it sees.
    """
    floor, factor = module.floor_scale, module.attn_scale  # type: ignore[attr-defined]

    def scale(positions: Tensor) -> Tensor:
        return torch.log1p(torch.floor((positions.float() + 1.0) / floor)) * factor + 1.0

    given = torch.arange(behind, behind + query.shape[2], device=query.device)
    return query * (scale(positions) / scale(given))[:, None, :, None].to(query.dtype)


def _in_front(key: Tensor, value: Tensor, mask: Tensor, S: int) -> Prompt:
    """The prompt's part of keys and values that it precedes."""
    K, R = key.shape[2] - S, mask.shape[2]
    seen = mask[..., -R - K : -R]
    if not K and mask.shape[-1] > R:
        raise ModelError("the prompt's keys and values did not reach the attention: use path='reference'")
    by_all = bool(seen.any(-1).all())
    return Prompt(key[:, :, :K], value[:, :, :K], None if bool(seen.all()) else seen, by_all, mask[..., -R:])


def sink_logits(module: object, given: Mapping[str, object]) -> Tensor | None:
    """A learned logit for each head [H] that takes its share of the softmax and has no value (GPT-OSS); None without one."""
    sinks = given.get("s_aux")
    sinks = getattr(module, "sinks", None) if sinks is None else sinks
    return sinks if isinstance(sinks, Tensor) else None


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
