"""Accuracy against the weight of ScalingVis, and whether the best weight depends on how sure the model is, as AdaptVis assumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...adapters.attention_scaling.adaptvis import AdaptVis, gated_scores
from ...adapters.attention_scaling.scalingvis import AttentionScale
from ...attribution.ablation import provenance
from ...attribution.metric import measure
from ...core import statistics
from ...core.arguments import checked
from ...core.figures import draw
from ...core.notebook import FigureView
from ...core.result import Result
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.attention.run import answer_all
from ...interventions.choices import Scoring
from ...interventions.engine import Path, choose_path
from ...interventions.paths import check_finite
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM

WEIGHTS = (0.5, 0.8, 1.2, 1.5, 2.0)
"""The weights in the AdaptVis paper (arXiv 2503.01773)."""


@dataclass(frozen=True, eq=False)
class ScalingCurve(Result, FigureView):
    """Answers at each weight.

    Args:
        weights: the W weights.
        per_question: 1.0 where the answer is right, else 0.0 [Q, W].
        base: the same at weight 1, the unedited model [Q].
        confidence: the largest probability over the vocabulary at weight 1 [Q].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> scaling_curve(vlm, qs, (0.5, 2.0)).by_confidence()["part"].tolist()
    [1, 1, 2, 2]
    """

    weights: Annotated[tuple[float, ...], "weights"]
    per_question: Float[Tensor, "questions weights"]
    base: Float[Tensor, " questions"]
    confidence: Float[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = int(self.per_question.mean(0).argmax())
        shown = f"base {float(self.base.mean()):.3f}, best {float(self.per_question[:, best].mean()):.3f} at weight {self.weights[best]:g}"
        return f"<ScalingCurve of {len(self.weights)} weights: {shown}, {len(self.base)} questions>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"weight": w, "accuracy": right} for w, right in zip(self.weights, self.per_question.mean(0).tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row per weight: accuracy, paired difference from weight 1 with interval and p; p_holm is corrected over the weights."""
        frame = pd.DataFrame([self._row(i, np.ones(len(self.base), bool)) for i in range(len(self.weights))])
        return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))

    def by_confidence(self, parts: int = 2) -> pd.DataFrame:
        """The same table for parts of the questions, split by the model's confidence.

        AdaptVis assumes that weights below 1 help in the first part and weights above 1 in the last (arXiv 2503.01773).

        Args:
            parts: how many parts of equal size.

        Returns:
            One row per part and weight, the questions that the model is least sure of first; p_holm is corrected over all rows.

        Raises:
            DataError: for fewer than 2 parts, or more than there are questions.
        """
        if not 2 <= parts <= len(self.base):
            raise DataError(f"parts={parts}: give 2 to {len(self.base)}, the number of questions")
        place = np.argsort(np.argsort(self.confidence.numpy(), kind="stable"), kind="stable") * parts // len(self.base)
        rows = []
        for part in range(parts):
            sure = self.confidence.numpy()[place == part]
            about = {"part": part + 1, "confidence_from": float(sure.min()), "confidence_to": float(sure.max())}
            rows += [about | self._row(i, place == part) for i in range(len(self.weights))]
        frame = pd.DataFrame(rows)
        return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))

    def _row(self, i: int, members: np.ndarray) -> dict[str, Any]:
        right, base, images = (part.numpy()[members] for part in (self.per_question[:, i], self.base, self.groups))
        gain = statistics.paired_difference(right, base, images)
        shares = {"weight": self.weights[i], "n": int(members.sum()), "base": float(base.mean()), "accuracy": float(right.mean())}
        return shares | gain.columns("difference")

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the paired difference against the weight (see viz.scaling_curves)."""
        return draw("scaling_curves", {"": self}, **options)


@checked
def scaling_curve(
    vlm: VLM,
    questions: Sequence[Question],
    weights: Sequence[float] = WEIGHTS,
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    **options: Any,
) -> ScalingCurve:
    """Measure the accuracy of ScalingVis at every weight, compared with weight 1 (arXiv 2503.01773).

    This is a study, not a tuning: a weight that is chosen from a curve of test questions is not a result. Choose it with `tune_scaling` on
    validation questions.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        weights: the W weights to try; by default the paper's.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.
        options: rows, layers, heads and steps of AttentionScale.

    Returns:
        A ScalingCurve, per_question [Q, W].

    Raises:
        EditError: for no weight, and for a weight or an option that AttentionScale refuses.

    >>> import scale_interp as si
    >>> scaling_curve(si.load("demo"), si.load_questions("scenes/relation", n=8), (0.5, 2.0)).per_question.shape
    torch.Size([8, 2])
    """
    questions = require(questions)
    values = distinct("weights", weights)
    methods = [AttentionScale(weight, **options) for weight in values]
    gate = AdaptVis(1.0, 1.0, 0.0)
    whole = methods[0].whole
    run = partial(gated_scores, gate=gate, scales=methods)
    (base, sure, *columns), passes = answer_all(vlm, questions, run, path, whole=whole, prompts=prompts, scoring=scoring)
    for scores in columns:
        check_finite(vlm, questions, scores[:, None])
    right = torch.stack([measure("accuracy", scores, questions) for scores in columns], 1)
    way = "reference" if whole else choose_path(vlm, questions, path)
    made = provenance(vlm, questions, path=way, scoring=scoring, passes=passes, options=options)
    return ScalingCurve(
        values, right.cpu(), measure("accuracy", base, questions).cpu(), sure[:, 0].float().cpu(), torch.from_numpy(groups(questions)), made
    )


def distinct(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """The values without repeats, in their order; EditError where there is none."""
    out = tuple(dict.fromkeys(float(v) for v in values))
    if not out:
        raise EditError(f"{name}: give at least one")
    return out
