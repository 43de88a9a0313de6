"""The packed path: the last token of each prompt is run once, together with N edited copies.

In a causal decoder an edit at the last position cannot change the keys and values before it, so all copies share those of the
prompt. A copy joins at the first layer that its edit changes ("staircase"): below that layer it equals the clean row.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..vlm.mode import require_ready
from ..vlm.vlm import VLM
from .edit import LayerEdit, Variants, affine
from .knockout.cut import cut_rows
from .knockout.edit import AttentionEdit
from .prefix import Prefix
from .rows import attention


def run_packed(
    vlm: VLM, prefix: Prefix, edit: Variants | None, variants: Int[Tensor, " variants"] | None = None
) -> tuple[Float[Tensor, "questions choices"], Float[Tensor, "questions variants choices"]]:
    """Choice scores of the clean row and of the chosen variants.

    Args:
        vlm: The model.
        prefix: B prompts that were read.
        edit: The edit, or None for the clean row alone.
        variants: The numbers of the variants to run; all of them by default.

    Returns:
        Clean scores [B, C] and edited scores [B, n, C].
    """
    require_ready(vlm)
    if edit is None:
        variants, starts = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    else:
        variants = torch.arange(edit.n_variants) if variants is None else variants
        starts = edit.starts(vlm.n_layers)[variants]
    order = starts.argsort(stable=True)
    alive, starts = variants[order], starts[order]
    R = prefix.choices.tokens.shape[1]
    own_attention = isinstance(edit, AttentionEdit)
    attend = cut_rows(vlm, prefix, edit, alive) if isinstance(edit, AttentionEdit) else attention(vlm.decoder)
    with attend, vlm.text.trace(**prefix.inputs(apart=not own_attention)):
        for number, layer in enumerate(vlm.text.layers):
            n, new = int((starts <= number).sum()), int((starts == number).sum())
            if new or (n and R > 1):
                layer.inputs = with_copies(layer.inputs, R, n, new)
            part = edit.at(number, alive[:n], starts[:n], prefix.rows) if edit is not None and n else None
            if edit is None or part is None:
                continue
            if part.scale is not None or part.shift is not None:
                o_proj = layer.self_attn.o_proj
                o_proj.input = edit_heads(o_proj.input, part, vlm.n_heads, R, edit.scope)
            if part.mlp_scale is not None:
                layer.mlp.output = _edit_mlp(layer.mlp.output, part.mlp_scale, R, edit.scope)
        hidden = vlm.text.norm.output.save()
    scores = prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))
    clean = scores[:, 0]
    # A variant that no layer changes was never copied, so its scores are those of the clean row.
    row = torch.empty(len(variants), dtype=torch.long)
    row[order] = torch.where(starts < vlm.n_layers, torch.arange(1, len(order) + 1), 0)
    return clean, scores[:, row.to(scores.device)]


@torch.no_grad()
def last_token(
    vlm: VLM, prefix: Prefix
) -> tuple[Float[Tensor, "questions layers heads head_dim"], Float[Tensor, "questions layers width"], Float[Tensor, "questions choices"]]:
    """What the clean last token computes.

    Args:
        vlm: The model.
        prefix: B prompts that were read.

    Returns:
        z [B, L, H, D], MLP outputs [B, L, d_model] and choice scores [B, C].
    """
    heads, mlps = [], []
    R = prefix.choices.tokens.shape[1]
    with attention(vlm.decoder), vlm.text.trace(**prefix.inputs(apart=True)):
        for layer in vlm.text.layers:
            heads.append(layer.self_attn.o_proj.input[:, 0].clone())
            mlps.append(layer.mlp.output[:, 0].clone())
        hidden = vlm.text.norm.output.save()
    device = hidden.device
    z = torch.stack([h.to(device) for h in heads], 1).unflatten(-1, (vlm.n_heads, vlm.head_dim))
    scores = prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))
    return z, torch.stack([m.to(device) for m in mlps], 1), scores[:, 0]


def with_copies(inputs: tuple[tuple, dict[str, Any]], R: int, n: int, new: int) -> tuple[tuple, dict[str, Any]]:
    """A layer's inputs with `new` more copies of the clean rows, and rotary angles for the clean rows and n variants."""
    (hidden, *rest), kwargs = inputs
    if new:
        hidden = torch.cat([hidden, hidden[:, :R].repeat(1, new, 1)], 1)
    if R > 1 and kwargs.get("position_embeddings") is not None:
        kwargs = kwargs | {"position_embeddings": tuple(angle.repeat(1, n + 1, 1) for angle in kwargs["position_embeddings"])}
    return (hidden, *rest), kwargs


def edit_heads(z: Tensor, part: LayerEdit, n_heads: int, R: int, scope: str) -> Tensor:
    """z [B, (1 + n) * R, H * D] with the heads of the variants edited; the clean rows are passed on unchanged, bit for bit."""
    kept = (1 + part.first) * R
    heads = rearrange(z[:, kept:], "b (n r) (h d) -> b n r h d", r=R, h=n_heads)
    scale = None if part.scale is None else part.scale[:, :, None]
    shift = None if part.shift is None else part.shift[:, :, None]
    if scope == "last" and R > 1:
        edited = torch.cat([affine(heads[:, :, :1], scale, shift), heads[:, :, 1:]], 2)
    else:
        edited = affine(heads, scale, shift)
    return torch.cat([z[:, :kept], rearrange(edited, "b n r h d -> b (n r) (h d)")], 1)


def _edit_mlp(out: Tensor, factor: Tensor, R: int, scope: str) -> Tensor:
    rows = rearrange(out[:, R:], "b (n r) d -> b n r d", r=R)
    factor = factor.to(out.device)[None, :, None, None]
    edited = rows * factor if scope != "last" or R == 1 else torch.cat([rows[:, :, :1] * factor, rows[:, :, 1:]], 2)
    return torch.cat([out[:, :R], rearrange(edited, "b n r d -> b (n r) d").to(out.dtype)], 1)
