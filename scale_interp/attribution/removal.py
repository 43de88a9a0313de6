"""What is lost when heads are removed in the order of a ranking, compared with removing as many others."""

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
from ..core.arguments import Seed, checked
from ..core.figures import draw
from ..core.result import Result
from ..data.items import groups, require, require_disjoint
from ..data.question import Question
from ..errors import EditError
from ..interventions.edit import Edit, Head, check_heads
from ..interventions.engine import Path, choose_path, run_with_clean
from ..vlm.vlm import VLM
from .ablation import provenance
from .metric import Metric, measure

KINDS = ("top", "random", "low", "keep")


@dataclass(frozen=True, eq=False)
class RemovalCurve(Result):
    """A metric after k heads were removed, for several k.

    Attributes:
        ks: the K numbers of heads.
        metric: the metric's name.
        per_question: [Q, K, 4], after removing the first k heads of the ranking (top), random heads (the mean of the draws), the last k
            (low), and all but the first k (keep).
        random: the mean over questions for every single draw [K, R].
        base: the metric before any removal [Q].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> order = [(layer, head) for layer in range(6) for head in range(8)]
    >>> remove_heads_curve(vlm, qs, order, ks=(1, 4), draws=2).differences()["k"].tolist()
    [1, 4]
    """

    ks: Annotated[tuple[int, ...], "points"]
    metric: str
    per_question: Float[Tensor, "questions points 4"]
    random: Float[Tensor, "points draws"]
    base: Float[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<RemovalCurve of {self.metric}, k = {', '.join(map(str, self.ks))}: top minus random {self.area()}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        means = self.per_question.double().mean(0).tolist()
        return ({"k": k} | dict(zip(KINDS, row, strict=True)) for k, row in zip(self.ks, means, strict=True))

    def values(self, k: int, kind: str) -> Float[np.ndarray, " questions"]:
        """The metric of every question [Q] after removing k heads of a kind: "top", "random", "low" or "keep"."""
        return self.per_question[:, self.ks.index(k), KINDS.index(kind)].double().numpy()

    def to_frame(self) -> pd.DataFrame:
        """One row per k and kind: the metric with its interval, and its change from the unedited run with its interval."""
        values, group = self.per_question.double().numpy(), self.groups.numpy()
        delta = values - self.base.double().numpy()[:, None, None]
        (low, high), (less, more) = (statistics.bootstrap_interval(v, group) for v in (values, delta))
        mean, change = values.mean(0), delta.mean(0)
        rows = [
            {"k": k, "heads": kind, self.metric: mean[i, j], "low": low[i, j], "high": high[i, j]}
            | {"change": change[i, j], "change_low": less[i, j], "change_high": more[i, j]}
            for i, k in enumerate(self.ks)
            for j, kind in enumerate(KINDS)
        ]
        return pd.DataFrame(rows)

    def differences(self) -> pd.DataFrame:
        """Top minus random at every k, paired by question.

        Returns:
            One row per k. difference, low and high are over questions, for these draws, and p is Holm-corrected over k. p_draws is over
            draws: the share of sets, the top one included, that lower the metric as far; it is uncorrected and never below
            1 / (draws + 1).
        """
        found = [statistics.paired_difference(self.values(k, "top"), self.values(k, "random"), self.groups.numpy()) for k in self.ks]
        p = statistics.holm(np.array([d.p for d in found]))
        top = self.per_question[:, :, KINDS.index("top")].double().mean(0)
        below = (self.random <= top[:, None] + 1e-9).sum(1)
        rows = [{"k": k, "difference": d.mean, "low": d.low, "high": d.high} for k, d in zip(self.ks, found, strict=True)]
        return pd.DataFrame(rows).assign(p=p, p_draws=((1 + below) / (1 + self.random.shape[1])).numpy())

    def area(self) -> statistics.Difference:
        """Top minus random, the mean over all k, paired by question."""
        top, random = (self.per_question[:, :, KINDS.index(kind)].double().mean(1).numpy() for kind in ("top", "random"))
        return statistics.paired_difference(top, random, self.groups.numpy())

    def plot(self, **options: Any) -> Any:
        """The four curves with bands (see viz.removal_curves)."""
        return draw("removal_curves", self, **options)


@checked
def remove_heads_curve(
    vlm: VLM,
    test: Sequence[Question],
    ranking: Sequence[Head],
    ks: Sequence[int] = (1, 2, 4, 8, 12, 16),
    *,
    factor: float = 0.0,
    draws: int = 20,
    chosen_on: Iterable[Question | str] = (),
    metric: Metric = "accuracy",
    seed: Seed = 0,
    path: Path = "auto",
) -> RemovalCurve:
    """Remove the first k heads of a ranking, k random other heads, or the last k; or keep only the first k.

    All sets run side by side.

    Args:
        vlm: the model, from `si.load`.
        test: Q test questions.
        ranking: all heads of the model, the most important first.
        ks: the numbers of heads, from 1 to half of all heads.
        factor: what a removed head is multiplied by at the prompt's last token; the release of arXiv 2512.10978 uses 1e-4.
        draws: random sets per k, whose mean is compared.
        chosen_on: the questions that the ranking was made on, or the names of their images (`FunctionalHeads.pictures`).
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        seed: for the random sets.
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A RemovalCurve, per_question [Q, K, 4].

    Raises:
        EditError: for a ranking that does not have all heads, and for a k that leaves fewer than k other heads.
        LeakError: for a test image among those of `chosen_on`.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> order = [(layer, head) for layer in range(6) for head in range(8)]
    >>> len(remove_heads_curve(vlm, qs, order, ks=(1, 4), draws=2).to_frame())
    8
    """
    test = require(test)
    require_disjoint(chosen_on, test)
    L, H = vlm.n_layers, vlm.n_heads
    order = check_heads(ranking, L, H)
    if len(order) != L * H:
        raise EditError(f"the ranking has {len(order)} heads of {L * H}: give all of them, as random and low heads are drawn from the rest")
    wrong = [k for k in ks if not 1 <= k <= L * H // 2]
    if wrong or not ks or draws < 1:
        raise EditError(f"ks={tuple(ks)}, draws={draws}: give numbers of heads from 1 to {L * H // 2}, half of all, and at least one draw")
    rng = np.random.default_rng(seed)
    sets = [part for k in ks for part in _head_sets(order, k, draws, rng)]
    edit = Edit.stack([Edit.scaling(heads, factor, L, H) for heads in sets])
    path = choose_path(vlm, test, path)
    scores, clean = run_with_clean(vlm, test, edit, path, what="removing heads")
    found = measure(metric, scores, test).cpu().unflatten(1, (len(ks), draws + 3))
    per_question = torch.stack([found[..., 0], found[..., 3:].mean(-1), found[..., 1], found[..., 2]], -1)
    base = measure(metric, clean[:, :1], test)[:, 0].cpu()
    made = provenance(vlm, test, path=path, factor=factor, draws=draws, draw_seed=seed, ranking=[list(head) for head in order])
    single = found[..., 3:].double().mean(0)
    return RemovalCurve(tuple(ks), metric, per_question, single, base, torch.from_numpy(groups(test)), made)


def _head_sets(order: Sequence[Head], k: int, draws: int, rng: np.random.Generator) -> list[Sequence[Head]]:
    """Heads to remove: the first k, the last k, all but the first k, and random k of all but the first k."""
    others = order[k:]
    random = [[others[i] for i in rng.choice(len(others), k, replace=False)] for _ in range(draws)]
    return [order[:k], order[-k:], others, *random]
