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

from ..vlm.decoder import HeadLayer, mlp_rows, with_mlp_rows
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
    B = len(prefix.choices.tokens)
    blocks = {block.number: (row, block) for row, block in enumerate(vlm.head_layers)}
    n, later = (0, 0) if vlm.staircase else (len(alive), len(alive))
    own_attention = isinstance(edit, AttentionEdit)
    attend = cut_rows(vlm, prefix, edit, alive) if isinstance(edit, AttentionEdit) else attention(vlm.decoder)
    with prefix.state_layers(vlm), attend, vlm.text.trace(**prefix.inputs(1 + n, apart=vlm.parts.keys_as_cached and not own_attention)):
        for number, layer in enumerate(vlm.text_layers):
            row, block = blocks.get(number, (-1, None))
            new = 0
            if block is not None and vlm.staircase:
                n, new = int((starts <= row).sum()), int((starts == row).sum())
            if block is not None and vlm.staircase and (new or (n and R > 1)):
                layer.inputs = with_copies(layer.inputs, R, n, new)
            if block is None or edit is None:
                continue
            on = int((starts <= row).sum())
            later = n - on
            part = edit.part(row, alive[:on], starts[:on], prefix.rows) if on else None
            if part is None:
                continue
            if part.scale is not None or part.shift is not None:
                output = block.output(layer)
                output.input = edit_heads(output.input, part, block, R, edit.scope, later)
            if part.mlp_scale is not None and block.edits_mlp(part.mlp_scale):
                mlp = block.mlp(layer)
                edited = _edit_mlp(mlp_rows(mlp.output, B), part.mlp_scale, R, edit.scope, later)
                mlp.output = with_mlp_rows(mlp.output, edited)
        hidden = vlm.text_norm.output.save()
    scores = prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))
    clean = scores[:, 0]
    # A variant that no layer changes was never copied, so its scores are those of the clean row.
    rows = torch.empty(len(variants), dtype=torch.long)
    rows[order] = torch.where(starts < vlm.n_layers, torch.arange(1, len(order) + 1), 0)
    return clean, scores[:, rows.to(scores.device)]


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
    with prefix.state_layers(vlm), attention(vlm.decoder), vlm.text.trace(**prefix.inputs(apart=vlm.parts.keys_as_cached)):
        for block in vlm.head_layers:
            layer = vlm.text_layers[block.number]
            heads.append(block.split(block.output(layer).input[:, 0].clone(), vlm.head_dim))
            if block.mlp_name is not None:
                mlps.append(mlp_rows(block.mlp(layer).output, len(prefix.choices.tokens))[:, 0].clone())
        hidden = vlm.text_norm.output.save()
    device = hidden.device
    z = torch.stack([h.to(device) for h in heads], 1)
    scores = prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))
    mlp = torch.stack([m.to(device) for m in mlps], 1) if mlps else z.new_full((*z.shape[:2], vlm.d_model), float("nan"))
    return z, mlp, scores[:, 0]


def with_copies(inputs: tuple[tuple, dict[str, Any]], R: int, n: int, new: int) -> tuple[tuple, dict[str, Any]]:
    """A layer's inputs with `new` more copies of the clean rows, and positions for the clean rows and n variants."""
    (hidden, *rest), kwargs = inputs
    if new:
        hidden = torch.cat([hidden, hidden[:, :R].repeat(1, new, 1)], 1)
    if R > 1:
        again = {name: _repeated(kwargs[name], n + 1) for name in ("position_embeddings", "position_ids") if kwargs.get(name) is not None}
        kwargs = kwargs | again
    return (hidden, *rest), kwargs


def _repeated(positions: Any, n: int) -> Any:
    """Positions [..., R] of rows, or their rotary angles [..., R, D], n times."""
    if isinstance(positions, tuple):
        return tuple(_repeated(part, n) for part in positions)
    angles = positions.is_floating_point() or positions.is_complex()
    return positions.repeat(1, n, 1) if angles else positions.tile(n)


def edit_heads(z: Tensor, part: LayerEdit, block: HeadLayer, R: int, scope: str, later: int = 0) -> Tensor:
    """z [B, (1 + n) * R, H * D] with the heads of the variants edited; the clean rows are passed on unchanged, bit for bit.

    So are the last `later` variants, whose first edited layer comes later.
    """
    kept, end = (1 + part.first) * R, z.shape[1] - later * R
    heads = rearrange(z[:, kept:end], "b (n r) (h d) -> b n r h d", r=R, h=block.n_heads)
    scale = None if part.scale is None else part.scale[:, :, None]
    shift = None if part.shift is None else part.shift[:, :, None, :, : block.head_dim]
    if scope == "last" and R > 1:
        edited = torch.cat([affine(heads[:, :, :1], scale, shift), heads[:, :, 1:]], 2)
    else:
        edited = affine(heads, scale, shift)
    return torch.cat([z[:, :kept], rearrange(edited, "b n r h d -> b (n r) (h d)"), z[:, end:]], 1)


def _edit_mlp(out: Tensor, factor: Tensor, R: int, scope: str, later: int = 0) -> Tensor:
    end = out.shape[1] - later * R
    rows = rearrange(out[:, R:end], "b (n r) d -> b n r d", r=R)
    factor = factor.to(out.device)[None, :, None, None]
    edited = rows * factor if scope != "last" or R == 1 else torch.cat([rows[:, :, :1] * factor, rows[:, :, 1:]], 2)
    return torch.cat([out[:, :R], rearrange(edited, "b n r d -> b (n r) d").to(out.dtype), out[:, end:]], 1)
