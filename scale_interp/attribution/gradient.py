"""First-order attribution: every head on every question in one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ..core.arguments import OwnCheck, checked
from ..data.contrast import Contrast
from ..data.items import groups, require
from ..data.question import Question
from ..errors import EditError
from ..execution.batches import BatchResult, map_batches
from ..interventions.edit import Edit
from ..interventions.engine import Path, require_packed
from ..interventions.packed import last_token, run_edited
from ..interventions.parts import halving, joined_parts
from ..interventions.places import Places
from ..interventions.positions import PromptBatches, batches_of, choose_path_at
from ..interventions.prefix import Prefix, PrefixStore
from ..vlm.token_groups import At, positions_at
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap
from .metric import Metric, contrast_diff, measure
from .patching import clean_sides
from .position_patching import by_head, checked_gap, counted_places, patch_heads_at, with_slopes


@checked
def attribute(
    vlm: VLM,
    items: Sequence[Contrast] | Sequence[Question],
    *,
    metric: Metric = "logit_diff",
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    at: Annotated[At, OwnCheck()] = "last",
) -> HeadMap:
    """Estimate by gradients what patching (given pairs) or zero ablation (given questions) would measure.

    Pairs: attribution patching, (z_clean - z_corrupt) . dm/dz at the corrupt run, divided by the mean of m_clean - m_corrupt
    (Nanda 2023; the corrupt run is patched, as in `patch`). Questions: the derivative of the metric with respect to the head's scale
    at 1, which is zero ablation's score to first order.

    Args:
        vlm: the model, from `si.load`.
        items: Q pairs from `si.contrasts`, or Q questions.
        metric: of questions, "logit_diff" (logits) or "correct_prob"; of pairs it is always the logit difference.
        path: "auto" or "packed"; there is no reference path.
        prompts: the questions' prefixes, to reuse; of pairs, those of the corrupt questions.
        at: at which tokens: "last", another group of `vlm.token_groups`, a list of groups, or token numbers.

    Returns:
        A HeadMap, per_question [Q, L, H]: a recovered fraction for pairs, units of the metric for questions.

    Raises:
        EditError: for metric "accuracy", which has no gradient, and for a model or path that is not packed.
        DataError: where clean and corrupt questions give the same logit difference.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> attribute(vlm, si.contrasts(qs)).unit
    'recovered fraction'
    """
    if metric == "accuracy":
        raise EditError("accuracy has no gradient: use metric='logit_diff' or 'correct_prob'")
    items = require(items, Contrast if isinstance(next(iter(items), None), Contrast) else Question)
    if at != "last":
        if isinstance(items[0], Contrast):
            return patch_heads_at(vlm, items, at, path, gradient=True)  # type: ignore[arg-type]
        return _ablation_at(vlm, items, metric, at, path)  # type: ignore[arg-type]
    require_packed(vlm, _questions(items), path, "attribute")
    if isinstance(items[0], Contrast):
        clean, corrupt = ([getattr(pair, side) for pair in items] for side in ("clean", "corrupt"))
        at_corrupt = prompts or PrefixStore(vlm, corrupt, keep=False)
        at_corrupt.require(vlm, corrupt)
        return attribution_patching(vlm, items, PrefixStore(vlm, clean, keep=False), at_corrupt)  # type: ignore[arg-type]
    if prompts is not None:
        prompts.require(vlm, items)  # type: ignore[arg-type]
    return _ablation(vlm, items, metric, prompts or PrefixStore(vlm, items, keep=False))  # type: ignore[arg-type]


def _questions(items: Sequence[Contrast] | Sequence[Question]) -> list[Question]:
    return [i.corrupt if isinstance(i, Contrast) else i for i in items]


def attribution_patching(vlm: VLM, pairs: Sequence[Contrast], at_clean: PrefixStore, at_corrupt: PrefixStore) -> HeadMap:
    """`attribute` on pairs behind prompts that may have been read before; the clean ones may be among others."""
    z, scores = clean_sides(vlm, pairs, at_clean, "packed")
    work = partial(patching_work, pairs=tuple(pairs), z_clean=z.cpu(), clean_scores=scores.cpu())
    found = [*map_batches(vlm, at_corrupt, work, "gradients")]
    effects, gap = torch.cat([part["effects"] for part in found]), checked_gap(torch.cat([part["gaps"] for part in found]))
    made = provenance(vlm, pairs, metric="recovered logit_diff", path="packed", gap=gap)
    return HeadMap("attribution patching", "recovered fraction", effects / gap, torch.from_numpy(groups(pairs)), made)


def patching_work(vlm: VLM, corrupt: Prefix, pairs: Sequence[Contrast], z_clean: Tensor, clean_scores: Tensor) -> BatchResult:
    """One batch's estimates [B, L, H] in logits, and m_clean - m_corrupt [B]."""
    return joined_parts(vlm, corrupt, 1, lambda part: _patched(vlm, part, pairs, z_clean, clean_scores))


