"""One variant per layer, or per head, in which what a component computes at some tokens is replaced by values from another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..vlm.token_groups import At
from .edit import Change, Component


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
