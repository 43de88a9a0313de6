"""Heads by cognitive function: which are used for what, how few they are, and whether chance would give as few.

Attention in Space (arXiv 2603.20662) says that functional heads are sparse, and spatial ones the fewest. Here both are
tests, against the same pipeline on permuted labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import statistics
from ..core.arguments import Count, Seed, checked
from ..core.figures import draw
from ..core.progress import track
from ..core.result import APART, Misfit, Result, require_below
from ..data.identity import image_names
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError
from ..interventions.edit import Head
from ..vlm.vlm import VLM
from .ablation import provenance
from .answer_tokens import Positions, answer_activations
from .elbow_rule import elbow
from .head_probe import Label, label_name, permuted, read_labels, require_pictures
from .headmap import HeadMap
from .joint_probe import fit_joint_probe, importance

RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class FunctionalHeads(Result):
    """The joint probe's importance of every head for every function, on held-out questions.

    importance [Q, L, H]: gradient x activation for each held-out question's own function; codes [Q]: the number of that
    function; verdicts [Q]: the probe's; groups [Q]. null [P, F, L, H]: mean importance where labels were permuted before
    training; null_accuracy [P]. pictures: all that were learned from or scored; nothing may be tested on them.

    >>> import scale_interp as si
    >>> steps = si.subquestions(si.cog_questions("train", n=12))
    >>> found = functional_heads(si.load("demo"), steps, epochs=1, permutations=1)
    >>> found.mean.shape == (len(found.functions), 6, 8)
    True
    """

    functions: Annotated[tuple[str, ...], "functions"]
    importance: Float[Tensor, "questions layers heads"]
    codes: Int[Tensor, " questions"]
    verdicts: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    null: Float[Tensor, "permutations functions layers heads"]
    null_accuracy: Float[Tensor, " permutations"]
    pictures: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(self.heads(name))}" for name in self.functions)
        return f"<FunctionalHeads of {self.mean[0].numel()}: {counts}; probe right on {self.accuracy:.2f} of {len(self.codes)} held out>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        found = ((name, self.heads(name)) for name in self.functions)
        return ({"function": name, "heads": len(heads), "first": ", ".join(map(str, heads[:3]))} for name, heads in found)

    def _number(self, function: str) -> int:
        if function not in self.functions:
            raise DataError(f"unknown function {function!r}: choose from {', '.join(self.functions)}")
        return self.functions.index(function)

    def map(self, function: str) -> HeadMap:
        """Importance for one function as a HeadMap."""
        own = self.codes == self._number(function)
        return HeadMap(f"functional: {function}", "gradient x activation", self.importance[own], self.groups[own], self.provenance)

    @cached_property
    def mean(self) -> Tensor:
        """Importance of every head for every function [F, L, H]."""
        return torch.stack([self.map(name).scores for name in self.functions])

    def ranking(self, function: str) -> list[Head]:
        """All heads, the largest |importance| first."""
        return self.map(function).top(self.mean[0].numel(), by="abs")

    def heads(self, function: str) -> list[Head]:
        """The heads above the elbow of the sorted |importance|."""
        return self.ranking(function)[: elbow(self.mean[self._number(function)].abs().flatten())]

    def latent(self, function: str, n: int | None = None) -> list[Head]:
        """The n heads ranked just below the elbow; default: as many as above it (ours, the paper states no number)."""
        above = len(self.heads(function))
        return self.ranking(function)[above : above + (n or above)]

    @property
    def accuracy(self) -> float:
        """Share of held-out questions whose function the probe names."""
        return float((self.verdicts == self.codes).float().mean())

    @property
    def accuracy_p(self) -> float:
        """p-value of the accuracy against the probe on permuted labels."""
        return float((1 + (self.null_accuracy >= self.accuracy - 1e-9).sum()) / (1 + len(self.null_accuracy)))

    @cached_property
    def draws(self) -> np.ndarray:
        """Bootstrap means of importance [R, F, L * H], whole pictures drawn with replacement."""
        flat, group = self.importance.flatten(1).double().numpy(), np.unique(self.groups.numpy(), return_inverse=True)[1]
        G = int(group.max()) + 1
        weights = np.random.default_rng(0).multinomial(G, np.full(G, 1 / G), RESAMPLES)[:, group]
        own = [self.codes.numpy() == number for number in range(len(self.functions))]
        return np.stack([weights[:, rows] @ flat[rows] / np.maximum(1, weights[:, rows].sum(1))[:, None] for rows in own], 1)

    @cached_property
    def _kept(self) -> np.ndarray:
        """Heads above the elbow: in the data first, then in every bootstrap draw, bool [1 + R, F, L * H]."""
        return np.concatenate([_above(self.mean.flatten(1).numpy()[None]), _above(self.draws)])

    @cached_property
    def _null_kept(self) -> np.ndarray:
        return _above(self.null.flatten(2).numpy())

    def to_frame(self) -> pd.DataFrame:
        """A row a function: number and share of heads, Gini, each with its interval, and recall of the probe.

        Intervals are over held-out pictures, for this one trained probe: another seed's probe may differ by more.
        p_few and p_sparse: as few heads, as large a Gini under permuted labels, one-sided; the null is pooled over
        functions, which permuted labels make alike, and p is Holm-corrected over functions.
        """
        number, gini = self._kept.sum(-1), _ginis(np.concatenate([self.mean.flatten(1).numpy()[None], self.draws]))
        null_number, null_gini = self._null_kept.sum(-1), _ginis(self.null.flatten(2).numpy())
        rows = []
        for f, name in enumerate(self.functions):
            own = self.codes == f
            (few, many), (low, high) = _interval(number[1:, f]), _interval(gini[1:, f])
            U = self._kept.shape[-1]
            rows.append(
                {"function": name, "n": int(own.sum()), "heads": int(number[0, f]), "heads_low": few, "heads_high": many}
                | {"share": number[0, f] / U, "share_low": few / U, "share_high": many / U}
                | {"gini": gini[0, f], "gini_low": low, "gini_high": high}
                | {"null_heads": float(np.median(null_number)), "null_gini": float(np.median(null_gini))}
                | {"p_few": _rank(null_number <= number[0, f]), "p_sparse": _rank(null_gini >= gini[0, f] - 1e-12)}
                | {"recall": float((self.verdicts == self.codes)[own].float().mean())}
            )
        frame = pd.DataFrame(rows)
        return frame.assign(p_few=statistics.holm(frame["p_few"].to_numpy()), p_sparse=statistics.holm(frame["p_sparse"].to_numpy()))

    def layers(self) -> pd.DataFrame:
        """The layer histogram: a row a function and layer, its heads above the elbow, their interval, their mean under permuted labels."""
        L, H = self.mean.shape[1:]
        counts = self._kept.reshape(*self._kept.shape[:2], L, H).sum(-1)
        null = self._null_kept.reshape(-1, L, H).sum(-1).mean(0)
        spans = {(f, layer): _interval(counts[1:, f, layer]) for f in range(len(self.functions)) for layer in range(L)}
        rows = [
            {
                "function": self.functions[f],
                "layer": layer,
                "heads": int(counts[0, f, layer]),
                "low": low,
                "high": high,
                "null": null[layer],
            }
            for (f, layer), (low, high) in spans.items()
        ]
        return pd.DataFrame(rows)

    def overlap(self) -> pd.DataFrame:
        """Jaccard overlap of the heads of every two functions, with its interval and its median under permuted labels."""
        rows = []
        for a, b in combinations(range(len(self.functions)), 2):
            found, null = _jaccard(self._kept[:, a], self._kept[:, b]), _jaccard(self._null_kept[:, a], self._null_kept[:, b])
            low, high = _interval(found[1:])
            spread = {"jaccard": found[0], "low": low, "high": high, "null": float(np.median(null))}
            rows.append({"a": self.functions[a], "b": self.functions[b]} | spread)
        return pd.DataFrame(rows)

    def fewer(self, functions: Iterable[str]) -> statistics.Difference:
        """Mean number of heads of these functions minus that of all others; p: as low under permuted labels, one-sided."""
        own = np.isin(np.arange(len(self.functions)), [self._number(name) for name in functions])
        if own.all() or not own.any():
            raise DataError("give some of the functions, and leave some to compare them with")
        number, null = self._kept.sum(-1), self._null_kept.sum(-1)
        found, chance = (counts[:, own].mean(1) - counts[:, ~own].mean(1) for counts in (number, null))
        low, high = _interval(found[1:])
        return statistics.Difference(float(found[0]), low, high, _rank(chance <= found[0] + 1e-9), "label permutation, one-sided")

    def plot(self, **options: Any) -> Any:
        """Layer histograms, one a function (see viz.layer_histogram)."""
        return draw("layer_histogram", self, **options)

    def _validate(self, meta: Mapping[str, Any]) -> None:
        for name in ("codes", "verdicts"):
            require_below(name, getattr(self, name), len(self.functions))
        if set(self.codes.tolist()) != set(range(len(self.functions))):
            raise Misfit(f"{APART}: a function has no question")


@checked
def functional_heads(
    vlm: VLM,
    questions: Sequence[Question],
    by: Label = "function",
    *,
    positions: Positions = "all",
    held_out: float = 0.4,
    epochs: int = 20,
    permutations: Count = 39,
    seed: Seed = 0,
) -> FunctionalHeads:
    """Which heads tell a joint probe what function a question asks for (CogQA pipeline, arXiv 2512.10978, steps 1 to 5).

    questions: training questions, best as many of each function; a share `held_out` of their pictures is scored and not
    learned from (the release scores what it tests on). by: what names the function, as the label of `probe`. positions:
    see answer_activations. permutations: probes on permuted labels, for the p-values. Share, epochs and permutations are
    ours; the release has 100 epochs of single questions.

    Raises DataError where a question has no function, or a function is on fewer than four pictures.

    >>> import scale_interp as si
    >>> from scale_interp.data.readers.cogvsr import subquestions
    >>> from scale_interp.data.decomposed import cog_questions
    >>> steps = subquestions(cog_questions("train", n=12))
    >>> functional_heads(si.load("demo"), steps, epochs=1, permutations=1).functions[0]
    'attribute recognition'
    """
    questions = require(questions)
    if not 0 < held_out < 1:
        raise DataError(f"held_out={held_out}: give a share of the pictures between 0 and 1")
    if permutations < 1 or epochs < 1:
        raise DataError(f"permutations={permutations}, epochs={epochs}: give at least one of each")
    functions, codes = read_labels(questions, by)
    group = groups(questions)
    require_pictures(functions, codes, group, 4)
    z = answer_activations(vlm, questions, positions).cpu()
    made = provenance(vlm, questions, by=label_name(by), positions=positions, held_out=held_out, epochs=epochs, probe_seed=seed)
    pictures = image_names(questions)
    return joint_importance(z, codes, group, functions, pictures, made, held_out, epochs, permutations, seed)


def joint_importance(
    z: Tensor,
    codes: np.ndarray,
    group: np.ndarray,
    functions: tuple[str, ...],
    pictures: tuple[str, ...],
    made: dict[str, Any],
    held_out: float = 0.4,
    epochs: int = 20,
    permutations: int = 39,
    seed: int = 0,
) -> FunctionalHeads:
    """functional_heads on activations z [Q, L, H, D] that were read before, with function numbers [Q] and groups [Q]."""
    rng = np.random.default_rng(seed)
    count = int(group.max()) + 1
    held = np.isin(group, rng.permutation(count)[: max(1, round(held_out * count))])
    missing = [name for f, name in enumerate(functions) if f not in codes[held] or f not in codes[~held]]
    if missing:
        raise DataError(f"function {missing[0]!r} is not on both sides of the split: give more pictures, or another seed")
    learn, score = torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
    effects, verdicts, null, right = torch.empty(0), torch.empty(0), [], []
    for run in track(range(1 + permutations), "joint probes", 1 + permutations):
        labels = torch.from_numpy(codes if run == 0 else permuted(codes, group, rng))
        model = fit_joint_probe(z[learn], labels[learn], len(functions), epochs, seed)
        found, said = importance(model, z[score], labels[score])
        if run == 0:
            effects, verdicts = found, said
            continue
        right.append((said == labels[score]).float().mean())
        null.append(torch.stack([found[labels[score] == f].mean(0) for f in range(len(functions))]).nan_to_num())
    numbers = torch.from_numpy(group)[score]
    true = torch.from_numpy(codes)[score]
    return FunctionalHeads(functions, effects, true, verdicts, numbers, torch.stack(null), torch.stack(right), pictures, made)


def _above(values: np.ndarray) -> np.ndarray:
    """Which heads are above the elbow of their |values|: [..., U] -> bool [..., U]."""
    flat = np.abs(values).reshape(-1, values.shape[-1])
    kept = np.zeros(flat.shape, dtype=bool)
    for row, out in zip(flat, kept, strict=True):
        out[np.argsort(-row, kind="stable")[: elbow(torch.from_numpy(row))]] = True
    return kept.reshape(values.shape)


def _ginis(values: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(statistics.gini, -1, values)


def _jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a & b).sum(-1) / np.maximum(1, (a | b).sum(-1))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _rank(as_extreme: np.ndarray) -> float:
    return float((1 + as_extreme.sum()) / (1 + as_extreme.size))
