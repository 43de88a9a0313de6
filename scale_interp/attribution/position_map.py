"""A score for every layer and token group, the questions behind it, and its statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from ..core.figures import draw
from ..core.notebook import MOST
from ..errors import DataError
from .effects import Effects


@dataclass(frozen=True, eq=False)
class PositionMap(Effects):
    """Scores of one component at every layer and token group.

    Args:
        method: the method's name.
        unit: what a score is measured in.
        component: what was changed: "resid", "attn" or "mlp".
        positions: the names of the G token groups.
        per_question: the effect on each question [Q, L, G].
        groups: the number of each question's image [Q]; intervals and tests treat questions of one image as dependent.
        relations: what each question asks for, for `only` [Q].
        provenance: model, data, settings and versions.

    >>> import torch
    >>> effects = torch.tensor([[[0.0, 1.0], [0.9, 0.1]]] * 3)
    >>> pm = PositionMap("mine", "recovered fraction", "resid", ("image", "last"), effects, torch.arange(3), ("left", "left", "above"))
    >>> pm.top(2), pm.only("above").per_question.shape
    ([(0, 'last'), (1, 'image')], torch.Size([1, 2, 2]))
    """

    method: str
    unit: str
    component: str
    positions: Annotated[tuple[str, ...], "positions"]
    per_question: Float[Tensor, "questions layers positions"]
    groups: Int[Tensor, " questions"]
    relations: Annotated[tuple[str, ...], "questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        ((layer, name),) = self.top(1)
        Q, L, G = self.per_question.shape
        best = f"layer {layer} at {name!r} {self.scores[layer, self.positions.index(name)]:+.3f} {self.unit}"
        return f"<PositionMap {self.method} of {self.component}: {L} layers x {G} token groups, {Q} questions; largest {best}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        most = self.top(min(MOST, self.scores.numel()))
        return ({"layer": i, "tokens": name, self.unit: float(self.scores[i, self.positions.index(name)])} for i, name in most)

    def top(self, k: int) -> list[tuple[int, str]]:
        """The k places with the largest score, (layer, group), largest first.

        Raises:
            DataError: for a k below 1 or above the number of places.
        """
        G = len(self.positions)
        if not 1 <= k <= self.scores.numel():
            raise DataError(f"k={k}: the map has {self.scores.numel()} places; ask for 1 to {self.scores.numel()}")
        order = self.scores.flatten().argsort(descending=True, stable=True)[:k]
        return [(int(i) // G, self.positions[int(i) % G]) for i in order]

    def only(self, *relations: str) -> PositionMap:
        """The same map on the questions with these relations; recovered fractions are of the difference of these questions.

        Raises:
            DataError: no question has one of them.
        """
        rows = [i for i, name in enumerate(self.relations) if name in relations]
        if not rows:
            known = ", ".join(map(repr, dict.fromkeys(self.relations)))
            raise DataError(f"no question has the relation {' or '.join(map(repr, relations))}: choose from {known}")
        named, made, effects = tuple(self.relations[i] for i in rows), dict(self.provenance), self.per_question[rows]
        if "gaps" in made:
            gaps = [made["gaps"][i] for i in rows]
            effects = effects * (made["gap"] / (sum(gaps) / len(gaps)))
            made |= {"gaps": gaps, "gap": sum(gaps) / len(gaps)}
        return replace(self, per_question=effects, groups=self.groups[rows], relations=named, provenance=made)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and group: layer (of a hybrid also decoder_layer), tokens, score, low, high, p (Holm)."""
        low, high = self.interval()
        L, G = self.scores.shape
        return pd.DataFrame(
            self.layer_columns(G)
            | {
                "tokens": list(self.positions) * L,
                "score": self.scores.flatten().numpy(),
                "low": low.flatten().numpy(),
                "high": high.flatten().numpy(),
                "p": self.p_values.flatten().numpy(),
            }
        )

    def plot(self, **options: Any) -> Any:
        """A plotly heatmap, layer by token group (see viz.position_heatmap)."""
        return draw("position_heatmap", self, **options)
