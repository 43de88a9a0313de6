"""Packed edits at any tokens: what lies before the first edited token is read once, and all variants run the rest side by side.

A variant starts at the first layer that its edit changes, from the clean run's own residual stream ("staircase").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..errors import MemoryWarning, ModelError
from ..execution.memory import release, working_bytes
from ..vlm.cache import with_cache
from ..vlm.decoder import stream_of
from ..vlm.vlm import VLM
from .edit import Edit, Positioned
from .knockout.cut import Cut, cut_of_suffix, cut_suffix, reached
from .knockout.edit import AttentionEdit
from .places import Places, edited
from .rows import attention
from .suffix_attention import NAME, Seen
from .whole_prompt import Start, WholePrompts, layer_arguments, places_of


def run_suffix(
    vlm: VLM,
    prompts: WholePrompts,
    edit: Positioned,
    positions: Sequence[Sequence[int]],
    variants: Int[Tensor, " variants"] | None = None,
    rows: slice = slice(None),
    start: Start | None = None,
) -> tuple[Float[Tensor, "questions choices"], Float[Tensor, "questions variants choices"]]:
    """Choice scores of the clean run and of the chosen variants, edited at these positions of each prompt.

    In float32 the clean scores are those of the reading. In half precision a clean copy is run as well, so that rounding cancels in
    differences.

    Args:
        vlm: The model.
        prompts: B prompts that were read in full.
        edit: The edit.
        positions: The edited tokens of each prompt.
        variants: The numbers of the variants to run; all of them by default.
        rows: Which of the caller's questions these are.
        start: Where the run begins; by default at the first column that the edit can reach.

    Returns:
        Clean scores [B, C] and edited scores [B, n, C].
    """
    L = vlm.n_layers
    variants = torch.arange(edit.n_variants) if variants is None else variants
    starts = edit.starts(L)[variants]
    order = starts.argsort(stable=True)
    alive, starts = variants[order], starts[order]
    if not (starts < L).any():
        return prompts.clean, prompts.clean[:, None].expand(-1, len(variants), -1)
    own = Start(prompts.first_reached(prompts.columns(positions)), prompts)
    start = own if start is None else start
    places = Places.of(places_of(prompts, positions, start.first), vlm.device)
    touched = torch.ones_like(places.used)
    cut = None
    if start is own:  # a prompt without an edited token is the clean run, bit for bit
        touched = places.used
        if isinstance(edit, AttentionEdit):
            cut = cut_of_suffix(vlm, prompts, edit, alive, start.first)
            touched = touched & reached(cut, prompts, start.first)
    lead = int(vlm.dtype != torch.float32)
    together = start.before is prompts
    scores = _layers(vlm, prompts, start, edit, alive, starts, rows, places, lead if together else 0, cut)
    clean = prompts.clean.to(scores.device)
    if lead and together:
        clean, scores = scores[:, 0], scores[:, 1:]
    elif lead:
        unedited, nothing = Edit.identity(L, vlm.n_heads), torch.zeros(1, dtype=torch.long)
        clean = _layers(vlm, prompts, Start(start.first, prompts), unedited, nothing, starts[:1], rows, places, 0, None)[:, 0]
    ran = torch.cat([torch.where(touched.to(scores.device)[:, None, None], scores, clean[:, None]), clean[:, None]], 1)
    row = torch.empty(len(variants), dtype=torch.long)
    row[order] = torch.where(starts < L, torch.arange(len(order)), ran.shape[1] - 1)
    return clean, ran[:, row.to(ran.device)]


def _layers(
    vlm: VLM,
    prompts: WholePrompts,
    start: Start,
    edit: Positioned,
    alive: Int[Tensor, " variants"],
    starts: Int[Tensor, " variants"],
    rows: slice,
    places: Places,
    lead: int,
    cut: Cut | None,
) -> Float[Tensor, "questions runs choices"]:
    """Choice scores of `lead` clean copies and of the variants that start before the last layer, sorted by their first layer."""
    B, first, total = len(prompts.questions), start.first, prompts.layers[0].hidden.shape[1]
    hidden: Tensor | None = None
    with vlm.alone(), attention(vlm.decoder, NAME):
        for number, (block, read, prefix) in enumerate(zip(vlm.head_layers, prompts.layers, start.before.layers, strict=True)):
            n, new = int((starts <= number).sum()), int((starts == number).sum())
            if n == 0:
                continue
            if new:
                more = new + (lead if hidden is None else 0)
                copies = read.hidden[:, first:].unsqueeze(1).expand(-1, more, -1, -1)
                hidden = copies if hidden is None else torch.cat([hidden, copies.to(hidden.device)], 1)
            assert hidden is not None
            before = (prefix.keys[:, :, :first], prefix.values[:, :, :first], read.seen[:, :, first:, :first]) if first else ()
            seen = Seen(read.seen[:, :, first:, first:], *before)
            seen.change = None if cut is None else partial(cut_suffix, cut, number, lead)
            given = with_cache(layer_arguments(read.given, total, first, lead + n), None) | {"attention_mask": seen}
            with edited(block, edit.changes(number, alive[:n], starts[:n], rows), places, lead):
                out = block.module(hidden.flatten(0, 1), **given)
            hidden = stream_of(out).unflatten(0, (B, -1))
            if read.between is not None:
                hidden = hidden + read.between[:, None, first:].to(hidden.device)
        assert hidden is not None
        return prompts.choices.read(vlm, vlm.norm(hidden[:, :, -prompts.rows :]))


def suffix_batch(
    vlm: VLM,
    prompts: WholePrompts,
    edit: Positioned,
    positions: Sequence[Sequence[int]],
    rows: slice = slice(None),
    variants: Int[Tensor, " variants"] | None = None,
    start: Start | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `run_suffix` in chunks that fit in memory; a chunk is halved where memory runs out nevertheless.

    Returns:
        Edited and clean scores, each [B, n, C].

    Raises:
        ModelError: There is not enough memory for a single variant.
    """
    variants = torch.arange(edit.n_variants) if variants is None else variants
    order = edit.starts(vlm.n_layers)[variants].argsort(stable=True)
    by_start = variants[order]
    found: list[Tensor] = []
    clean: list[Tensor] = []
    done, at_once = 0, variants_at_once(vlm, prompts, start.first if start else prompts.first_reached(prompts.columns(positions)))
    while done < len(by_start):
        chunk = by_start[done : done + at_once]
        try:
            clean_row, scores = run_suffix(vlm, prompts, edit, positions, chunk, rows, start)
        except Exception as error:
            if not out_of_memory(error) or len(chunk) == 1:
                if out_of_memory(error):
                    raise ModelError(f"{vlm.name}: no memory for one edit on {len(positions)} prompt(s): give fewer at once") from error
                raise
            at_once = len(chunk) // 2
            release(vlm.device)
            warnings.warn(f"{vlm.name}: no memory for {len(chunk)} edits at once; continuing with {at_once}", MemoryWarning, stacklevel=4)
            continue
        found.append(scores)
        clean.append(clean_row[:, None].expand_as(scores))
        done += len(chunk)
    back = order.argsort()
    return torch.cat(found, 1)[:, back], torch.cat(clean, 1)[:, back]


def variants_at_once(vlm: VLM, prompts: WholePrompts, first: int) -> int:
    """How many variants one packed call, which begins at this column, runs within its working memory."""
    total = prompts.layers[0].hidden.shape[1]
    config = vlm.hf_model.config.get_text_config()
    wide = 3 * (getattr(config, "intermediate_size", 0) or 0) + 8 * vlm.d_model
    scores = 0 if vlm.device.type == "cpu" else 3 * vlm.n_heads * total
    return max(1, working_bytes(vlm) // (len(prompts.questions) * (total - first) * 4 * (wide + scores)))
