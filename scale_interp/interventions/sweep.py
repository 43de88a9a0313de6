"""One variant a head: the sparse form of a sweep over all heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EditError
from .edit import Head, LayerEdit, Scope, check_heads


@dataclass(frozen=True)
class HeadSweep:
    """Variant i edits heads[i] alone: z'[l,h] = scale * z[l,h] + source[l,h].

    source: [1 or Q, L, H, D] or None. A layer's values exist only while it runs, never [N, L, H, D].
    """

    heads: tuple[Head, ...]
    n_heads: int
    scale: float
    source: Tensor | None = None
    scope: Scope = "last"

    @staticmethod
    def all(n_layers: int, n_heads: int, scale: float, source: Tensor | None = None) -> HeadSweep:
        """Every head of the model, layer by layer."""
        return HeadSweep(tuple((layer, h) for layer in range(n_layers) for h in range(n_heads)), n_heads, scale, source)

    @property
    def n_variants(self) -> int:
        return len(self.heads)

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        check_heads(self.heads, n_layers, n_heads)
        if self.source is not None and self.source.shape[0] not in (1, n_questions):
            raise EditError(f"source is for {self.source.shape[0]} questions, but {n_questions} are asked")

    def starts(self, n_layers: int) -> Tensor:
        """The layer of each variant's head, [N]."""
        return torch.tensor([layer for layer, _ in self.heads])

    def at(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """The edit of the variants that start at this layer; alive is sorted by start, so they come last."""
        here = alive[starts == layer]
        if not len(here):
            return None
        index = [self.heads[i][1] for i in here.tolist()]
        first = len(alive) - len(here)
        if self.source is None:
            return one_head_each(first, index, self.n_heads, self.scale)
        source = self.source[:, layer] if self.source.shape[0] == 1 else self.source[rows, layer]
        return one_head_each(first, index, self.n_heads, self.scale, source[:, index])


def one_head_each(first: int, heads: Sequence[int], n_heads: int, scale: float, values: Tensor | None = None) -> LayerEdit:
    """A layer's edit in which row `first` + n multiplies heads[n] alone by scale and adds values[:, n], [b, n, D]."""
    n, index = torch.arange(len(heads)), torch.tensor(heads)
    factors = torch.ones(1, len(heads), n_heads)
    factors[0, n, index] = scale
    if values is None:
        return LayerEdit(first, factors)
    shift = values.new_zeros(len(values), len(heads), n_heads, values.shape[-1])
    shift[:, n, index] = values
    return LayerEdit(first, factors.to(values.device), shift)
