"""Activation patching at token groups: where in the prompt, and from which layer on, the model knows what the answer depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import Raises, checked
from ..data.contrast import Contrast
from ..data.items import groups as image_groups
from ..data.items import require
from ..errors import DataError, EditError
from ..execution.batches import BatchResult, map_batches
from ..interventions.capture import token_values
from ..interventions.edit import Component
from ..interventions.engine import Path
from ..interventions.parts import halving
from ..interventions.places import Places
from ..interventions.positions import batches_of, choose_path_at, reference_at
from ..interventions.source_sweep import SourceSweep, patch_from
from ..interventions.whole_prompt import WholePrompts, read_whole
from ..vlm.token_groups import At, Groups, group_of, positions_at
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap
from .metric import contrast_diff
from .position_map import PositionMap

Streams = Annotated[Literal["resid", "attn", "mlp"], Raises(EditError)]
GROUPS = ("image", "box:subject", "box:object", "question", "subject", "object", "options", "last")
"""The token groups that are patched unless others are named, where every pair has them."""
Positions = Sequence[Sequence[int]]


@checked
def patch_positions(
    vlm: VLM,
    pairs: Sequence[Contrast],
    component: Streams = "resid",
    groups: Sequence[str] | None = None,
    *,
    gradient: bool = False,
    path: Path = "auto",
) -> PositionMap:
    """The fraction of the logit difference that a component's clean values at a token group recover in the corrupt run, by layer.

    This is causal tracing (Meng et al. 2022) with clean values in place of noise (Heimersheim & Nanda 2024): score =
    mean(m_patched - m_corrupt) / mean(m_clean - m_corrupt), with m the clean answer's score minus the corrupt answer's.

    A box is patched in the union of its tokens in both images, place by place, as it may have moved. Any other group is patched token by
    token in order, so it must have as many tokens in the clean prompt as in the corrupt one.

    Args:
        vlm: the model, from `si.load`.
        pairs: Q pairs from `si.contrasts`.
        component: "resid", the residual stream before a layer; "attn", the attention output; or "mlp", the MLP output.
        groups: names of token groups of every pair; by default the image, the boxes and words of subject and object, the question, its
            options and the last token, where every pair has them.
        gradient: whether to estimate all scores to first order, (clean - corrupt) . dm/dx, from one backward pass (attribution
            patching, Nanda 2023).
        path: "packed" reads each prompt once and runs what follows the first patched token, "reference" runs whole forward passes, "auto"
            chooses.

    Returns:
        A PositionMap, per_question [Q, L, G]: recovered fractions.

    Raises:
        DataError: for a pair without a group or with another number of tokens in it, and where clean and corrupt questions give the same
            logit difference.
        EditError: for gradient=True on a model that runs on the reference path.

    >>> import scale_interp as si
    >>> pairs = si.contrasts(si.load_questions("scenes/relation", n=2))
    >>> pm = patch_positions(si.load("demo"), pairs, groups=("image", "subject", "last"))
    >>> pm.scores.shape, round(float(pm.scores[0, 0]), 3)
    (torch.Size([6, 3]), 1.0)
    """
    pairs = require(pairs, Contrast)
    places = [pair_groups(vlm, pair) for pair in pairs]
    names = (
        tuple(groups) if groups is not None else tuple(n for n in GROUPS if all(n in clean and n in corrupt for clean, corrupt in places))
    )
    if not names:
        raise DataError("no token groups: name at least one, such as groups=('image', 'last')")
    aligned = [tuple(align(pair, *both, name) for name in names) for pair, both in zip(pairs, places, strict=True)]
    effects, gaps, path = _run(vlm, pairs, aligned, component, path, gradient)
    gap = checked_gap(gaps)
    made = provenance(vlm, pairs, metric="recovered logit_diff", path=path, gap=gap, gaps=gaps.tolist(), gradient=gradient)
    return PositionMap(
        "attribution patching" if gradient else "patch",
        "recovered fraction",
        component,
        names,
        (effects / gap).unflatten(1, (len(names), -1)).transpose(1, 2).contiguous(),
        torch.from_numpy(image_groups(pairs)),
        tuple(p.clean.relation or p.clean.answer_text for p in pairs),
        made,
    )


def patch_heads_at(vlm: VLM, pairs: Sequence[Contrast], at: At, path: Path, gradient: bool = False) -> HeadMap:
    """Recovered fractions of all heads at a token group: `patch` and `attribute` with at=..."""
    aligned = [(align(pair, *pair_groups(vlm, pair, at), at),) for pair in pairs]
    effects, gaps, path = _run(vlm, pairs, aligned, "head", path, gradient)
    gap = checked_gap(gaps)
    made = provenance(vlm, pairs, metric="recovered logit_diff", path=path, gap=gap, at=at)
    name = "attribution patching" if gradient else "patch"
    per_question = (effects / gap).unflatten(1, (vlm.n_layers, vlm.n_heads))
    return HeadMap(f"{name} at {at}", "recovered fraction", per_question, torch.from_numpy(image_groups(pairs)), made)


def checked_gap(gaps: Tensor) -> float:
    """The mean of m_clean - m_corrupt, or DataError where it is 0."""
    gap = float(gaps.mean())
    if abs(gap) < 1e-6:
        raise DataError("clean and corrupt questions give the same logit difference, so there is nothing to recover: use other pairs")
    return gap


def pair_groups(vlm: VLM, pair: Contrast, at: At | None = None) -> tuple[Groups, Groups]:
    """The token groups of the clean and the corrupt prompt; `at` adds groups that are given by number, under the name ''."""
    both = tuple(vlm.token_groups(q) for q in (pair.clean, pair.corrupt))
    if at is not None and not isinstance(at, str):
        for question, found in zip((pair.clean, pair.corrupt), both, strict=True):
            found[""] = positions_at(vlm, question, at)
    return both  # type: ignore[return-value]


def align(pair: Contrast, clean: Groups, corrupt: Groups, name: At) -> tuple[list[int], list[int]]:
    """Tokens of the clean prompt, and those of the corrupt prompt in whose place they are put.

    Raises:
        DataError: A prompt has no such group, or the two have it in different length.
    """
    key = name if isinstance(name, str) else ""
    both = group_of(pair.clean, clean, key), group_of(pair.corrupt, corrupt, key)
    if key.startswith("box:") and clean["image"] == corrupt["image"]:
        union = sorted({*both[0], *both[1]})
        return union, union
    if len(both[0]) != len(both[1]):
        raise DataError(
            f"contrast {pair.id}: token group {key!r} has {len(both[0])} tokens in the clean prompt and {len(both[1])} in the corrupt one, "
            "so they cannot be patched one by one: leave the pair out, or choose another group"
        )
    return both


@dataclass(frozen=True)
class PairBatches:
    """Pairs in batches, with their aligned tokens: (pairs, aligned)."""

    pairs: Sequence[Contrast]
    aligned: Sequence[tuple[tuple[list[int], list[int]], ...]]
    size: int

    @property
    def plan(self) -> Callable[[VLM], PairBatches]:
        """Makes the same batches for the model of another process."""
        return partial(pair_batches, tuple(self.pairs), tuple(self.aligned), self.size)

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.size)

    def __getitem__(self, index: int) -> tuple[Sequence[Contrast], Sequence[tuple[tuple[list[int], list[int]], ...]]]:
        index = range(len(self))[index]
        rows = slice(index * self.size, (index + 1) * self.size)
        return self.pairs[rows], self.aligned[rows]


def pair_batches(pairs: Sequence[Contrast], aligned: Sequence[tuple], size: int, vlm: VLM) -> PairBatches:
    """The same batches for the model of another process."""
    return PairBatches(pairs, aligned, size)


def _run(
    vlm: VLM, pairs: Sequence[Contrast], aligned: Sequence[tuple], component: Component, path: Path, gradient: bool
) -> tuple[Tensor, Tensor, Path]:
    """Effects in logits [Q, G * V] for the V variants of each group, and m_clean - m_corrupt [Q]."""
    corrupt = [p.corrupt for p in pairs]
    path = choose_path_at(vlm, corrupt[0], path)
    if gradient and path != "packed":
        raise EditError(f"gradients at tokens need the packed path, but {vlm.name} runs on the reference path: use gradient=False or patch")
    size = 1 if path == "reference" else max(1, batches_of(vlm, corrupt).size // (4 if gradient else 2))
    work = partial(gradient_work if gradient else packed_work if path == "packed" else whole_work, component=component)
    found = [*map_batches(vlm, PairBatches(pairs, aligned, size), work, "gradients" if gradient else "patching")]
    effects, gaps = (torch.cat([part[name] for part in found]) for name in ("effects", "gaps"))
    return effects, gaps, path


@halving
@torch.no_grad()
def packed_work(vlm: VLM, batch: tuple[Sequence[Contrast], Sequence[tuple]], component: Component) -> BatchResult:
    """One batch's effects [B, G * V], each prompt read once."""
    pairs, aligned = batch
    clean = read_whole(vlm, [p.clean for p in pairs], components=(component,))
    corrupt = read_whole(vlm, [p.corrupt for p in pairs])
    before = contrast_diff(corrupt.clean, pairs)
    effects = []
    for from_clean, to_corrupt in _by_group(aligned):
        found, unpatched = patch_from(vlm, clean, corrupt, component, from_clean, to_corrupt)
        effects.append(contrast_diff(found, pairs) - contrast_diff(unpatched, pairs))
    return {"effects": torch.cat(effects, 1), "gaps": contrast_diff(clean.clean, pairs) - before}


