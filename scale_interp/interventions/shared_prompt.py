"""Attention of many rows over one prompt that all of them share, with the logarithm of its softmax's sum.

With that logarithm the row's own keys are joined afterwards (`rows.py`), so the prompt's keys and values are neither copied nor kept by
autograd: the gradient of a row is computed from them again, in pieces of a bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import kernels

PIECE = 2**26
"""Bytes of scores that a gradient computes at once."""

PROMPT = "_scale_interp_prompt_part"
"""Under this name the rows' own keys carry the prompt that goes before them, a `Prompt`."""


@dataclass(frozen=True)
class Prompt:
    """One layer's keys and values of B prompts, and what a row sees of them and of its own variant.

    Attributes:
        keys: [B, Hkv, K, D].
        values: The same shape.
        seen: Which keys each row of one variant sees, [B, 1, R or 1, K]; None for all.
        seen_by_all: Whether every row sees at least one key.
        own: Which rows of its variant a row sees, [B, 1, R, R].
    """

    keys: Tensor
    values: Tensor
    seen: Tensor | None
    seen_by_all: bool
    own: Tensor


Rows = Float[Tensor, "questions kv_heads rows head_dim"]
Keys = Float[Tensor, "questions kv_heads keys head_dim"]
Seen = Bool[Tensor, "questions 1 #rows keys"]
Totals = Float[Tensor, "questions kv_heads rows"]


def attend(
    query: Rows, keys: Keys, values: Keys, seen: Seen | None, scaling: float, softcap: float | None = None, seen_by_all: bool = True
) -> tuple[Rows, Totals]:
    """Attention over the prompt alone.

    Args:
        query: [B, Hkv, M, D]: the rows of all query heads that share a head of keys and values.
        keys: [B, Hkv, K, D].
        values: The same shape.
        seen: Which keys a row sees, [B, 1, M or 1, K]; None for all.
        scaling: The factor on the products.
        softcap: The soft cap of the scores, if the model has one.
        seen_by_all: Whether every row sees at least one key.

    Returns:
        The outputs [B, Hkv, M, D], 0 where a row sees no key, and the log-sum-exp of the scores [B, Hkv, M] in float32, there -inf.
    """
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (query, keys, values)):
        return kernels.run(query, keys, values, seen, scaling, softcap, seen_by_all)
    if keys.requires_grad or values.requires_grad:  # an adapter that is being trained has changed the prompt too
        return kernels.written_out(query, keys, values, seen, scaling, softcap)
    return _Attend.apply(query, keys, values, seen, scaling, softcap, seen_by_all)


class _Attend(torch.autograd.Function):
    """`attend` with a gradient for the query; keys and values are saved as they are, and scores not at all."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor | None,
        scaling: float,
        softcap: float | None,
        seen_by_all: bool,
    ) -> tuple[Tensor, Tensor]:
        out, total = kernels.run(query, keys, values, seen, scaling, softcap, seen_by_all)
        ctx.save_for_backward(query, keys, values, out, total, *([] if seen is None else [seen]))
        ctx.scaling, ctx.softcap = scaling, softcap
        return out, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_out: Tensor, to_total: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, out, total, *masks = ctx.saved_tensors
        seen = masks[0] if masks else None
        (B, Hkv, M), K = query.shape[:3], keys.shape[2]
        at_once = max(1, PIECE // (4 * B * Hkv * max(K, 1)))
        # A softmax's gradient: each share times what its value adds beyond the mean, and the total's own share.
        beyond = (to_out.float() * out.float()).sum(-1) - to_total
        total = total.clamp(min=torch.finfo(total.dtype).min)  # of a row that sees no key
        pieces = []
        for i in range(0, M, at_once):
            part = slice(i, i + at_once)
            scores = kernels.scores(query[:, :, part], keys, ctx.scaling)
            slope = None
            if ctx.softcap is not None:
                capped = torch.tanh(scores / ctx.softcap)
                scores, slope = capped * ctx.softcap, 1 - capped.square()
            if seen is not None:
                scores = scores.masked_fill_(~(seen if seen.shape[2] == 1 else seen[:, :, part]), float("-inf"))
            shares = scores.sub_(total[:, :, part, None]).exp_()
            change = (to_out[:, :, part] @ values.mT).float().sub_(beyond[:, :, part, None]).mul_(shares)
            if slope is not None:
                change = change.mul_(slope)
            pieces.append((change.to(keys.dtype) @ keys).mul_(ctx.scaling))
        return torch.cat(pieces, 2).to(query.dtype), None, None, None, None, None, None
