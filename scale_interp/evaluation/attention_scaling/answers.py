"""Answers under ScalingVis, AdaptVis, PASTA and ITI, settings tuned on validation questions, and what they are worth on other data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path as FilePath
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ...adapters.attention_scaling.adaptvis import AdaptVis, gated_scores
from ...adapters.attention_scaling.method import AttentionMethod, all_scores
from ...adapters.attention_scaling.scalingvis import AttentionScale
from ...attribution.ablation import provenance
from ...attribution.metric import measure
from ...core import statistics
from ...core.arguments import checked, fits
from ...core.figures import draw
from ...core.notebook import FigureView
from ...core.result import APART, Misfit, Result, declared, entries
from ...data.identity import image_names
from ...data.items import require, require_disjoint
from ...data.question import Question
from ...errors import EditError, LeakError
from ...interventions.attention.run import answer_all
from ...interventions.choices import Scoring
from ...interventions.engine import Path, choose_path
from ...interventions.paths import check_finite
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from ..accuracy import Evaluation, answering
from .weight_curve import WEIGHTS, distinct, scaling_curve

METHODS: dict[str, type[AttentionScale | AdaptVis]] = {"AttentionScale": AttentionScale, "AdaptVis": AdaptVis}
PAPER_THRESHOLDS = (0.3, 0.35, 0.4)
DECILES = 10


@checked
def evaluate_scaled(
    vlm: VLM,
    questions: Sequence[Question],
    methods: Sequence[AttentionMethod],
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    selected: Sequence[Tensor] | None = None,
) -> list[Evaluation]:
    """Answer the questions under each method.

    Methods that only change the last row share one reading of each prompt; the last token is then run once per weight, and once for
    AdaptVis' confidence. rows="all" and PASTA change the prompt's keys, so they take a whole forward pass for every answer, as do models
    whose prompts attend in both directions.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        methods: AttentionScale, AdaptVis, PASTA or Steering objects.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.
        selected: booleans [T] per question, the prompt's tokens that are scaled in place of the image's; this takes whole passes.

    Returns:
        One Evaluation per method, scores [Q, C]. provenance["passes"] is the number of forward passes, of the last token or of the whole
        prompt, that the call took for all its methods.

    Raises:
        EditError: for no method, or an object that is not one.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> [e.provenance["settings"]["weight"] for e in evaluate_scaled(vlm, qs, [AttentionScale(0.5), AttentionScale(2.0)])]
    [0.5, 2.0]
    """
    questions = require(questions)
    if not isinstance(methods, Sequence) or not methods or not all(hasattr(m, "scores") and hasattr(m, "whole") for m in methods):
        raise EditError("methods: give a list of at least one AttentionScale, AdaptVis, PASTA or Steering")
    scores: dict[int, Tensor] = {}
    passes = 0
    for whole in (False, True):
        members = [i for i, method in enumerate(methods) if method.whole == whole]
        if not members:
            continue
        run = partial(all_scores, methods=[methods[i] for i in members])
        columns, taken = answer_all(vlm, questions, run, path, whole=whole, prompts=prompts, scoring=scoring, selected=selected)
        scores |= dict(zip(members, columns, strict=True))
        passes += taken
    out = []
    for i, method in enumerate(methods):
        check_finite(vlm, questions, scores[i][:, None])
        way = "reference" if method.whole or selected is not None else choose_path(vlm, questions, path)
        made = answering(vlm, questions, path=way, scoring=scoring, passes=passes, **method.config())
        out.append(Evaluation(questions, scores[i].cpu(), made))
    return out


@dataclass(frozen=True, eq=False)
class Tuned(Result, FigureView):
    """The setting with the highest accuracy on validation questions, and the whole grid.

    Args:
        method: the method with the chosen setting.
        grid: one row per setting, in the order tried, with its accuracy.
        base: the unedited model's accuracy.
        passes: how many forward passes the tuning took.
        groups: names of the images that were tuned on, which no test may contain.
        provenance: model, data, settings and versions.

    >>> grid = ({"weight": 0.5, "accuracy": 0.6}, {"weight": 1.5, "accuracy": 0.75})
    >>> Tuned(AttentionScale(1.5), grid, base=0.7, passes=16, groups=("scene 1",)).accuracy
    0.75
    """

    method: AttentionScale | AdaptVis
    grid: tuple[Mapping[str, Any], ...]
    base: float
    passes: int
    groups: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    file = "json"
    other_kind = "holds no tuning of AttentionScale or AdaptVis but {found!r}; give the file of a {kind}"

    def __repr__(self) -> str:
        return f"<Tuned {self.method}: accuracy {self.accuracy:.3f}, base {self.base:.3f} on {self.provenance.get('n')} questions>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return sorted(self.grid, key=lambda row: -row["accuracy"])

    @property
    def accuracy(self) -> float:
        """The largest accuracy of the grid; as the setting was chosen by it, expect less on other questions."""
        return max(row["accuracy"] for row in self.grid)

    def to_frame(self) -> pd.DataFrame:
        """One row per setting."""
        return pd.DataFrame(list(self.grid))

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the accuracy over the whole grid with the chosen setting marked (see viz.tuning_grid)."""
        return draw("tuning_grid", self, **options)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = super()._parts()
        return tensors, self.method.config() | {name: value for name, value in meta.items() if name != "method"}

    @classmethod
    def _arguments(cls, path: FilePath, meta: Mapping[str, Any]) -> dict[str, Any]:
        found = entries(path, meta, {"settings": dict[str, Any]} | declared(cls).metadata | {"method": str})
        config = {"method": found["method"], "settings": found.pop("settings")}
        if found["method"] not in METHODS:
            raise Misfit(f"it holds no tuning of {' or '.join(METHODS)}")
        return found | {"method": METHODS[found["method"]].from_content(config, path)}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if not self.grid or not all("accuracy" in row and fits(row, Mapping[str, float]) for row in self.grid):
            raise Misfit(f"{APART}: a row of the grid has no accuracy")


