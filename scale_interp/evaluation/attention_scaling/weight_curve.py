"""Accuracy against the weight of ScalingVis, and whether the best weight hangs on how sure the model is, as AdaptVis supposes."""

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
"""The weights that the AdaptVis paper tries (arXiv 2503.01773)."""


@dataclass(frozen=True, eq=False)
class ScalingCurve(Result, FigureView):
    """Answers at each weight: per_question [Q, W], 1.0 where right; base [Q] at weight 1; confidence [Q] there, over the vocabulary.

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
        told = f"base {float(self.base.mean()):.3f}, best {float(self.per_question[:, best].mean()):.3f} at weight {self.weights[best]:g}"
        return f"<ScalingCurve of {len(self.weights)} weights: {told}, {len(self.base)} questions>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"weight": w, "accuracy": right} for w, right in zip(self.weights, self.per_question.mean(0).tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """A row a weight: accuracy, paired difference from weight 1 with interval and p; p_holm is corrected over the weights."""
        frame = pd.DataFrame([self._row(i, np.ones(len(self.base), bool)) for i in range(len(self.weights))])
        return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))

    def by_confidence(self, parts: int = 2) -> pd.DataFrame:
        """The same in parts of equal size, the questions that the model is least sure of first; p_holm over all rows.

        AdaptVis supposes that weights below 1 help in the first part and weights above 1 in the last.
        """
        if not 2 <= parts <= len(self.base):
            raise DataError(f"parts={parts}: give 2 to {len(self.base)}, the number of questions")
        place = np.argsort(np.argsort(self.confidence.numpy(), kind="stable"), kind="stable") * parts // len(self.base)
        rows = []
        for part in range(parts):
            sure = self.confidence.numpy()[place == part]
            told = {"part": part + 1, "confidence_from": float(sure.min()), "confidence_to": float(sure.max())}
            rows += [told | self._row(i, place == part) for i in range(len(self.weights))]
        frame = pd.DataFrame(rows)
        return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))

    def _row(self, i: int, members: np.ndarray) -> dict[str, Any]:
        right, base, pictures = (part.numpy()[members] for part in (self.per_question[:, i], self.base, self.groups))
        gain = statistics.paired_difference(right, base, pictures)
        shares = {"weight": self.weights[i], "n": int(members.sum()), "base": float(base.mean()), "accuracy": float(right.mean())}
        return shares | {"difference": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p}

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
    """The accuracy of ScalingVis at every weight, beside weight 1 (arXiv 2503.01773); a study, not a tuning.

    options: rows, layers, heads, steps of AttentionScale. A weight picked from a curve of test questions is not a result: pick by
    `tune_scaling` on validation questions.

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
    """The values without repeats, in their order. Raises EditError where there is none."""
    out = tuple(dict.fromkeys(float(v) for v in values))
    if not out:
        raise EditError(f"{name}: give at least one")
    return out
