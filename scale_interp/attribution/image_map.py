"""A score for every patch of each question's image, and what it is at the objects that are asked about and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import statistics
from ..core.arguments import checked
from ..core.figures import draw
from ..core.result import Misfit, Result
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, EditError
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.knockout.edit import AttentionEdit, words
from ..interventions.positions import choose_path_at
from ..vlm.token_groups import At, group_of
from ..vlm.vlm import VLM
from .ablation import provenance
from .attention.grid import PatchGrid
from .metric import Metric, measure

PLACES = ("subject", "object", "elsewhere")
"""Where a patch is: inside the box of the subject or of the object, or in neither."""


@dataclass(frozen=True, eq=False)
class ImageMap(Result):
    """What each patch of an image counts for, on every question's own patch grid.

    Attributes:
        method: the method's name.
        unit: what a score is measured in.
        effects: of each patch [Q, P]; 0 beyond a question's own patches.
        tokens: the place of each patch in the prompt [Q, P].
        inside: whether a patch is at the subject, at the object and elsewhere [Q, P, 3], as 0 and 1.
        lengths: how many patches a question has [Q].
        groups: the number of each question's image [Q]; intervals treat questions of one image as dependent.
        ids: the questions' names.
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> m = si.knockout_image(si.load("demo"), si.load_questions("scenes/relation", n=2))
    >>> m.effects.shape, m.method
    (torch.Size([2, 49]), 'knockout last -> one patch')
    """

    method: str
    unit: str
    effects: Float[Tensor, "questions patches"]
    tokens: Int[Tensor, "questions patches"]
    inside: Int[Tensor, "questions patches 3"]
    lengths: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    ids: Annotated[tuple[str, ...], "questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        Q, fewest, most = len(self.effects), int(self.lengths.min()), int(self.lengths.max())
        many = f"{fewest} to {most}" if fewest < most else str(most)
        where = ", ".join(f"{row.place} {row.score:+.3f}" for row in self.to_frame().itertuples())
        return f"<ImageMap {self.method}: {Q} question{'s' * (Q != 1)} of {many} patches; {where}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return self.to_frame().to_dict("records")

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= self.effects.shape[1]:
            raise Misfit("its lengths and patches do not fit together")

    def of(self, question: str) -> dict[int, float]:
        """The effect of each patch of one question, by its place in the prompt. Raises DataError if there is no such question."""
        if question not in self.ids:
            raise DataError(f"the map has no question {question!r}: give one of its own")
        row = self.ids.index(question)
        n = int(self.lengths[row])
        return dict(zip(self.tokens[row, :n].tolist(), self.effects[row, :n].tolist(), strict=True))

    @property
    def per_place(self) -> Float[Tensor, "questions 3"]:
        """The mean effect of a patch at the subject, at the object and elsewhere [Q, 3]; nan where a question has none there."""
        inside = self.inside.double()
        return (self.effects.double()[..., None] * inside).sum(1) / inside.sum(1)

    def to_frame(self) -> pd.DataFrame:
        """One row per place: place, questions (that have patches there), patches (how many on average), score, low, high.

        The score is the mean effect of one patch, with a 95% bootstrap interval over images.
        """
        rows = []
        for number, (place, values) in enumerate(zip(PLACES, self.per_place.T, strict=True)):
            there = values.isfinite()
            if there.any():
                low, high = statistics.bootstrap_interval(values[there, None].numpy(), self.groups[there].numpy())
                patches = float(self.inside[there, :, number].sum(1).double().mean())
                rows.append((place, int(there.sum()), patches, float(values[there].mean()), float(low[0]), float(high[0])))
        return pd.DataFrame(rows, columns=["place", "questions", "patches", "score", "low", "high"])

    def plot(self, question: Question, grid: PatchGrid, **options: Any) -> Any:
        """A plotly figure of one question's image and its patches (see viz.image_maps)."""
        return draw("image_maps", [self], question, grid, **options)


@checked
def knockout_image(
    vlm: VLM,
    questions: Sequence[Question],
    source: At = "last",
    layers: Sequence[int] | None = None,
    *,
    metric: Metric = "logit_diff",
    path: Path = "auto",
) -> ImageMap:
    """How much the metric falls when source tokens do not see one patch of the image, for every patch: one `knockout` each.

    score = metric(clean) - metric(edited): positive where the answer needs what these tokens read at the patch.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions, of which each has an image.
        source: the tokens that do not see the patch: a token group or several (`vlm.token_groups`), or token numbers.
        layers: in which layers; by default in all. All heads of a layer are edited.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" runs all patches side by side behind a prompt that is read once, "reference" runs whole forward passes, "auto"
            chooses.

    Returns:
        An ImageMap, effects [Q, P].

    Raises:
        DataError: for a question without such tokens or without an image whose patches are known.
        EditError: for a layer that the model does not have.

    >>> import scale_interp as si
    >>> m = knockout_image(si.load("demo"), si.load_questions("scenes/relation", n=2))
    >>> m.to_frame()["place"].tolist()
    ['subject', 'object', 'elsewhere']
    """
    questions = require(questions)
    heads = torch.zeros(vlm.n_layers, vlm.n_heads, dtype=torch.bool)
    chosen = list(range(vlm.n_layers)) if layers is None else list(layers)
    if not chosen or any(not 0 <= layer < vlm.n_layers for layer in chosen):
        raise EditError(f"layers={chosen}: give some of 0 to {vlm.n_layers - 1}")
    heads[chosen] = True
    found = [vlm.token_groups(question) for question in questions]
    patches = [group_of(question, own, "image") for question, own in zip(questions, found, strict=True)]
    P = max(map(len, patches))
    edit = AttentionEdit(heads.expand(P, -1, -1), source, "image", nth=torch.arange(P))
    path = choose_path(vlm, questions, path) if edit.at == "last" else choose_path_at(vlm, questions[0], path)
    method = f"knockout {words(source)} -> one patch"
    edited, clean = run_with_clean(vlm, questions, edit, path, what=method)
    fall = (measure(metric, clean, questions) - measure(metric, edited, questions)).cpu()
    lengths = torch.tensor([len(own) for own in patches])
    there = torch.arange(P) < lengths[:, None]
    inside = torch.zeros(len(questions), P, len(PLACES), dtype=torch.long)
    for row, (own, groups_) in enumerate(zip(patches, found, strict=True)):
        inside[row, : len(own)] = _inside(own, groups_)
    return ImageMap(
        method,
        metric.replace("_", " "),
        fall * there,
        torch.tensor([[*own, *[0] * (P - len(own))] for own in patches]),
        inside,
        lengths,
        torch.from_numpy(groups(questions)),
        tuple(question.id for question in questions),
        provenance(vlm, questions, metric=metric, path=path, source=edit.source, layers=chosen),
    )


def _inside(patches: Sequence[int], found: Mapping[str, Sequence[int]]) -> Int[Tensor, "patches 3"]:
    boxes = [np.isin(patches, found.get(f"box:{place}", [])) for place in PLACES[:2]]
    return torch.from_numpy(np.stack([*boxes, ~(boxes[0] | boxes[1])], 1)).long()