def _patched(vlm: VLM, corrupt: Prefix, pairs: Sequence[Contrast], z_clean: Tensor, clean_scores: Tensor) -> BatchResult:
    members = pairs[corrupt.rows]
    z_corrupt, _, corrupt_scores = last_token(vlm, corrupt)
    z_clean, clean_scores = (t[corrupt.rows].to(z_corrupt.device) for t in (z_clean, clean_scores))
    shift = torch.zeros_like(z_corrupt)[:, None].requires_grad_()
    scores = _edited(vlm, corrupt, Edit(shift=shift))
    (slope,) = torch.autograd.grad(contrast_diff(scores, members).sum(), shift)
    gaps = contrast_diff(clean_scores, members) - contrast_diff(corrupt_scores, members)
    wide = torch.promote_types(z_clean.dtype, torch.float32)  # a sum of half's products would be half's
    return {"effects": ((z_clean.to(wide) - z_corrupt.to(wide)) * slope[:, 0].to(wide)).sum(-1), "gaps": gaps}


def _ablation(vlm: VLM, questions: Sequence[Question], name: Metric, prompts: PrefixStore) -> HeadMap:
    work = partial(ablation_work, questions=tuple(questions), metric=name)
    slopes = [part["slope"] for part in map_batches(vlm, prompts, work, "gradients")]
    made = provenance(vlm, questions, metric=name, path="packed")
    return HeadMap("gradient", name.replace("_", " "), torch.cat(slopes), torch.from_numpy(groups(questions)), made)


def _ablation_at(vlm: VLM, questions: Sequence[Question], name: Metric, at: At, path: Path) -> HeadMap:
    if choose_path_at(vlm, questions[0], path) != "packed":
        raise EditError(f"attribute needs gradients, which only the packed path has, but {vlm.name} runs on the reference path: use ablate")
    batches = batches_of(vlm, questions)
    work = partial(ablation_at_work, metric=name, at=at)
    slopes = [part["slope"] for part in map_batches(vlm, PromptBatches(questions, max(1, batches.size // 4)), work, "gradients")]
    made = provenance(vlm, questions, metric=name, path="packed", at=at)
    return HeadMap(f"gradient at {at}", name.replace("_", " "), torch.cat(slopes), torch.from_numpy(groups(questions)), made)


@halving
def ablation_at_work(vlm: VLM, batch: tuple[slice, Sequence[Question]], metric: Metric, at: At) -> BatchResult:
    """One batch's derivatives [B, L, H] with respect to each head's scale at tokens."""
    _, questions = batch
    positions = [positions_at(vlm, q, at) for q in questions]
    read, slopes = with_slopes(vlm, questions, "head", lambda scores: measure(metric, scores, questions))
    places = Places.of(read.columns(positions), vlm.device)
    counted = counted_places(places, positions)[..., None]
    found = [
        places.take(layer.component("head").detach()) * places.take(slope) * counted
        for layer, slope in zip(read.layers, slopes, strict=True)
    ]
    return {"slope": torch.stack([by_head(product, vlm.n_heads) for product in found], 1)}


def ablation_work(vlm: VLM, prefix: Prefix, questions: Sequence[Question], metric: Metric) -> BatchResult:
    """One batch's derivatives [B, L, H] of the metric with respect to each head's scale, for the answers of these questions."""
    return joined_parts(vlm, prefix, 1, lambda part: _slopes(vlm, part, questions[part.rows], metric))


def _slopes(vlm: VLM, prefix: Prefix, members: Sequence[Question], metric: Metric) -> BatchResult:
    scale = torch.ones(len(members), 1, vlm.n_layers, vlm.n_heads, dtype=torch.float32, device=vlm.device, requires_grad=True)
    (slope,) = torch.autograd.grad(measure(metric, _edited(vlm, prefix, Edit(scale=scale)), members).sum(), scale)
    return {"slope": slope[:, 0]}


def _edited(vlm: VLM, prefix: Prefix, edit: Edit) -> Tensor:
    """Scores [B, C] of the edited row, with the graph; the edit's question axis is this batch's own."""
    return run_edited(vlm, replace(prefix, rows=slice(None)), edit)[:, 0]
