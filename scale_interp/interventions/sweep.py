"""One variant per head: the sparse form of a sweep over all heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.there import there
from ..errors import EditError
from ..vlm.token_groups import At
from .edit import Change, Head, LayerEdit, Scope, check_heads


@dataclass(frozen=True)
class HeadSweep:
    """A sweep whose variant i edits only heads[i]: z'[l,h] = scale * z[l,h] + source[l,h].

    The values of a layer exist only while it runs, and never as [N, L, H, D].

    Args:
        heads: (layer, head) pairs, counted from 0.
        n_heads: Heads per layer of the model.
        scale: The factor on each head.
        source: What is added, [1 or Q, L, H, D], or None.
        scope: "last" edits only the prompt's last token, "each_new_token" every token after it as well.
        at: Which tokens of the prompt: "last", another token group, a list of groups, or token numbers.

    >>> HeadSweep.all(6, 8, scale=0.0)
    <HeadSweep of 48 heads, each alone times 0; scope last>
    """

    heads: tuple[Head, ...]
    n_heads: int
    scale: float
    source: Float[Tensor, "questions layers heads head_dim"] | None = None
    scope: Scope = "last"
    at: At = "last"

    def __repr__(self) -> str:
        source = "" if self.source is None else f", plus a source {list(self.source.shape)}"
        return f"<HeadSweep of {len(self.heads)} heads, each alone times {self.scale:g}{source}; scope {self.scope}>"

    @staticmethod
    def all(n_layers: int, n_heads: int, scale: float, source: Tensor | None = None, at: At = "last") -> HeadSweep:
        """A sweep over every head of the model, layer by layer.

        Args:
            n_layers: Of the model.
            n_heads: Heads per layer.
            scale: The factor on each head.
            source: What is added, [1 or Q, L, H, D], or None.
            at: Which tokens of the prompt.

        Returns:
            The sweep.
        """
        return HeadSweep(tuple((layer, h) for layer in range(n_layers) for h in range(n_heads)), n_heads, scale, source, at=at)

    @property
    def n_variants(self) -> int:
        """The number of heads."""
        return len(self.heads)

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError if the sweep does not fit this model and this number of questions."""
        check_heads(self.heads, n_layers, n_heads)
        if not math.isfinite(self.scale):
            raise EditError(f"scale={self.scale}: give a finite number")
        if self.n_heads != n_heads:
            raise EditError(f"the sweep is for {self.n_heads} heads per layer, the model has {n_heads}: build it with HeadSweep.all")
        if self.source is None:
            return
        expected = (n_layers, n_heads, head_dim)
        if tuple(self.source.shape[1:]) != expected or self.source.shape[0] not in (1, n_questions):
            raise EditError(f"source has shape {tuple(self.source.shape)}: give [1 or {n_questions}, {', '.join(map(str, expected))}]")
        if not torch.isfinite(self.source).all():
            raise EditError("source holds values that are not finite: give finite numbers")

    def starts(self, n_layers: int) -> Int[Tensor, " variants"]:
        """The layer of each variant's head, [N]."""
        return torch.tensor([layer for layer, _ in self.heads])

    def part(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """The edit of the variants that start at this layer. `alive` is sorted by start, so they come last."""
        here = alive[starts == layer]
        if not len(here):
            return None
        index = [self.heads[i][1] for i in here.tolist()]
        first = len(alive) - len(here)
        if self.source is None:
            return one_head_each(first, index, self.n_heads, self.scale)
        source = self.source[:, layer] if self.source.shape[0] == 1 else self.source[rows, layer]
        return one_head_each(first, index, self.n_heads, self.scale, source[:, there(torch.tensor(index), source.device)])

    def changes(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> list[Change]:
        """The same as a change of this layer's heads, at tokens."""
        part = self.part(layer, alive, starts, rows)
        if part is None or part.scale is None:
            return []
        return [Change("head", part.first, part.scale[:, :, None, :, None], None if part.shift is None else part.shift[:, :, None])]


def one_head_each(first: int, heads: Sequence[int], n_heads: int, scale: float, values: Tensor | None = None) -> LayerEdit:
    """A layer's edit in which row `first` + n multiplies only heads[n] by scale and adds values[:, n], [b, n, D]."""
    n, index = torch.arange(len(heads)), torch.tensor(heads)
    factors = torch.ones(1, len(heads), n_heads, dtype=torch.float32)
    factors[0, n, index] = scale
    if values is None:
        return LayerEdit(first, factors)
    shift = values.new_zeros(len(values), len(heads), n_heads, values.shape[-1])
    shift[:, there(n, values.device), there(index, values.device)] = values
    return LayerEdit(first, there(factors, values.device), shift)