@torch.no_grad()
def whole_work(vlm: VLM, batch: tuple[Sequence[Contrast], Sequence[tuple]], component: Component) -> BatchResult:
    """One pair's effects [1, G * V], in whole forward passes."""
    (pair,), aligned = batch
    values = token_values(vlm, [pair.clean], (component,))[0][component]
    m = lambda scores: contrast_diff(scores[None], [pair])  # noqa: E731
    clean, corrupt = (m(reference_at(vlm, q, None, [])) for q in (pair.clean, pair.corrupt))
    effects = []
    for (from_clean,), (to_corrupt,) in _by_group(aligned):
        sweep = SourceSweep(component, [*values[:, :, from_clean]], vlm.n_heads)
        effects.append(m(reference_at(vlm, pair.corrupt, sweep, to_corrupt)) - corrupt)
    return {"effects": torch.cat(effects, 1), "gaps": (clean - corrupt)[:, 0]}


@halving
def gradient_work(vlm: VLM, batch: tuple[Sequence[Contrast], Sequence[tuple]], component: Component) -> BatchResult:
    """One batch's estimates [B, G * V], all from one backward pass."""
    pairs, aligned = batch
    with torch.no_grad():
        clean = read_whole(vlm, [p.clean for p in pairs], components=(component,))
    corrupt, slopes = with_slopes(vlm, [p.corrupt for p in pairs], component, lambda scores: contrast_diff(scores, pairs))
    effects = []
    for from_clean, to_corrupt in _by_group(aligned):
        theirs, mine = (Places.of(read.columns(at), vlm.device) for read, at in ((clean, from_clean), (corrupt, to_corrupt)))
        counted = counted_places(mine, to_corrupt)
        for read, before, slope in zip(clean.layers, corrupt.layers, slopes, strict=True):
            change = theirs.take(read.component(component)) - mine.take(before.component(component).detach())
            product = change * mine.take(slope) * counted[..., None]
            effects.append(by_head(product, vlm.n_heads) if component == "head" else product.sum((1, 2))[:, None])
    with torch.no_grad():
        gaps = contrast_diff(clean.clean, pairs) - contrast_diff(corrupt.clean.detach(), pairs)
    return {"effects": torch.cat(effects, 1).detach(), "gaps": gaps}


