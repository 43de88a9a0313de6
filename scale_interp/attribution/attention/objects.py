"""Attention to the objects asked about: how much each head has, and whether it goes with right answers (arXiv 2503.01773, section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core import statistics
from ...core.arguments import checked
from ...core.figures import draw
from ...core.notebook import MOST, FigureView
from ...core.result import Result
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, DataWarning
from ...interventions.engine import Path, choose_path
from ...vlm.vlm import VLM
from ..ablation import provenance
from ..headmap import HeadMap
from ..metric import measure
from .auroc import auroc
from .box_tokens import BOX_UNSEEN, box_cover, why_no_box
from .grid import PatchGrid, patch_grid
from .last_token import image_mass, spatial_entropy, stream_attention

Measure = Literal["box", "image", "focus", "lift", "entropy"]
UNITS: Mapping[Measure, str] = {
    "box": "share of attention",
    "image": "share of attention",
    "focus": "share of image attention",
    "lift": "share of image attention",
    "entropy": "nats",
}


@dataclass(frozen=True, eq=False)
class ObjectAttention(Result, FigureView):
    """The last token's attention to the image and to the boxes of the objects asked about, for every head.

    Attributes:
        image_mass: attention on tokens that show a part of an image [Q, L, H].
        box_mass: attention on the union of the boxes, where a token counts by the share of its part that is inside [Q, L, H].
        spatial_entropy: entropy of the map, in nats [Q, L, H].
        area: the box mass of an attention that is even over the image tokens [Q].
        image_share: the share of the prompt's tokens that show a part of an image [Q].
        correct: 1 where the answer is right [Q].
        confidence: the probability of the given answer among the choices [Q].
        groups: the number of each question's image [Q].
        ids: the questions' names.
        relations: the questions' relations.
        skipped: for each question without numbers here, its id and the reason.
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> object_attention(vlm, qs).lift.unit
    'share of image attention'
    """

    image_mass: Float[Tensor, "questions layers heads"]
    box_mass: Float[Tensor, "questions layers heads"]
    spatial_entropy: Float[Tensor, "questions layers heads"]
    area: Float[Tensor, " questions"]
    image_share: Float[Tensor, " questions"]
    correct: Float[Tensor, " questions"]
    confidence: Float[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    ids: Annotated[tuple[str, ...], "questions"]
    relations: Annotated[tuple[str | None, ...], "questions"]
    skipped: Mapping[str, str]
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        layer, head = self.box.top(1)[0]
        Q, L, H = self.box_mass.shape
        most = f"({layer}, {head}) with {float(self.box.scores[layer, head]):.3f}"
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"<ObjectAttention: {L} layers x {H} heads, {Q} questions{left_out}; most attention on the box: {most}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        box, image = self.box.scores, self.image.scores
        heads = self.box.top(min(MOST, box.numel()))
        return ({"layer": h[0], "head": h[1], "on the box": float(box[h]), "on the image": float(image[h])} for h in heads)

    @property
    def box(self) -> HeadMap:
        """Attention on the boxes, as a share of all attention."""
        return self.map("box")

    @property
    def image(self) -> HeadMap:
        """Attention on the images, as a share of all attention."""
        return self.map("image")

    @property
    def focus(self) -> HeadMap:
        """Attention on the boxes as a share of the attention on the image."""
        return self.map("focus")

    @property
    def lift(self) -> HeadMap:
        """Focus minus that of an attention that is even over the image tokens: 0 for a head that ignores the boxes."""
        return self.map("lift")

    @property
    def entropy(self) -> HeadMap:
        """How scattered a head's map is, in nats (see `attention.last_token.spatial_entropy`)."""
        return self.map("entropy")

    def map(self, of: Measure) -> HeadMap:
        """One of the measures, "box", "image", "focus", "lift" or "entropy", as a HeadMap. Raises DataError for another."""
        return HeadMap(
            f"{of} attention" if of != "entropy" else "spatial entropy", UNITS[of], self._values(of), self.groups, self.provenance
        )

    def _values(self, of: Measure) -> Tensor:
        if of not in UNITS:
            raise DataError(f"of={of!r}: choose from {', '.join(map(repr, UNITS))}")
        whole = {"box": self.box_mass, "image": self.image_mass, "entropy": self.spatial_entropy}
        if of in whole:
            return whole[of]
        # A head with no attention on the image has none on the box: 0 / 0 counts as 0.
        focus = self.box_mass / self.image_mass.clamp(min=torch.finfo(torch.float32).tiny)
        return focus if of == "focus" else focus - self.area[:, None, None]

    def auroc(self, answers: Any = None, of: Measure = "box", by: Literal["head", "layer"] = "head") -> pd.DataFrame:
        """How well each head's attention separates right answers from wrong ones.

        Args:
            answers: an Evaluation of the same questions, or right (1) and wrong (0) [Q]; by default the answers of this run.
            of: the measure, "box", "image", "focus", "lift" or "entropy".
            by: one row per "head", or per "layer" (the mean over its heads).

        Returns:
            Columns layer, head, auroc, low, high (bootstrap over images) and p (Holm-corrected over rows).

        Raises:
            DataError: for answers to other questions, and where all answers are right, or all are wrong.
        """
        if by not in ("head", "layer"):
            raise DataError(f"by={by!r}: choose 'head' or 'layer'")
        values = self._values(of).numpy()
        L, H = values.shape[1:]
        columns = {"layer": np.arange(L)} if by == "layer" else {"layer": np.repeat(np.arange(L), H), "head": np.tile(np.arange(H), L)}
        values = values.mean(-1) if by == "layer" else values
        found, low, high, p = auroc(values, self._correct(answers), self.groups.numpy())
        rest = {"auroc": found, "low": low, "high": high, "p": statistics.holm(p)}
        return pd.DataFrame(columns | {name: part.ravel() for name, part in rest.items()})

    def confidence_auroc(self, answers: Any = None) -> dict[str, float]:
        """How well the confidence separates right answers from wrong ones.

        Args:
            answers: as in `auroc`.

        Returns:
            auroc, low, high and p; there is one test, so nothing to correct.

        Raises:
            DataError: as in `auroc`.
        """
        parts = auroc(self.confidence.numpy(), self._correct(answers), self.groups.numpy())
        return dict(zip(("auroc", "low", "high", "p"), map(float, parts), strict=True))

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: means over its heads of the attention on the image, on the boxes, and of lift, each with its interval."""
        columns: dict[str, Any] = {"layer": np.arange(self.box_mass.shape[1])}
        of: Measure
        for of in ("image", "box", "lift"):
            values = self._values(of).mean(-1).numpy()
            low, high = statistics.bootstrap_interval(values, self.groups.numpy())
            columns |= {of: values.mean(0, dtype=float), f"{of}_low": low, f"{of}_high": high}
        return pd.DataFrame(columns)

    def _correct(self, answers: Any) -> np.ndarray:
        if answers is None:
            return self.correct.numpy() > 0
        if hasattr(answers, "per_question"):
            known = {q.id: float(right) for q, right in zip(answers.questions, answers.per_question, strict=True)}
            if missing := next((name for name in self.ids if name not in known), None):
                raise DataError(f"the evaluation has no answer to question {missing}: give one of the same questions")
            return np.array([known[name] > 0 for name in self.ids])
        right = np.asarray(answers)
        if right.shape != (len(self.ids),) or not np.isin(right, (0, 1)).all():
            raise DataError(
                f"answers of shape {right.shape}: give {len(self.ids)} values, 1 for right and 0 for wrong, in the order of .ids"
            )
        return right > 0

    def by_relation(self) -> pd.DataFrame:
        """One row per relation: confidence and accuracy with their intervals, the lowest confidence first.

        Raises:
            DataError: where no question has a relation.
        """
        if not any(self.relations):
            raise DataError("no question has a relation: ask about relations, or give Question(relation=...)")
        rows = []
        for relation in sorted({r for r in self.relations if r}):
            members = np.array([r == relation for r in self.relations])
            sure, right, pictures = (part.numpy()[members] for part in (self.confidence, self.correct, self.groups))
            low, high = statistics.bootstrap_interval(sure, pictures)
            right_low, right_high = statistics.accuracy_interval(right, pictures)
            rows.append(
                {
                    "relation": relation,
                    "n": int(members.sum()),
                    "confidence": float(sure.mean()),
                    "confidence_low": float(low),
                    "confidence_high": float(high),
                    "accuracy": float(right.mean()),
                    "accuracy_low": right_low,
                    "accuracy_high": right_high,
                }
            )
        return pd.DataFrame(rows).sort_values("confidence", ignore_index=True)

    def plot(self, **options: Any) -> Any:
        """The measures as plotly heatmaps side by side, layer by head (see viz.head_heatmaps)."""
        return draw("head_heatmaps", [self.map(of) for of in UNITS], **options)


@checked
def object_attention(vlm: VLM, questions: Sequence[Question], *, path: Path = "auto") -> ObjectAttention:
    """How much each head of the last token attends to the image and to the objects asked about (arXiv 2503.01773, section 4).

    The objects are `question.about`, and their boxes `question.boxes`, in pixels of the question's first image; several boxes count as one
    region. Questions without boxes, or with boxes that the model does not see, are skipped with a DataWarning.

    Args:
        vlm: the model, from `si.load`.
        questions: questions with boxes.
        path: "packed" reads attention from prompts that are read once, "reference" from whole forward passes, "auto" chooses.

    Returns:
        An ObjectAttention of the Q questions that are not skipped.

    Raises:
        DataError: where every question is skipped; it gives the first one's reason.
        ModelError: for a family whose patch grid is not known.

    >>> import scale_interp as si
    >>> object_attention(si.load("demo"), si.load_questions("scenes/relation", n=4)).box.per_question.shape
    torch.Size([4, 6, 8])
    """
    asked, grids, covers, skipped = _place_boxes(vlm, require(questions))
    path = choose_path(vlm, asked, path)
    rows = []
    for (weights, scores), question, grid, cover in zip(stream_attention(vlm, asked, path), asked, grids, covers, strict=True):
        sure, right = scores.softmax(-1).max(), measure("accuracy", scores[None], [question])[0]
        on_box = (weights.double() @ cover).float()
        shares = cover[grid.shown].mean().float(), grid.shown.float().mean()
        rows.append((image_mass(weights, grid), on_box, spatial_entropy(weights, grid), *shares, right, sure))
    image, box, entropy, area, image_share, correct, confidence = (torch.stack(part) for part in zip(*rows, strict=True))
    return ObjectAttention(
        image_mass=image,
        box_mass=box,
        spatial_entropy=entropy,
        area=area,
        image_share=image_share,
        correct=correct,
        confidence=confidence,
        groups=torch.from_numpy(groups(asked)),
        ids=tuple(q.id for q in asked),
        relations=tuple(q.relation for q in asked),
        skipped=skipped,
        provenance=provenance(vlm, require(questions), metric="attention", path=path, placed=len(asked)),
    )


def _place_boxes(vlm: VLM, questions: Sequence[Question]) -> tuple[list[Question], list[PatchGrid], list[Tensor], dict[str, str]]:
    """The questions with boxes on the grid, their grids, the boxes' shares of each token, and the reasons why others are skipped."""
    asked, grids, covers, skipped = [], [], [], {}
    for question in questions:
        if why := why_no_box(question):
            skipped[question.id] = why
            continue
        grid = patch_grid(vlm, question)
        cover = box_cover(question, grid)
        if not cover.any():
            skipped[question.id] = BOX_UNSEEN
            continue
        asked.append(question)
        grids.append(grid)
        covers.append(cover)
    if skipped:
        name, why = next(iter(skipped.items()))
        if not asked:
            raise DataError(f"none of {len(skipped)} questions can be placed on its image: give others; question {name}: {why}")
        warnings.warn(f"{len(skipped)} of {len(questions)} questions are skipped; question {name}: {why}", DataWarning, stacklevel=3)
    return asked, grids, covers, skipped
