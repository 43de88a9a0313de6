"""What a gain costs and how few scalars it needs: fits along a penalty, all tested on the same questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from ..adapters.scale.fit import Fit, FitSettings, fit_scale, fit_scales, prompts_to_fit
from ..adapters.scale.scale import ScAle
from ..attribution.ablation import provenance
from ..core import statistics
from ..core.arguments import Seed, checked
from ..core.figures import draw
from ..data.items import groups, require, require_disjoint
from ..data.question import Question
from ..errors import EditError
from ..interventions.edit import Head
from ..interventions.engine import Path
from ..vlm.vlm import VLM
from .accuracy import evaluate_many
from .table import Table, difference_columns, span

WEIGHTS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
PENALTIES = (0.0, 0.1, 0.3, 1.0, 3.0)
KEPT = (1, 2, 4, 8, 16, 32)
THRESHOLD = 0.05
TOLERANCE = 0.03
"""A loss of accuracy counts as none where its whole interval is smaller than this."""


@dataclass(frozen=True, eq=False)
class RetentionCurve(Table):
    """One row per weight of the penalty on changing answers to other questions.

    The columns, where p_corrected is Holm's over all tests of the table:

    - weight: of the penalty.
    - accuracy, gain: on the task, and over the base model with low, high, p and p_corrected.
    - others_accuracy, others_change: on other tasks, with the same columns.

    >>> RetentionCurve(({"weight": 0.0, "gain": 0.3}, {"weight": 3.0, "gain": 0.25})).to_frame()["weight"].tolist()
    [0.0, 3.0]
    """

    columns = ("weight", "accuracy", "gain", "low", "high", "others_change", "others_change_low", "others_change_high")

    def __repr__(self) -> str:
        return f"<RetentionCurve: {self.verdict}>"

    @property
    def verdict(self) -> str:
        """The two ends of the curve, and the smallest weight that loses nothing elsewhere, in plain words."""
        ends = [
            f"weight {r['weight']:g}: {_gain(r)}, {span(r, 'others_change', 'others_change_')} elsewhere"
            for r in (self.rows[0], self.rows[-1])
        ]
        safe = next((r for r in self.rows if r["others_change_low"] > -TOLERANCE), None)
        limit = f"keeps the whole interval of the loss elsewhere below {TOLERANCE}"
        found = f"the smallest weight that {limit} is {safe['weight']:g}, {_gain(safe)}" if safe else f"no weight {limit}"
        return "; ".join([*ends, found]) + "."

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the gain against the loss elsewhere (see viz.retention_curve)."""
        return draw("retention_curve", self, **options)


