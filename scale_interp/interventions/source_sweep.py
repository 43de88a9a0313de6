"""One variant per layer, or per head, in which what a component computes at some tokens is replaced by values from another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.there import there
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .edit import Change, Component
from .places import Places
from .suffix import suffix_batch
from .whole_prompt import Start, WholePrompts


@dataclass(frozen=True)
class SourceSweep:
    """Variant i puts its source in the place of one layer's component at every token of a group; of heads, in one head's place.

    Args:
        component: What is replaced.
        source: For each layer what is put there, [B, P, F]; of heads F = H * D.
        n_heads: Heads per layer.
        at: Where; the engine is given the tokens themselves.
    """

    component: Component
    source: Sequence[Float[Tensor, "questions places width"]]
    n_heads: int
    at: At = ()

    @property
    def per_layer(self) -> int:
        """Variants for each layer."""
        return self.n_heads if self.component == "head" else 1

    @property
    def n_variants(self) -> int:
        """One for each layer, or for each head of each layer."""
        return len(self.source) * self.per_layer

    def starts(self, n_layers: int) -> Int[Tensor, " variants"]:
        """The layer of each variant [N]."""
        return torch.arange(n_layers).repeat_interleave(self.per_layer)

    def changes(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> list[Change]:
        """The edit of the variants that start at this layer. `alive` is sorted by start, so they come last."""
        here = alive[starts == layer]
        if not len(here):
            return []
        first, source = len(alive) - len(here), self.source[layer]
        if self.component != "head":
            return [Change(self.component, first, source.new_zeros(1, 1, 1, 1), source[:, None])]
        on = torch.nn.functional.one_hot(here % self.n_heads, self.n_heads).to(source)[None, :, None, :, None]
        return [Change("head", first, 1 - on, source.unflatten(-1, (self.n_heads, -1))[:, None] * on)]


def patch_from(
    vlm: VLM,
    source: WholePrompts,
    prompts: WholePrompts,
    component: Component,
    taken: Sequence[Sequence[int]],
    put: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "questions variants choices"], Float[Tensor, "questions variants choices"]]:
    """Patch prompts with what a component computes in others, one variant per layer or per head.

    Where a patched residual stream makes the beginning of a prompt the source's, as with an image behind the same words, so are its keys
    and values in all later layers, and only what follows is run.

    Args:
        vlm: The model.
        source: B prompts that were read with this component.
        prompts: B prompts to patch.
        component: What is replaced.
        taken: The source's tokens of each question.
        put: The tokens in whose place they are put.

    Returns:
        Patched and unpatched choice scores, each [B, N, C].
    """

    def sweep(columns: Sequence[Sequence[int]]) -> SourceSweep:
        places = Places.of(columns, vlm.device)
        return SourceSweep(component, [places.take(read.component(component)) for read in source.layers], vlm.n_heads)

    columns = source.columns(taken)
    whole = sweep(columns)
    layer, first = vlm.n_layers, 0
    if component == "resid" and columns == prompts.columns(put):
        layer, first = same_beginning(source, prompts, columns)
    if first <= prompts.first_reached(columns):
        return suffix_batch(vlm, prompts, whole, put)
    variants, parts = torch.arange(whole.n_variants), []
    if layer:
        parts.append(suffix_batch(vlm, prompts, whole, put, variants=variants[:layer]))
    after = [[column for column in own if column >= first] for own in columns]
    rest = [[column - pad for column in own] for own, pad in zip(after, prompts.pads, strict=True)]
    parts.append(suffix_batch(vlm, prompts, sweep(after), rest, variants=variants[layer:], start=Start(first, source)))
    edited, clean = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return edited, clean


def same_beginning(source: WholePrompts, prompts: WholePrompts, columns: Sequence[Sequence[int]]) -> tuple[int, int]:
    """From which layer on the source's residual stream, put at these columns, makes the prompts the source's, and up to which column.

    Args:
        source: The prompts that the stream is from.
        prompts: As many others.
        columns: Where it is put, before any one layer.

    Returns:
        The layer, n_layers for none, and the column, from which on the prompts differ.
    """
    L = len(prompts.layers)
    if source.pads != prompts.pads or source.layers[0].hidden.shape != prompts.layers[0].hidden.shape:
        return L, 0
    pairs = [*zip(source.layers, prompts.layers, strict=True)]
    if not all(_equal(a.given, b.given) and _equal(a.seen, b.seen) for a, b in pairs):
        return L, 0
    layer = max((number + 1 for number, (a, b) in enumerate(pairs) if not _equal(a.between, b.between)), default=0)
    if layer == L:
        return layer, prompts.apart_from(0)
    put = torch.zeros(source.layers[0].hidden.shape[:2], dtype=torch.bool)
    for row, own in zip(put, columns, strict=True):
        row[own] = True
    differ = torch.stack([(a.hidden != b.hidden).any(-1).to(source.layers[0].hidden.device) for a, b in pairs[layer:]]).any(0)
    first = (differ & ~there(put, differ.device)).any(0).nonzero()[:1, 0].tolist()
    return layer, prompts.apart_from(min([prompts.length - 1, *first]))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(_equal, a, b))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