@checked
def tune_scaling(
    vlm: VLM,
    questions: Sequence[Question],
    weights: Sequence[float] = WEIGHTS,
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    **options: Any,
) -> Tuned:
    """Choose the weight of ScalingVis with the highest accuracy on validation questions (arXiv 2503.01773).

    Of equally good weights it takes the one closest to 1. The paper tunes on a fifth of the items; never give the test questions.

    Args:
        vlm: the model, from `si.load`.
        questions: validation questions.
        weights: the weights to try; by default the paper's.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.
        options: rows, layers, heads and steps of AttentionScale.

    Returns:
        A Tuned AttentionScale.

    Raises:
        EditError: for no weight, and for a weight or an option that AttentionScale refuses.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", "validation", n=8)
    >>> list(tune_scaling(vlm, qs, (0.5, 2.0)).to_frame().columns)
    ['weight', 'accuracy']
    """
    curve = scaling_curve(vlm, questions, weights, path=path, prompts=prompts, scoring=scoring, **options)
    rows = [{"weight": w, "accuracy": right} for w, right in zip(curve.weights, curve.per_question.mean(0).tolist(), strict=True)]
    best = max(rows, key=lambda row: (row["accuracy"], -abs(row["weight"] - 1)))
    method = AttentionScale(best["weight"], **options)
    made = provenance(vlm, questions, path=path, scoring=scoring)
    return Tuned(method, tuple(rows), float(curve.base.mean()), curve.provenance["passes"], image_names(questions), made)