@dataclass(frozen=True, eq=False)
class SparsityPath(Table):
    """One row per fit of few scalars.

    The columns:

    - path: "l1", fitted with a penalty on mean |s - 1|; "cut", the k largest |s - 1| of the unpenalised fit with the others set to 1;
      "refit", fitted again on these k alone.
    - value: the penalty, or k.
    - moved: how many scalars differ from 1 by more than the threshold.
    - accuracy, gain: on the test questions, and over the base model with interval, p and Holm's p.
    - full_minus: how much better the unpenalised fit of all heads is, with the same columns.

    >>> rows = ({"path": "l1", "moved": 40, "gain": 0.3}, {"path": "cut", "moved": 4, "gain": 0.25})
    >>> [row["moved"] for row in SparsityPath(rows).of("cut").rows]
    [4]
    """

    columns = ("path", "value", "moved", "accuracy", "gain", "low", "high", "full_minus", "full_minus_high")

    def __repr__(self) -> str:
        return f"<SparsityPath: {self.verdict}>"

    def of(self, path: str) -> Self:
        """The rows of one path: "l1", "cut" or "refit"."""
        return type(self)(tuple(r for r in self.rows if r["path"] == path), self.about, self.provenance)

    def enough(self, path: str) -> Any:
        """The row with the fewest scalars that lose less than 0.03 compared with the full fit (whole interval).

        Args:
            path: "l1", "cut" or "refit".

        Returns:
            The row, or None where no row is close enough.
        """
        rows = [r for r in self.of(path).rows if r["full_minus_high"] < TOLERANCE]
        return min(rows, key=lambda r: r["moved"], default=None)

    @property
    def verdict(self) -> str:
        """How few scalars suffice, in plain words."""
        parts = []
        for path, words in (("refit", "fitted alone"), ("cut", "kept of the full fit"), ("l1", "left by the penalty")):
            row = self.enough(path)
            parts.append(f"{row['moved']} scalars {words} ({_gain(row)})" if row else f"no number of scalars {words}")
        full = next(r for r in self.rows if r["path"] == "l1" and r["value"] == 0)
        return f"All {self.about['heads']} heads: {_gain(full)}. Within {TOLERANCE} of that (whole interval): {'; '.join(parts)}."

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the gain by number of scalars (see viz.sparsity_path)."""
        return draw("sparsity_path", self, **options)


@checked
def retention_curve(
    vlm: VLM,
    train: Sequence[Question],
    test: Sequence[Question],
    retain: Sequence[Question],
    others: Sequence[Question],
    weights: Sequence[float] = WEIGHTS,
    *,
    heads: Iterable[Head] | None = None,
    mlp: bool = True,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> RetentionCurve:
    """Fit ScAle with each weight of a penalty on changing the answers to `retain`, and answer `test` and `others` with every fit.

    Args:
        vlm: the model, from `si.load`.
        train: questions of the task to learn.
        test: test questions of the task.
        retain: training questions whose answers should stay as they are.
        others: test questions of the tasks that `retain` stands for.
        weights: factors on the KL divergence from the base model on `retain` (retain_weight of FitSettings); 0 is no penalty.
        heads: the heads on which ScAle learns; None for all.
        mlp: whether ScAle also learns a scalar per MLP.
        seed: draws the images that are held out for early stopping.
        path: "auto" or "packed"; scalars are not fitted on the reference path.
        settings: other fields of FitSettings.

    Returns:
        A RetentionCurve, one row per weight.

    Raises:
        EditError: for weights that are negative, given twice, or none.
        LeakError: where questions to learn from and questions to answer share an image.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> train, test = (si.load_questions("scenes/relation", split, n=16) for split in ("train", "test"))
    >>> retain, others = (si.load_questions("scenes/count", split, n=16) for split in ("train", "test"))
    >>> curve = retention_curve(vlm, train, test, retain, others, weights=(0.0, 1.0), epochs=1)
    >>> [row["weight"] for row in curve.rows]
    [0.0, 1.0]
    """
    train, test, retain, others = require(train), require(test), require(retain), require(others)
    require_disjoint([*train, *retain], [*test, *others])
    if not weights or min(weights) < 0 or len(set(weights)) < len(weights):
        raise EditError(f"weights={list(weights)}: give different numbers of at least 0")
    chosen = None if heads is None else list(heads)
    prompts = prompts_to_fit(vlm, train, 1, FitSettings.of(**settings))
    scales = [
        fit_scale(
            vlm,
            train,
            chosen,
            mlp,
            seed=seed,
            prompts=prompts,
            path=path,
            retain=retain if weight else None,
            **settings | {"retain_weight": weight},
        )
        for weight in sorted(weights)
    ]
    base, *right = _answers(vlm, test, scales, path)
    base_others, *right_others = _answers(vlm, others, scales, path)
    gains = [statistics.paired_difference(r, base, groups(test)) for r in right]
    costs = [statistics.paired_difference(r, base_others, groups(others)) for r in right_others]
    corrected = statistics.holm(np.array([d.p for d in (*gains, *costs)]))
    rows = []
    for i, (weight, scale) in enumerate(zip(sorted(weights), scales, strict=True)):
        row: dict[str, Any] = {"weight": float(weight), "parameters": scale.n_parameters, "epochs": scale.settings["best_epoch"]}
        row |= {"accuracy": float(right[i].mean()), **difference_columns("gain", gains[i], corrected[i])}
        row |= {"others_accuracy": float(right_others[i].mean())}
        rows.append(row | difference_columns("others_change", costs[i], corrected[len(gains) + i], "others_change_"))
    about = {"base": float(base.mean()), "others_base": float(base_others.mean())}
    made = provenance(vlm, test, train=len(train), retain=len(retain), others=len(others), seed=seed)
    return RetentionCurve(tuple(rows), about, made)


@checked
def sparsity_path(
    vlm: VLM,
    train: Sequence[Question],
    test: Sequence[Question],
    penalties: Sequence[float] = PENALTIES,
    kept: Sequence[int] = KEPT,
    *,
    threshold: float = THRESHOLD,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> SparsityPath:
    """Measure how few head scalars suffice: fits along an L1 penalty, and the k scalars furthest from 1 of the unpenalised fit.

    The k heads are chosen on training questions; `test` is only answered.

    Args:
        vlm: the model, from `si.load`.
        train: questions to learn from.
        test: test questions of the same task.
        penalties: l1 of FitSettings; 0 is always among them.
        kept: the k to try, both cut from the fit of all heads and fitted again on their own.
        threshold: a scalar closer to 1 counts as 1.
        seed: draws the images that are held out for early stopping.
        path: "auto" or "packed"; scalars are not fitted on the reference path.
        settings: other fields of FitSettings.

    Returns:
        A SparsityPath, one row per fit.

    Raises:
        EditError: for a k that is not between 1 and the number of heads, and for a negative penalty.
        LeakError: where questions to learn from and questions to answer share an image.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> train, test = (si.load_questions("scenes/relation", split, n=16) for split in ("train", "test"))
    >>> found = sparsity_path(vlm, train, test, penalties=(), kept=(1,), epochs=1)
    >>> [(row["path"], row["value"]) for row in found.rows]
    [('l1', 0.0), ('cut', 1.0), ('refit', 1.0)]
    """
    train, test = require(train), require(test)
    require_disjoint(train, test)
    every = vlm.n_layers * vlm.n_heads
    wrong = [k for k in kept if not 1 <= k <= every]
    if wrong or min(penalties, default=0) < 0:
        raise EditError(f"kept={list(kept)}, penalties={list(penalties)}: give k from 1 to {every}, and penalties of at least 0")
    prompts = prompts_to_fit(vlm, train, len(kept), FitSettings.of(**settings))
    common: dict[str, Any] = {"prompts": prompts, "path": path}
    values = sorted({0.0, *penalties})
    penalised = [fit_scale(vlm, train, mlp=False, seed=seed, **common, **settings | {"l1": value}) for value in values]
    order = [head for head, _ in penalised[0].ranking()]
    cut = [_only(penalised[0], order[:k]) for k in kept]
    refit = fit_scales(vlm, train, [Fit(f"top {k}", tuple(order[:k]), mlp=False, seed=seed) for k in kept], **common, **settings)
    named = [
        *(("l1", value, _moved(scale, threshold), scale) for value, scale in zip(values, penalised, strict=True)),
        *(("cut", float(k), k, scale) for k, scale in zip(kept, cut, strict=True)),
        *(("refit", float(k), k, scale) for k, scale in zip(kept, refit, strict=True)),
    ]
    base, *right = _answers(vlm, test, [scale for *_, scale in named], path)
    group = groups(test)
    gains = [statistics.paired_difference(r, base, group) for r in right]
    against = [statistics.paired_difference(right[0], r, group) for r in right]
    corrected = statistics.holm(np.array([d.p for d in (*gains, *against)]))
    rows = []
    for i, (kind, value, moved, _) in enumerate(named):
        row: dict[str, Any] = {"path": kind, "value": value, "moved": moved, "accuracy": float(right[i].mean())}
        row |= difference_columns("gain", gains[i], corrected[i])
        rows.append(row | difference_columns("full_minus", against[i], corrected[len(gains) + i], "full_minus_"))
    about = {"base": float(base.mean()), "heads": every, "threshold": threshold, "order": [list(h) for h in order]}
    return SparsityPath(tuple(rows), about, provenance(vlm, test, train=len(train), seed=seed))


def _answers(vlm: VLM, questions: Sequence[Question], scales: Sequence[ScAle], path: Path) -> list[np.ndarray]:
    """Which questions are answered right [Q], by the base model first and then with each set of scalars."""
    base = replace(ScAle.neutral(vlm), scope=scales[0].scope, at=scales[0].at)
    found = evaluate_many(vlm, questions, [base, *scales], path=path)
    return [evaluation.per_question.numpy() for evaluation in found]


def _only(scale: ScAle, heads: Sequence[Head]) -> ScAle:
    """The same scalars on these heads, 1 elsewhere."""
    scalars = torch.ones_like(scale.scalars)
    for head in heads:
        scalars[head] = scale.scalars[head]
    return replace(scale, scalars=scalars, n_parameters=len(heads), heads=tuple(heads), history=(), trajectory=None)


def _moved(scale: ScAle, threshold: float) -> int:
    return int(((scale.scalars - 1).abs() > threshold).sum())


def _gain(row: Any) -> str:
    return f"gain {span(row, 'gain')}"
