"""A score for every head, the questions behind it, and its statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from ..core import statistics
from ..core.figures import draw
from ..core.notebook import MOST
from ..errors import DataError
from ..interventions.edit import Head
from .effects import Effects


@dataclass(frozen=True, eq=False)
class HeadMap(Effects):
    """Scores of all heads by one method.

    Args:
        method: the method's name.
        unit: what a score is measured in.
        per_question: the effect of each head on each question [Q, L, H].
        groups: the number of each question's image [Q]; intervals and tests treat questions of one image as dependent.
        provenance: model, data, settings and versions.

    Raises:
        DataError: for values that are not finite, and for tensors of other shapes.

    >>> m = HeadMap("mine", "logit diff", torch.tensor([[[0.0, 0.5], [0.25, 0.0]]] * 3), torch.arange(3))
    >>> m.top(2), m.sparsity()["heads_to_half"]
    ([(0, 1), (1, 0)], 1)
    """

    method: str
    unit: str
    per_question: Float[Tensor, "questions layers heads"]
    groups: Int[Tensor, " questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    significance: ClassVar[str] = "differs from 0 (Holm, {alpha})"
    """What `significant` means for a head, for figures."""

    def __post_init__(self) -> None:
        values = self.per_question
        if not isinstance(values, Tensor) or values.ndim != 3 or values.is_complex() or not torch.isfinite(values).all():
            raise DataError(f"{self.method}: per_question is no tensor [Q, L, H] of finite numbers; give one")
        if not isinstance(self.groups, Tensor) or self.groups.shape != values.shape[:1]:
            raise DataError(f"{self.method}: groups is no tensor [{len(values)}] with the number of each question's image; give one")
        object.__setattr__(self, "per_question", values.detach().to(torch.promote_types(values.dtype, torch.float32)))

    def __repr__(self) -> str:
        (layer, head), *_ = self.top(1)
        Q, L, H = self.per_question.shape
        best = f"({layer}, {head}) {self.scores[layer, head]:+.3f} {self.unit}"
        return f"<{type(self).__name__} {self.method}: {L} layers x {H} heads, {Q} questions; top head {best}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        heads = self.top(min(MOST, self.scores.numel()))
        return ({"layer": layer, "head": head, self.unit: float(self.scores[layer, head])} for layer, head in heads)

    def top(self, k: int, by: Literal["score", "abs"] = "score") -> list[Head]:
        """The k heads with the largest score, largest first.

        Args:
            k: how many heads.
            by: "score", or "abs" for the size of the score whatever its sign.

        Raises:
            DataError: for a k below 1 or above the number of heads.
        """
        values = self.scores if by == "score" else self.scores.abs()
        return self._heads(values.flatten().argsort(descending=True, stable=True), k)

    def bottom(self, k: int) -> list[Head]:
        """The k heads whose score is closest to 0, the closest first.

        Raises:
            DataError: for a k below 1 or above the number of heads.
        """
        return self._heads(self.scores.abs().flatten().argsort(stable=True), k)

    def _heads(self, order: Tensor, k: int) -> list[Head]:
        if not 1 <= k <= len(order):
            raise DataError(f"k={k}: the model has {len(order)} heads; ask for 1 to {len(order)}")
        H = self.scores.shape[1]
        return [(int(i) // H, int(i) % H) for i in order[:k]]

    def sparsity(self) -> dict[str, float | int]:
        """How few heads carry the effect.

        Returns:
            gini: the Gini coefficient of |score|.
            heads_to_half: the fewest heads that hold half of the sum of positive scores.
            share_top4: the share of that sum in the four largest scores.
            significant: how many heads differ from 0 (Holm, 0.05).
            heads: how many heads there are.
        """
        positive = self.scores.flatten().clamp(min=0).sort(descending=True).values
        total = float(positive.sum())
        shares = (positive.cumsum(0) / total) if total > 0 else torch.zeros_like(positive)
        return {
            "gini": statistics.gini(self.scores.numpy()),
            "heads_to_half": int((shares < 0.5).sum()) + 1 if total > 0 else 0,
            "share_top4": float(shares[min(3, len(shares) - 1)]),
            "significant": int(self.significant().sum()),
            "heads": len(positive),
        }

    def compare(self, other: HeadMap | Float[Tensor, "layers heads"]) -> dict[str, float]:
        """Agreement of two maps: Spearman's rank correlation with its p-value, and the overlap of their top 8 heads.

        Args:
            other: a HeadMap of the same model, or scores [L, H].

        Returns:
            spearman and p, which are nan where all scores of a map are equal, and overlap_top8, from 0 to 1.

        Raises:
            DataError: for a map of another shape.

        >>> m = HeadMap("mine", "logit diff", torch.rand(4, 2, 8), torch.arange(4))
        >>> m.compare(m)["overlap_top8"]
        1.0
        """
        theirs = other.scores if isinstance(other, HeadMap) else other
        if theirs.shape != self.scores.shape:
            raise DataError(f"maps of {tuple(self.scores.shape)} and {tuple(theirs.shape)} heads cannot be compared; give two of one model")
        flat = [self.scores.flatten().numpy(), theirs.flatten().numpy()]
        defined = all(np.ptp(scores) > 0 for scores in flat)
        rho, p = stats.spearmanr(*flat) if defined else (float("nan"), float("nan"))
        k = min(8, self.scores.numel())
        mine = set(self.scores.flatten().topk(k).indices.tolist())
        return {
            "spearman": float(rho),
            "p": float(p),
            "overlap_top8": len(mine & set(theirs.flatten().topk(k).indices.tolist())) / k,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per head: layer, head, score, low, high, p (Holm), rank; of a hybrid also decoder_layer, the layer's number there."""
        low, high = self.interval()
        L, H = self.scores.shape
        flat = self.scores.flatten().numpy()
        return pd.DataFrame(
            self.layer_columns(H)
            | {
                "head": np.tile(np.arange(H), L),
                "score": flat,
                "low": low.flatten().numpy(),
                "high": high.flatten().numpy(),
                "p": self.p_values.flatten().numpy(),
                "rank": stats.rankdata(-flat, method="ordinal"),
            }
        )

    def plot(self, **options: Any) -> Any:
        """A plotly heatmap, layer by head (see viz.head_heatmap)."""
        return draw("head_heatmap", self, **options)