@checked
def tune_adaptvis(
    vlm: VLM,
    questions: Sequence[Question],
    weights_low: Sequence[float] = (0.5, 0.8),
    weights_high: Sequence[float] = (1.2, 1.5, 2.0),
    thresholds: Sequence[float] | None = None,
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    **options: Any,
) -> Tuned:
    """Choose the two weights and the threshold of AdaptVis with the highest accuracy on validation questions (arXiv 2503.01773).

    Every weight is run once per question; more thresholds and pairs of weights cost nothing. Of equally good settings it takes the one
    whose weights are closest to 1, then the lowest threshold. Never give the test questions.

    Args:
        vlm: the model, from `si.load`.
        questions: validation questions.
        weights_low: weights where the model is less sure than the threshold; by default the paper's.
        weights_high: weights where it is surer; by default the paper's.
        thresholds: by default the paper's 0.3, 0.35 and 0.4 and, as models differ in how sure they are, the deciles of the confidences on
            these questions.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.
        options: rows, layers, heads, steps, confidence and legacy of AdaptVis.

    Returns:
        A Tuned AdaptVis.

    Raises:
        EditError: for no weight or threshold, and for one that AdaptVis refuses.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", "validation", n=8)
    >>> len(tune_adaptvis(vlm, qs, [0.5], [1.5, 2.0], thresholds=[0.3]).grid)
    2
    """
    questions = require(questions)
    low, high = distinct("weights_low", weights_low), distinct("weights_high", weights_high)
    gate = AdaptVis(low[0], high[0], 0.0, **options)
    scales = {w: AttentionScale(w, gate.rows, layers=gate.layers, heads=gate.heads, steps=gate.steps) for w in dict.fromkeys(low + high)}
    run = partial(gated_scores, gate=gate, scales=list(scales.values()))
    (base, sure, *columns), passes = answer_all(vlm, questions, run, path, whole=gate.whole, prompts=prompts, scoring=scoring)
    confidence = sure[:, 0].cpu()
    right = {weight: _right(scores, questions) for weight, scores in zip(scales, columns, strict=True)}
    if thresholds is None:
        deciles = torch.quantile(confidence, torch.linspace(0, 1, DECILES + 1, dtype=confidence.dtype)[1:-1]).tolist()
        thresholds = (*PAPER_THRESHOLDS, *deciles)
    rows = []
    for a, b, threshold in product(low, high, sorted(distinct("thresholds", thresholds))):
        correct = torch.where(confidence < threshold, right[a], right[b])
        rows.append({"weight_low": a, "weight_high": b, "threshold": threshold, "accuracy": correct.mean().item()})
    best = max(rows, key=lambda r: (r["accuracy"], -abs(r["weight_low"] - 1) - abs(r["weight_high"] - 1), -r["threshold"]))
    method = AdaptVis(best["weight_low"], best["weight_high"], best["threshold"], **options)
    made = provenance(vlm, questions, path=path, scoring=scoring)
    return Tuned(method, tuple(rows), _right(base, questions).mean().item(), passes, image_names(questions), made)


@checked
def transfer_table(
    vlm: VLM,
    tuned: Mapping[str, Tuned],
    tests: Mapping[str, Sequence[Question]],
    *,
    path: Path = "auto",
    scoring: Scoring = "auto",
) -> pd.DataFrame:
    """Measure what settings tuned on one data set are worth on others.

    Args:
        vlm: the model, from `si.load`.
        tuned: name -> setting, from `si.tune_scaling` or `si.tune_adaptvis`.
        tests: name -> test questions.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.

    Returns:
        One row per tuning and test set: tuned_on, tested_on, method, n, base, accuracy, and the paired difference from base with low, high,
        p and p_holm (corrected over all rows).

    Raises:
        EditError: for no tuning or no test set.
        LeakError: where a test set shares an image with any tuning.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", "validation", n=8)
    >>> tuned = {"relation": tune_scaling(vlm, qs, (0.5, 2.0))}
    >>> transfer_table(vlm, tuned, {"exists": si.load_questions("scenes/exists", n=8)})["tested_on"].tolist()
    ['exists']
    """
    if not tuned or not tests:
        raise EditError("give at least one tuning and one test set")
    for (name, one), (test, questions) in product(tuned.items(), tests.items()):
        try:
            require_disjoint(one.groups, require(questions))
        except LeakError as error:
            raise LeakError(f"test set {test!r} was tuned on for {name!r}: {error}") from error
    rows = []
    for test, questions in tests.items():
        methods = [AttentionScale(1.0), *(one.method for one in tuned.values())]
        base, *found = evaluate_scaled(vlm, questions, methods, path=path, scoring=scoring)
        for (name, one), evaluation in zip(tuned.items(), found, strict=True):
            row = {"tuned_on": name, "tested_on": test, "method": repr(one.method), "n": len(questions), "base": base.accuracy}
            rows.append(row | {"accuracy": evaluation.accuracy} | evaluation.compare(base).columns("difference"))
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy()))


def _right(scores: Tensor, questions: Sequence[Question]) -> Tensor:
    return measure("accuracy", scores, questions).cpu()