def with_slopes(
    vlm: VLM, questions: Sequence, component: Component, metric: Callable[[Tensor], Float[Tensor, " questions"]]
) -> tuple[WholePrompts, Sequence[Tensor]]:
    """Prompts that were read in full, and the derivative of each one's metric with respect to a component's values, [B, T, F] per layer."""
    read = read_whole(vlm, questions, components=(component,), grad=True)
    values = [layer.component(component) for layer in read.layers]
    slopes = torch.autograd.grad(metric(read.clean).sum(), values, allow_unused=True)
    return read, [torch.zeros_like(v) if slope is None else slope for v, slope in zip(values, slopes, strict=True)]


def counted_places(places: Places, positions: Positions) -> Float[Tensor, "questions places"]:
    """1 for each place of a question, 0 where a shorter group repeats one."""
    P = places.index.shape[1]
    return torch.tensor([[float(i < len(own)) for i in range(P)] for own in positions], device=places.index.device)


def by_head(products: Float[Tensor, "questions places width"], n_heads: int) -> Float[Tensor, "questions heads"]:
    """Sums over the places and over each head's numbers."""
    return products.unflatten(-1, (n_heads, -1)).sum((1, 3))


def _by_group(aligned: Sequence[tuple]) -> list[tuple[Positions, Positions]]:
    """For each group the clean and the corrupt tokens of all pairs."""
    return [([clean for clean, _ in group], [corrupt for _, corrupt in group]) for group in zip(*aligned, strict=True)]
