"""The packed path: the last token of each prompt is run once, together with N edited copies.

In a causal decoder an edit at the last position cannot change the keys and values before it, so all copies share those of the
prompt. A copy joins at the first layer that its edit changes ("staircase"): below that layer it equals the clean row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.there import there
from ..vlm.decoder import HeadLayer, mlp_rows, with_mlp_rows
from ..vlm.mode import require_ready
from ..vlm.vlm import VLM
from .edit import Edit, LayerEdit, Variants, affine
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
    scores = _run(vlm, prefix, edit, variants[order], starts[order])
    starts = starts[order]
    clean = scores[:, 0]
    # A variant that no layer changes was never copied, so its scores are those of the clean row.
    rows = torch.empty(len(variants), dtype=torch.long)
    rows[order] = torch.where(starts < vlm.n_layers, torch.arange(1, len(order) + 1), 0)
    return clean, scores[:, there(rows, scores.device)]


def run_edited(vlm: VLM, prefix: Prefix, edit: Edit) -> Float[Tensor, "questions variants choices"]:
    """Choice scores [B, N, C] of all variants without the clean row, which gradients do not need.

    Args:
        vlm: The model, as `require_packed` has found it fit for gradients; a fit's steps take too little time to look again.
        prefix: B prompts that were read.
        edit: The edit.
    """
    every = torch.arange(edit.n_variants)
    return _run(vlm, prefix, edit, every, torch.zeros_like(every), clean=False)


def _run(
    vlm: VLM, prefix: Prefix, edit: Variants | None, alive: Int[Tensor, " alive"], starts: Int[Tensor, " alive"], clean: bool = True
) -> Float[Tensor, "questions rows choices"]:
    """Scores of the clean row, where it runs too, and behind it of these variants, ordered by the layers at which they start.

    With the clean row, variants join it where they start, unless layers hand on more than the residual stream (`VLM.staircase`).
    """
    R, join = prefix.choices.tokens.shape[1], clean and vlm.staircase
    copies = clean + (0 if join else len(alive))
    edit = edit.near(vlm.device) if isinstance(edit, Edit) else edit
    cut = isinstance(edit, AttentionEdit)
    attend = cut_rows(vlm, prefix, edit, alive) if isinstance(edit, AttentionEdit) else attention(vlm.decoder)
    inputs = prefix.inputs(copies, apart=vlm.parts.keys_as_cached and not cut)
    with prefix.state_layers(vlm), attend, _edited(vlm, prefix, edit, alive, starts, int(clean), join), _normed(vlm) as found:
        vlm.decoder(**inputs)
    (hidden,) = found
    return prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))


@contextmanager
def _edited(vlm: VLM, prefix: Prefix, edit: Variants | None, alive: Tensor, starts: Tensor, lead: int, join: bool) -> Iterator[None]:
    """A block in which a pass of the decoder edits these variants' rows, which follow `lead` clean ones, or join them where they start.

    Hooks of torch do it: behind prompts that were read a pass is short, and an nnsight trace would take a good part of its time. As in a
    trace, an edit comes after what other hooks do before a module, and before what they do behind it.
    """
    if edit is None or not len(alive):
        yield
        return
    R, B = prefix.choices.tokens.shape[1], len(prefix.choices.tokens)
    layers = starts.tolist()
    # Both hooks of a layer ask for its part of the edit.
    part = lru_cache(1)(lambda row: edit.part(row, alive[: (on := bisect_right(layers, row))], starts[:on], prefix.rows))

    def later(row: int) -> int:
        return 0 if join else len(layers) - bisect_right(layers, row)

    def more(row: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        n, new = bisect_right(layers, row), layers.count(row)
        return with_copies((args, kwargs), R, n, new) if new or R > 1 else None

    def heads(row: int, module: nn.Module, args: tuple) -> tuple | None:
        its = part(row)
        if its is None or (its.scale is None and its.shift is None):
            return None
        return (edit_heads(args[0], its, vlm.head_layers[row], R, edit.scope, later(row), lead), *args[1:])

    def mlp(row: int, module: nn.Module, args: tuple, out: Any) -> Any:
        its = part(row)
        if its is None or its.mlp_scale is None:
            return None
        return with_mlp_rows(out, _edit_mlp(mlp_rows(out, B), its.mlp_scale, R, edit.scope, later(row), lead))

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # what was compiled before does not see hooks
        for row, block in enumerate(vlm.head_layers):
            if bisect_right(layers, row) == 0:
                continue
            if join:
                stack.callback(block.module.register_forward_pre_hook(partial(more, row), with_kwargs=True).remove)
            stack.callback(block.output().register_forward_pre_hook(partial(heads, row)).remove)
            if block.mlp_name is not None or ((its := part(row)) is not None and block.edits_mlp(its.mlp_scale)):
                stack.callback(block.mlp().register_forward_hook(partial(mlp, row), prepend=True).remove)
        yield


@contextmanager
def _normed(vlm: VLM) -> Iterator[list[Tensor]]:
    """A block whose passes of the decoder leave the output of the norm behind its last layer in the list."""
    found: list[Tensor] = []
    hook = vlm.norm.register_forward_hook(lambda module, args, out: found.append(out), prepend=True)
    try:
        yield found
    finally:
        hook.remove()


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


def edit_heads(z: Tensor, part: LayerEdit, block: HeadLayer, R: int, scope: str, later: int = 0, lead: int = 1) -> Tensor:
    """z [B, (lead + n) * R, H * D] with the heads of the variants edited; the clean rows are passed on unchanged, bit for bit.

    So are the last `later` variants, whose first edited layer comes later.
    """
    kept, end = (lead + part.first) * R, z.shape[1] - later * R
    heads = z[:, kept:end].unflatten(2, (block.n_heads, -1)).unflatten(1, (-1, R))
    scale = None if part.scale is None else part.scale[:, :, None]
    shift = None if part.shift is None else part.shift[:, :, None, :, : block.head_dim]
    if scope == "last" and R > 1:
        edited = torch.cat([affine(heads[:, :, :1], scale, shift), heads[:, :, 1:]], 2)
    else:
        edited = affine(heads, scale, shift)
    rows = edited.flatten(3).flatten(1, 2)
    return torch.cat([z[:, :kept], rows, z[:, end:]], 1) if kept or later else rows


def _edit_mlp(out: Tensor, factor: Tensor, R: int, scope: str, later: int, lead: int) -> Tensor:
    kept, end = lead * R, out.shape[1] - later * R
    rows = out[:, kept:end].unflatten(1, (-1, R))
    factor = there(factor, out.device)[None, :, None, None]
    edited = rows * factor if scope != "last" or R == 1 else torch.cat([rows[:, :, :1] * factor, rows[:, :, 1:]], 2)
    edited = edited.flatten(1, 2).to(out.dtype)
    return torch.cat([out[:, :kept], edited, out[:, end:]], 1) if kept or later else edited
