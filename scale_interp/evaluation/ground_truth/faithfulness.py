"""Faithfulness curves of a ranking of heads: how much of a metric remains with its first heads, and without them (MIB)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution.ablation import provenance, read_clean
from ...attribution.metric import Metric, measure
from ...core import statistics
from ...core.arguments import checked
from ...core.figures import draw
from ...core.notebook import MOST, FigureView
from ...core.result import Result
from ...data.items import groups, require, require_disjoint
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.edit import Edit, Head, check_heads
from ...interventions.engine import Path, choose_path, run_with_clean
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM

Curve = Literal["keep", "remove"]
POINTS = 32


@dataclass(frozen=True, eq=False)
class Faithfulness(Result, FigureView):
    """A metric with all but the first k heads of a ranking silenced (keep), or only these silenced (remove).

    Faithfulness is (m - m_none) / (m_all - m_none) of the means over questions, where m_none is the metric with all heads silenced and
    m_all that of the unedited model (MIB, arXiv 2504.13151, section 3).

    Args:
        ks: the K numbers of heads, from 0 to all.
        metric: the metric's name.
        keep: the metric with only the first k heads left as they are [Q, K].
        remove: the metric with only the first k heads silenced [Q, K].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

    >>> keep, remove = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    >>> Faithfulness((0, 24, 48), "logit_diff", keep, remove, torch.tensor([0])).cpr
    0.5
    """

    ks: Annotated[tuple[int, ...], "points"]
    metric: str
    keep: Float[Tensor, "questions points"]
    remove: Float[Tensor, "questions points"]
    groups: Int[Tensor, " questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Faithfulness of {self.metric}, {len(self.keep)} questions: CPR {self.cpr:.3f}, CMD {self.cmd:.3f}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        keep, remove, step = self.curve("keep").tolist(), self.curve("remove").tolist(), -(-len(self.ks) // MOST)
        return ({"heads": self.ks[i], "only these kept": keep[i], "these removed": remove[i]} for i in range(0, len(self.ks), step))

    def curve(self, which: Curve = "keep") -> Float[np.ndarray, " points"]:
        """Faithfulness at every k [K], of the "keep" or the "remove" curve."""
        return self._curves(which, np.ones((1, len(self._means("keep")))))[0]

    @property
    def cpr(self) -> float:
        """The area under the keep curve over the share of heads; larger is better (MIB's CPR)."""
        return float(self._areas("keep", self.curve("keep")[None])[0])

    @property
    def cmd(self) -> float:
        """The mean distance of the keep curve from 1; smaller is better (MIB's CMD)."""
        return float(self._areas("distance", self.curve("keep")[None])[0])

    @property
    def removed(self) -> float:
        """The area under the remove curve; smaller is better."""
        return float(self._areas("remove", self.curve("remove")[None])[0])

    def interval(self, of: Literal["cpr", "cmd", "removed"] = "cpr", level: float = statistics.LEVEL) -> tuple[float, float]:
        """Percentile bootstrap interval of an area; whole images are drawn, and m_none and m_all computed from the same draw.

        Args:
            of: which area.
            level: the interval's coverage, between 0 and 1.

        Returns:
            The lower and the upper end.
        """
        which: Curve = "remove" if of == "removed" else "keep"
        curves = self._curves(which, self._draws())
        areas = self._areas("distance" if of == "cmd" else which, curves)
        low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _means(self, which: Curve) -> np.ndarray:
        return statistics.cluster_means(getattr(self, which).double().numpy(), self.groups.numpy())

    def _draws(self) -> np.ndarray:
        G = len(self._means("keep"))
        return np.random.default_rng(0).multinomial(G, np.full(G, 1 / G), statistics.RESAMPLES).astype(float)

    def _curves(self, which: Curve, draws: np.ndarray) -> np.ndarray:
        """The curve under each row of weights [N, G] -> [N, K]."""
        keep = draws @ self._means("keep") / draws.sum(1, keepdims=True)
        found = draws @ self._means(which) / draws.sum(1, keepdims=True)
        none, whole = keep[:, :1], keep[:, -1:]
        return (found - none) / (whole - none)

    def _areas(self, of: Literal["keep", "remove", "distance"], curves: np.ndarray) -> np.ndarray:
        shares = np.array(self.ks) / self.ks[-1]
        return np.trapezoid(np.abs(1 - curves) if of == "distance" else curves, shares, axis=1)

    def to_frame(self) -> pd.DataFrame:
        """One row per k: faithfulness of both curves with percentile bootstrap intervals."""
        draws = self._draws()
        columns: dict[str, np.ndarray] = {}
        for which in ("keep", "remove"):
            low, high = np.quantile(self._curves(which, draws), [0.025, 0.975], axis=0)
            columns |= {which: self.curve(which), f"{which}_low": low, f"{which}_high": high}
        return pd.DataFrame({"k": self.ks} | columns)

    def plot(self, **options: Any) -> Any:
        """A plotly figure of both curves with their intervals as bands (see viz.faithfulness_curves)."""
        return draw("faithfulness_curves", {"ranking": self}, **options)


@checked
def faithfulness(
    vlm: VLM,
    questions: Sequence[Question],
    ranking: Sequence[Head],
    ks: Sequence[int] | None = None,
    *,
    mode: Literal["mean", "zero"] = "mean",
    chosen_on: Iterable[Question | str] = (),
    metric: Metric = "logit_diff",
    path: Path = "auto",
) -> Faithfulness:
    """Keep only the first k heads of a ranking at the last token, and remove only these, for every k side by side.

    Args:
        vlm: the model, from `si.load`.
        questions: Q test questions.
        ranking: all heads of the model, the most important first.
        ks: K numbers of heads; by default about 32, closer together among the first. 0 and all heads are always added.
        mode: whether a silenced head is replaced by its mean over the questions or by 0.
        chosen_on: the questions that the ranking was made on, or the names of their images.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A Faithfulness, keep and remove [Q, K].

    Raises:
        EditError: for a ranking that does not have all heads, and for a k that is out of range.
        LeakError: for a test image among those of `chosen_on`.
        DataError: where silencing all heads does not change the metric.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> order = [(layer, head) for layer in range(6) for head in range(8)]
    >>> faithfulness(vlm, qs, order, ks=(0, 1, 8, 48)).ks
    (0, 1, 8, 48)
    """
    questions = require(questions)
    require_disjoint(chosen_on, questions)
    if mode not in ("mean", "zero"):
        raise EditError(f"mode {mode!r}: choose 'mean' or 'zero'")
    L, H = vlm.n_layers, vlm.n_heads
    order = check_heads(ranking, L, H)
    if len(order) != L * H:
        raise EditError(f"the ranking has {len(order)} heads of {L * H}: give all of them, the most important first")
    points = _points(L * H) if ks is None else tuple(sorted({0, L * H, *ks}))
    if points[0] < 0 or points[-1] > L * H:
        raise EditError(f"ks {list(points)}: give numbers from 0 to {L * H}")
    path, prompts = choose_path(vlm, questions, path), PrefixStore(vlm, questions)
    means = read_clean(vlm, questions, path, prompts)[0].mean(0, keepdim=True) if mode == "mean" else None
    edits = Edit.stack([_silenced(order[k:], means, L, H) for k in points] + [_silenced(order[:k], means, L, H) for k in points])
    scores, _ = run_with_clean(vlm, questions, edits, path, prompts=prompts, what="faithfulness")
    found = measure(metric, scores, questions).cpu()
    K = len(points)
    if abs(float((found[:, K - 1] - found[:, 0]).mean())) < 1e-6:
        raise DataError(
            "silencing all heads does not change the metric: heads have no effect to attribute; use other questions or another metric"
        )
    made = provenance(vlm, questions, metric=metric, path=path, mode=mode, ranking=[list(h) for h in order])
    return Faithfulness(points, metric, found[:, :K], found[:, K:], torch.from_numpy(groups(questions)), made)


def _points(n: int) -> tuple[int, ...]:
    """About POINTS numbers from 0 to n, each step a little larger than the one before."""
    return tuple(sorted({0, *(round(k) for k in np.geomspace(1, n, POINTS))}))


def _silenced(heads: Sequence[Head], means: Tensor | None, L: int, H: int) -> Edit:
    """One variant in which the given heads output 0, or their mean."""
    scale = torch.ones(1, L, H, dtype=torch.float32)
    for layer, head in heads:
        scale[0, layer, head] = 0.0
    return Edit(scale=scale) if means is None else Edit(scale=scale, shift=(1 - scale[..., None]).to(means.device) * means)
