"""How well attribution methods find heads that are known to matter: AUROC, precision at k and faithfulness over draws of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from ...adapters.scale.fit import fit_scale
from ...attribution.ablation import ablate, amplify, provenance
from ...attribution.attention.objects import object_attention
from ...attribution.flow import knockout
from ...attribution.gradient import attribute
from ...attribution.head_probe import probe
from ...attribution.integrated import integrated_gradients
from ...attribution.patching import patch
from ...core import statistics
from ...core.arguments import checked
from ...core.figures import draw
from ...core.notebook import FigureView
from ...core.progress import track
from ...core.result import APART, Misfit, Result, require_heads
from ...core.tensors import expect
from ...data.contrast import contrasts
from ...data.items import require, require_disjoint
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.edit import Head, check_heads
from ...vlm.vlm import VLM
from .faithfulness import faithfulness

FOLDS = 3


@dataclass(frozen=True)
class Method:
    """A way to score heads on questions.

    Args:
        score: model, questions and seed -> scores [L, H], larger for heads that matter more by this method.
        why: what the method detects and what it misses.
    """

    score: Callable[[VLM, Sequence[Question], int], Float[Tensor, "layers heads"]]
    why: str


def _probe(vlm: VLM, questions: Sequence[Question], seed: int) -> Tensor:
    return probe(vlm, questions, label="answer_text", folds=FOLDS, permutations=1, seed=seed).scores


def _scalars(vlm: VLM, questions: Sequence[Question], seed: int) -> Tensor:
    return (fit_scale(vlm, questions, mlp=False, seed=seed).scalars - 1).abs()


METHODS: Mapping[str, Method] = {
    "zero ablation": Method(
        lambda vlm, qs, seed: ablate(vlm, qs, "zero").scores,
        "removes a head's constant part too, so a head that says the same to every question also scores.",
    ),
    "mean ablation": Method(
        lambda vlm, qs, seed: ablate(vlm, qs, "mean").scores,
        "takes away only what varies over questions: a constant head scores 0.",
    ),
    "resample ablation": Method(
        lambda vlm, qs, seed: ablate(vlm, qs, "resample", seed=seed).scores,
        "puts in another question's output: a constant head scores 0, a varying one the harm of a wrong message.",
    ),
    "amplification": Method(
        lambda vlm, qs, seed: amplify(vlm, qs, 2.0).scores.abs(),
        "doubles constant parts too, and a head that says enough already gains little; the size counts, its sign does not.",
    ),
    "patching": Method(
        lambda vlm, qs, seed: patch(vlm, contrasts(qs)).scores,
        "compares two images with the same words: only what depends on the image and moves the answer scores.",
    ),
    "gradient": Method(
        lambda vlm, qs, seed: attribute(vlm, qs).scores,
        "the slope at the intact run: zero ablation to first order, constant parts included.",
    ),
    "integrated gradients": Method(
        lambda vlm, qs, seed: integrated_gradients(vlm, qs).scores,
        "the slope averaged from silence to the intact run: no saturation, but constant parts count.",
    ),
    "probe": Method(
        _probe,
        "finds what can be read off a head, whether or not anything reads it: a decoy scores like a listed head.",
    ),
    "attention to object": Method(
        lambda vlm, qs, seed: object_attention(vlm, qs).box.scores,
        "sees where a head looks, not what it passes on; a head that reads the image from another token looks at no object.",
    ),
    "knockout of the image": Method(
        lambda vlm, qs, seed: knockout(vlm, qs, by="head").scores,
        "hides the image from one head of the last token: a head that reads the image from another token scores exactly 0.",
    ),
    "learned scalars": Method(
        _scalars,
        "|s - 1| is large where a change of size helps the fit: a head that does its work well enough may stay at 1.",
    ),
}
"""Scores keep their sign where it means that a head helps; amplification and scalars are scored by size."""


@dataclass(frozen=True, eq=False)
class Localisation(Result, FigureView):
    """Scores of every head by M methods on S draws of questions, compared with the heads that are known to matter.

    Args:
        methods: names of the M methods.
        known: the heads that matter.
        scores: [M, S, L, H], larger for heads that matter more by the method.
        cpr: the area under the faithfulness curve of each ranking on other questions [M, S]; nan where none were given.
        cmd: the mean distance of that curve from 1 [M, S]; nan where no questions were given.
        provenance: model, data, settings and versions.

    >>> scores, nothing = torch.tensor([[[[0.0, 0.9], [0.5, 0.1]]]]), torch.full((1, 1), float("nan"))
    >>> Localisation(("mine",), ((0, 1),), scores, nothing, nothing).auroc().tolist()
    [[1.0]]
    """

    methods: Annotated[tuple[str, ...], "methods"]
    known: tuple[Head, ...]
    scores: Float[Tensor, "methods draws layers heads"]
    cpr: Float[Tensor, "methods draws"]
    cmd: Float[Tensor, "methods draws"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        found = self.auroc().mean(1)
        M, S, L, H = self.scores.shape
        worst = self.methods[int(found.argmin())]
        return f"<Localisation of {len(self.known)} of {L * H} heads by {M} methods, {S} draws; lowest AUROC {found.min():.3f}, {worst}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        found = zip(self.methods, self.auroc().mean(1).tolist(), self.precision().mean(1).tolist(), strict=True)
        return ({"method": method, "AUROC": area, "precision at k": precision} for method, area, precision in found)

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        H = self.scores.shape[-1]
        known = np.zeros(self.scores.shape[2] * H, bool)
        known[[layer * H + head for layer, head in self.known]] = True
        return self.scores.flatten(2).double().numpy(), known

    def auroc(self) -> Float[np.ndarray, "methods draws"]:
        """The probability that a known head scores higher than another head, where ties count half [M, S]."""
        return auroc(*self._flat())

    def precision(self) -> Float[np.ndarray, "methods draws"]:
        """The share of known heads among the k best, where k is their number; the expectation over random breaking of ties [M, S]."""
        scores, known = self._flat()
        k = int(known.sum())
        last = np.sort(scores, axis=-1)[..., -k, None]
        above, level = scores > last, scores == last
        places = (k - above.sum(-1)) / level.sum(-1)
        return np.asarray(((above & known).sum(-1) + places * (level & known).sum(-1)) / k)

    def to_frame(self) -> pd.DataFrame:
        """One row per method: AUROC, precision at k, CPR and CMD, and one sentence that explains them.

        Returns:
            Means over draws with intervals: a bootstrap over draws, widened by Student's t. An interval has no width where all draws agree,
            and is nan for a single draw.
        """
        parts = {"auroc": self.auroc(), "precision": self.precision(), "cpr": self.cpr.numpy(), "cmd": self.cmd.numpy()}
        draws = np.arange(self.scores.shape[1])
        rows = []
        for m, method in enumerate(self.methods):
            row: dict[str, Any] = {"method": method}
            for name, values in parts.items():
                low, high = statistics.bootstrap_interval(values[m], draws)
                row |= {name: float(values[m].mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append(row | {"why": METHODS[method].why if method in METHODS else ""})
        return pd.DataFrame(rows)

    def plot(self, **options: Any) -> Any:
        """A plotly figure of AUROC and precision of every method with intervals (see viz.localisation)."""
        return draw("localisation", {"": self}, **options)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = super()._parts()
        return {"scores": self.scores} if self.cpr.isnan().any() else tensors, meta

    @classmethod
    def _tensors(cls, path: FilePath, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        if tensors.keys() != {"scores"}:
            return super()._tensors(path, tensors)
        scores = expect(path, tensors, "scores", 4)
        nothing = torch.full(scores.shape[:2], float("nan"), dtype=torch.double)
        return {"scores": scores, "cpr": nothing, "cmd": nothing}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        L, H = self.scores.shape[2:]
        require_heads(self.known, L, H)
        if not 0 < len(self.known) < L * H:
            raise Misfit(f"{APART}: {len(self.known)} of {L * H} heads are known")


def auroc(scores: Float[np.ndarray, "*draws places"], known: Bool[np.ndarray, " places"]) -> Float[np.ndarray, "*draws"]:
    """The probability that a known place scores higher than another one, where ties count half."""
    ranks = stats.rankdata(scores, axis=-1)
    k, rest = known.sum(), (~known).sum()
    return np.asarray((ranks[..., known].sum(-1) - k * (k + 1) / 2) / (k * rest))


@checked
def localise(
    vlm: VLM,
    draws: Sequence[Sequence[Question]],
    known: Iterable[Head],
    methods: Iterable[str] | None = None,
    *,
    faithful_on: Sequence[Question] | None = None,
) -> Localisation:
    """Score all heads by each method on each draw of questions, and compare the scores with the heads that are known to matter.

    Args:
        vlm: the model, from `si.load`.
        draws: S sets of questions, such as one per seed. Rendered scene questions have the contrasts that patching needs and the boxes that
            attention to object needs.
        known: the heads of a known circuit, or of a planted shortfall.
        methods: names in METHODS; by default all.
        faithful_on: other questions, on which the faithfulness of the rankings is measured (mean ablation).

    Returns:
        A Localisation, scores [M, S, L, H].

    Raises:
        EditError: for an unknown method, and for known heads that are none or all.
        DataError: for no draw.
        LeakError: where `faithful_on` shares an image with a draw.

    >>> import scale_interp as si
    >>> vlm = si.load("testbed/one-head")
    >>> draws = [si.load_questions("scenes/position", "train", n=12, seed=s) for s in (0, 1)]
    >>> localise(vlm, draws, [(1, 2)], ["mean ablation", "patching"]).auroc().shape
    (2, 2)
    """
    heads = tuple(check_heads(known, vlm.n_layers, vlm.n_heads))
    if not 0 < len(heads) < vlm.n_layers * vlm.n_heads:
        raise EditError(f"{len(heads)} of {vlm.n_layers * vlm.n_heads} heads are given as known: give some, not none or all")
    names = tuple(METHODS) if methods is None else tuple(methods)
    if unknown := [n for n in names if n not in METHODS]:
        raise EditError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    if not len(draws):
        raise DataError("no draws: give at least one set of questions")
    if faithful_on is not None:
        require_disjoint([q for draw in draws for q in draw], faithful_on)
    scores = torch.zeros(len(names), len(draws), vlm.n_layers, vlm.n_heads, dtype=torch.float32)
    areas = torch.full((2, len(names), len(draws)), float("nan"), dtype=torch.double)
    for m, s in track([(m, s) for s in range(len(draws)) for m in range(len(names))], "localising", len(draws) * len(names)):
        scores[m, s] = METHODS[names[m]].score(vlm, require(draws[s]), s).float().cpu()
        if faithful_on is not None:
            found = faithfulness(vlm, faithful_on, ranking(scores[m, s]), chosen_on=draws[s])
            areas[:, m, s] = torch.tensor([found.cpr, found.cmd], dtype=torch.double)
    faithful = None if faithful_on is None else len(faithful_on)
    made = provenance(vlm, draws[0], draws=len(draws), methods=list(names), faithful_on=faithful)
    return Localisation(names, heads, scores, areas[0], areas[1], made)


def ranking(scores: Float[Tensor, "layers heads"]) -> list[Head]:
    """All heads, the largest score first; equal ones by layer and head."""
    H = scores.shape[1]
    return [(i // H, i % H) for i in scores.flatten().argsort(descending=True, stable=True).tolist()]
