"""Where information flows: what the answer loses when some tokens no longer see others (attention knockout)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import Count, Raises, checked
from ..core.figures import draw
from ..core.notebook import MOST
from ..core.result import Misfit
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, EditError, RunWarning
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.knockout.edit import AttentionEdit, Mode, words
from ..interventions.positions import choose_path_at
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .ablation import provenance
from .effects import Effects
from .headmap import HeadMap
from .metric import Metric, measure

By = Annotated[Literal["layer", "head"], Raises(EditError)]


@dataclass(frozen=True, eq=False)
class FlowMap(Effects):
    """How much the metric falls when, in one window of layers or in one head, source tokens do not see target tokens.

    Args:
        method: the method's name, such as "knockout last -> image".
        unit: what a score is measured in.
        effects: the fall on each question, [Q, L, H]; by layer the last axis has length 1.
        groups: the number of each question's image [Q]; intervals and tests treat questions of one image as dependent.
        relations: the questions' relations.
        by: "layer" or "head".
        window: how many layers are edited together.
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> fm = si.knockout(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> fm.scores.shape, fm.per_question.shape
    (torch.Size([6]), torch.Size([4, 6]))
    """

    method: str
    unit: str
    effects: Float[Tensor, "questions layers columns"]
    groups: Int[Tensor, " questions"]
    relations: Annotated[tuple[str | None, ...], "questions"]
    by: Literal["layer", "head"]
    window: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        where = f"layer {best[0]}" if self.by == "layer" else f"head ({best[0]}, {best[1]})"
        shape = f"{len(self.scores)} layers" + (f" x {self.scores.shape[1]} heads" if self.by == "head" else "")
        Q = len(self.effects)
        return (
            f"<FlowMap {self.method}: {shape}, {Q} question{'s' * (Q != 1)}; most at {where} {float(self.scores.max()):+.3f} {self.unit}>"
        )

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        table = self.to_frame().sort_values("score", ascending=False, kind="stable")[:MOST]
        return table.to_dict("records")

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if self.by == "layer" and self.effects.shape[-1] != 1:
            raise Misfit(f"its effects have {self.effects.shape[-1]} columns, by layer they have 1")

    @property
    def per_question(self) -> Float[Tensor, "*questions_layers_heads"]:
        """The fall of the metric on each question: [Q, L], or [Q, L, H] by head."""
        return self.effects[..., 0] if self.by == "layer" else self.effects

    @property
    def heads(self) -> HeadMap:
        """The same numbers as a HeadMap, with `top`, `compare` and its figures. Raises DataError for a map by layer."""
        if self.by != "head":
            raise DataError('a knockout by layer has no heads: run si.knockout(..., by="head")')
        return HeadMap(self.method, self.unit, self.effects, self.groups, self.provenance)

    def relation(self, name: str) -> FlowMap:
        """The questions of one relation. Raises DataError if there are none."""
        rows = [i for i, relation in enumerate(self.relations) if relation == name]
        if not rows:
            known = ", ".join(sorted({str(r) for r in self.relations}))
            raise DataError(f"no question has the relation {name!r}: choose from {known}")
        return replace(self, effects=self.effects[rows], groups=self.groups[rows], relations=(name,) * len(rows))

    def by_relation(self) -> dict[str, FlowMap]:
        """One FlowMap per relation, in alphabetical order; questions without a relation are left out."""
        return {name: self.relation(name) for name in sorted({r for r in self.relations if r is not None})}

    def to_frame(self) -> pd.DataFrame:
        """One row per layer or head: layer (of a hybrid also decoder_layer), head (by head), score, low, high, p (Holm)."""
        low, high = self.interval()
        L, H = self.effects.shape[1:]
        columns = self.layer_columns(H) | ({"head": np.tile(np.arange(H), L)} if self.by == "head" else {})
        values = {"score": self.scores, "low": low, "high": high, "p": self.p_values}
        return pd.DataFrame(columns | {name: value.flatten().numpy() for name, value in values.items()})

    def plot(self, **options: Any) -> Any:
        """A plotly figure: a curve over layers with its interval, or a heatmap of heads (see viz.flow_curves, viz.head_heatmap)."""
        return draw("flow_curves", [self], **options) if self.by == "layer" else draw("head_heatmap", self.heads, **options)


@checked
def knockout(
    vlm: VLM,
    questions: Sequence[Question],
    source: At = "last",
    target: At = "image",
    by: By = "layer",
    window: Count = 1,
    mode: Mode = "block",
    *,
    metric: Metric = "logit_diff",
    path: Path = "auto",
) -> FlowMap:
    """How much the metric falls when source tokens do not see target tokens, in each window of layers or in each head.

    score = metric(clean) - metric(edited): positive where the answer needs this flow. A token always sees itself, so a source that is part
    of the target loses only the other tokens.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        source: the tokens whose attention is edited: a token group or several (`vlm.token_groups`), or token numbers (negative ones count
            from the prompt's end).
        target: the tokens they no longer see, given the same way.
        by: "layer" edits all heads of a window of layers, "head" one head.
        window: by layer, how many layers are edited together: window // 2 below the named layer, the others from it upwards, as far as
            there are layers (Geva et al. 2023, arXiv 2304.14767).
        mode: "block" hides the target; "only" hides everything else; "move" gives the target, a part of the image, all attention on the
            image.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" reads each prompt once and runs again what follows the source's first token, "reference" runs whole forward passes,
            "auto" chooses.

    Returns:
        A FlowMap, per_question [Q, L] or [Q, L, H], in units of the metric.

    Raises:
        DataError: for a question without such tokens.
        EditError: for an unknown mode or path, and for a window of heads.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> si.knockout(vlm, qs, by="head").scores.shape
    torch.Size([6, 8])
    """
    questions = require(questions)
    L, H = vlm.n_layers, vlm.n_heads
    if by == "head" and window != 1:
        raise EditError(f"window={window} with by='head': heads of different layers do not correspond; give by='layer', or window=1")
    if by == "head":
        heads = torch.eye(L * H, dtype=torch.bool).view(L * H, L, H)
    else:
        distance = torch.arange(L) - torch.arange(L)[:, None]
        heads = ((distance >= -(window // 2)) & (distance < window - window // 2))[..., None].expand(L, L, H)
    edit = AttentionEdit(heads, source, target, mode)
    path = choose_path(vlm, questions, path) if edit.at == "last" else choose_path_at(vlm, questions[0], path)
    method = f"{'knockout' if mode == 'block' else mode} {words(source)} -> {words(target)}"
    edited, clean = run_with_clean(vlm, questions, edit, path, what=method)
    rounding = max(1e-5, 4 * torch.finfo(vlm.dtype).eps)
    if torch.allclose(edited, clean, rtol=rounding, atol=rounding):
        warnings.warn(
            f"{method}: no score of {len(questions)} questions changed beyond rounding; where no source token sees a target token, give a "
            "target before the source, and another than it",
            RunWarning,
            stacklevel=3,
        )
    effect = (measure(metric, clean, questions) - measure(metric, edited, questions)).cpu()
    made = provenance(vlm, questions, metric=metric, path=path, source=edit.source, target=edit.target, mode=mode)
    per_question = effect.view(-1, L, H if by == "head" else 1)
    relations = tuple(q.relation for q in questions)
    return FlowMap(method, metric.replace("_", " "), per_question, torch.from_numpy(groups(questions)), relations, by, window, made)
