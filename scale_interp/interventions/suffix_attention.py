"""The attention of variants that each run many rows: a shared prefix of keys and values, then a variant's own rows.

The part on the prefix is one product for all variants, and is joined with the own part by the logarithms of their softmax sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from .rows import at_positions, has_temperature, sink_logits

NAME = "scale_interp_suffix"


@dataclass(eq=False)
class Seen:
    """What the rows of one layer attend to; it is given in the place of the layer's attention mask.

    Attributes:
        own: Which rows of its own variant a row attends to, [B or 1, 1, S, S].
        keys, values: Of the prefix, [B, Hkv, K, D]; None without one.
        before: Which tokens of the prefix a row attends to, [B or 1, 1, S, K]; None for all.
        given: The keys and values of the last pass, [B * n, Hkv, S, D] each.
        change: Gives the output [B * n, H, S, D] after an edit of what rows see; None for no such edit.
    """

    own: Bool[Tensor, "questions 1 rows rows"]
    keys: Tensor | None = None
    values: Tensor | None = None
    before: Bool[Tensor, "questions 1 rows prefix"] | None = None
    given: tuple[Tensor, ...] = field(default=(), repr=False)
    change: Callable[..., Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        S = self.own.shape[-1]
        self.own = self.own | torch.eye(S, dtype=torch.bool, device=self.own.device)  # a row of padding sees itself, so nothing is nan
        self.causal = bool((self.own == torch.ones(S, S, dtype=torch.bool, device=self.own.device).tril()).all())
        if self.before is not None and bool(self.before.all()):
            self.before = None

    @property
    def positions(self) -> Int[Tensor, "questions rows"]:
        """How many other tokens each row sees."""
        K = 0 if self.keys is None else self.keys.shape[2]
        before = K if self.before is None else self.before[:, 0].sum(-1)
        return self.own[:, 0].sum(-1) - 1 + before


def suffix_attention(
    module: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Seen,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **given: object,
) -> tuple[Tensor, None]:
    """Attention of B * n variants of S rows each: query [B * n, H, S, D], key and value [B * n, Hkv, S, D].

    Returns:
        [B * n, S, H, D], and None in place of attention weights.
    """
    seen = attention_mask
    seen.given = (key, value)
    if has_temperature(module):
        positions = seen.positions.to(query.device)
        query = at_positions(module, query, positions.repeat_interleave(len(query) // len(positions), 0), 0)
    sinks = sink_logits(module, given)
    fused = query.device.type == "cpu" and softcap is None and sinks is None and not torch.is_grad_enabled()
    fused = fused and key.shape[-1] == value.shape[-1] and query.dtype in (torch.float32, torch.bfloat16)
    out = _fused(query, key, value, seen, scaling) if fused else _written_out(query, key, value, seen, scaling, softcap, sinks)
    if seen.change is not None:
        out = seen.change(seen, query, out, scaling, softcap, sinks)
    return out.transpose(1, 2).contiguous(), None


def _fused(query: Tensor, key: Tensor, value: Tensor, seen: Seen, scaling: float) -> Tensor:
    N, H, S, D = query.shape
    Hkv = key.shape[1]
    G = H // Hkv
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own_mask = None if seen.causal else _additive(seen.own, query, N)
    k, v = (x.repeat_interleave(G, 1) if G > 1 else x for x in (key, value))
    own, own_total = kernel(query, k, v, is_causal=seen.causal, attn_mask=own_mask, scale=scaling)
    if seen.keys is None or seen.keys.shape[2] == 0:
        return own
    assert seen.values is not None
    B, K = len(seen.keys), seen.keys.shape[2]
    n = N // B
    # all variants of a question are rows of one query: [B, Hkv, G * n * S, D]
    queries = query.reshape(B, n, Hkv, G, S, D).permute(0, 2, 3, 1, 4, 5).reshape(B, Hkv, G * n * S, D)
    mask = None
    if seen.before is not None:
        rows = _additive(seen.before, query, B)[:, :, None, None].expand(B, 1, G, n, S, K)
        mask = rows.reshape(B, 1, G * n * S, K)
    out, total = kernel(queries, seen.keys, seen.values, attn_mask=mask, scale=scaling)
    out = out.view(B, Hkv, G, n, S, D).permute(0, 3, 1, 2, 4, 5).reshape(N, H, S, D)
    total = total.view(B, Hkv, G, n, S).permute(0, 3, 1, 2, 4).reshape(N, H, S)
    if seen.before is not None:  # for a row that sees nothing of the prefix the kernel gives a sum of its own
        nothing = ~seen.before.any(-1)
        total = total.masked_fill(nothing.repeat_interleave(N // len(nothing), 0).to(total.device), float("-inf"))
    share = torch.sigmoid(own_total - total)[..., None].to(out.dtype)
    return torch.lerp(out, own, share)


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, seen: Seen, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    N, H, S, D = query.shape
    Hkv = key.shape[1]
    G = H // Hkv
    queries = query.reshape(N, Hkv, G * S, D) * scaling
    scores = [(queries @ key.mT).float().reshape(N, Hkv, G, S, S)]
    masks = [seen.own.to(query.device)]
    B = N if seen.keys is None else len(seen.keys)
    n = N // B
    if seen.keys is not None:
        keys = seen.keys.to(query.device)
        K = keys.shape[2]
        shared = queries.reshape(B, n, Hkv, G * S, D).transpose(1, 2).reshape(B, Hkv, n * G * S, D)
        scores.append((shared @ keys.mT).float().view(B, Hkv, n, G, S, K).transpose(1, 2).reshape(N, Hkv, G, S, K))
        before = seen.before
        masks.append(torch.ones(1, 1, S, K, dtype=torch.bool, device=query.device) if before is None else before.to(query.device))
    if softcap is not None:
        scores = [torch.tanh(part / softcap) * softcap for part in scores]
    for i, mask in enumerate(masks):
        times = N // len(mask) if len(mask) > 1 else 1
        scores[i] = scores[i].masked_fill(~mask.repeat_interleave(times, 0)[:, :, None], float("-inf"))
    both = torch.cat(scores, -1)
    if sinks is not None:
        sink = sinks.float().view(1, Hkv, G, 1, 1).expand(N, Hkv, G, S, 1)
        both = torch.cat([both, sink], -1)
    weights = both.softmax(-1).to(value.dtype)
    out = weights[..., :S].reshape(N, Hkv, G * S, S) @ value
    if seen.keys is not None:
        assert seen.values is not None
        on_prefix = weights[..., S : S + K].reshape(B, n, Hkv, G * S, K).transpose(1, 2).reshape(B, Hkv, n * G * S, K)
        more = on_prefix @ seen.values.to(query.device)
        out = out + more.reshape(B, Hkv, n, G * S, -1).transpose(1, 2).reshape(N, Hkv, G * S, -1)
    return out.reshape(N, H, S, -1)


def _additive(mask: Tensor, like: Tensor, n: int) -> Tensor:
    """A mask [b, 1, S, K] as numbers to add, one for each of n."""
    added = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask.to(like.device), float("-inf"))
    return added.repeat_interleave(n // len(added), 0)


AttentionInterface.register(NAME, suffix_attention)
AttentionMaskInterface.register(NAME, eager_mask)
