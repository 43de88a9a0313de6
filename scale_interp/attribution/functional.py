"""Heads by cognitive function: which heads each function uses, how few they are, and whether chance would give as few.

Attention in Space (arXiv 2603.20662) finds that functional heads are sparse, and that spatial functions have the fewest. Both are tested
here against the same pipeline on permuted labels.
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
from .head_probe import Label, label_name, permuted, read_labels, require_images
from .headmap import HeadMap
from .joint_probe import EPOCHS, RELEASED_EPOCHS, ProbeRecipe, fit_joint_probe, importance

RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class FunctionalHeads(Result):
    """The joint probe's importance of every head for every function, on held-out questions.

    Attributes:
        functions: the names of the F functions.
        importance: gradient x activation for each held-out question's own function [Q, L, H].
        codes: the number of each question's function [Q].
        verdicts: the number of the function that the probe chooses [Q].
        groups: the number of each question's image [Q].
        null: mean importance where labels were permuted before training [P, F, L, H].
        null_accuracy: the accuracy of the P probes on permuted labels [P].
        pictures: the names of all images that were learned from or scored; nothing may be tested on them.
        provenance: model, data, settings and versions.

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
        """The number of a function. Raises DataError for an unknown one."""
        if function not in self.functions:
            raise DataError(f"unknown function {function!r}: choose from {', '.join(self.functions)}")
        return self.functions.index(function)

    def map(self, function: str) -> HeadMap:
        """Importance for one function as a HeadMap. Raises DataError for an unknown function."""
        own = self.codes == self._number(function)
        return HeadMap(f"functional: {function}", "gradient x activation", self.importance[own], self.groups[own], self.provenance)

    @cached_property
    def mean(self) -> Float[Tensor, "functions layers heads"]:
        """Mean importance of every head for every function [F, L, H]."""
        return torch.stack([self.map(name).scores for name in self.functions])

    def ranking(self, function: str) -> list[Head]:
        """All heads, the largest |importance| for the function first."""
        return self.map(function).top(self.mean[0].numel(), by="abs")

    def heads(self, function: str) -> list[Head]:
        """The function's heads: those above the elbow of the sorted |importance| (CogQA pipeline, arXiv 2512.10978)."""
        return self.ranking(function)[: elbow(self.mean[self._number(function)].abs().flatten())]

    def latent(self, function: str, n: int | None = None) -> list[Head]:
        """The heads ranked just below the elbow.

        Args:
            function: one of `functions`.
            n: how many heads; by default as many as are above the elbow (ours, as the paper states no number).
        """
        above = len(self.heads(function))
        return self.ranking(function)[above : above + (n or above)]

    @property
    def accuracy(self) -> float:
        """Share of held-out questions for which the probe chooses the right function."""
        return float((self.verdicts == self.codes).float().mean())

    @property
    def accuracy_p(self) -> float:
        """The p-value of the accuracy against probes on permuted labels."""
        return float((1 + (self.null_accuracy >= self.accuracy - 1e-9).sum()) / (1 + len(self.null_accuracy)))

    @cached_property
    def draws(self) -> Float[np.ndarray, "resamples functions units"]:
        """Bootstrap means of importance [R, F, L * H], whole images drawn with replacement."""
        flat, group = self.importance.flatten(1).double().numpy(), np.unique(self.groups.numpy(), return_inverse=True)[1]
        G = int(group.max()) + 1
        weights = np.random.default_rng(0).multinomial(G, np.full(G, 1 / G), RESAMPLES)[:, group]
        own = [self.codes.numpy() == number for number in range(len(self.functions))]
        return np.stack([weights[:, rows] @ flat[rows] / np.maximum(1, weights[:, rows].sum(1))[:, None] for rows in own], 1)

    @cached_property
    def _heads_above(self) -> np.ndarray:
        """Heads above the elbow: in the data first, then in every bootstrap draw, bool [1 + R, F, L * H]."""
        return np.concatenate([_above(self.mean.flatten(1).numpy()[None]), _above(self.draws)])

    @cached_property
    def _null_heads_above(self) -> np.ndarray:
        """Heads above the elbow under permuted labels, bool [P, F, L * H]."""
        return _above(self.null.flatten(2).numpy())

    def to_frame(self) -> pd.DataFrame:
        """One row per function: the number and share of its heads, their Gini coefficient, the intervals, and the probe's recall.

        Returns:
            Intervals are over held-out images, for this one trained probe; a probe from another seed may differ by more. p_few and p_sparse
            are one-sided: as few heads, or as large a Gini coefficient, under permuted labels. Their null is pooled over functions, which
            permuted labels make alike, and p is Holm-corrected over functions.
        """
        number, gini = self._heads_above.sum(-1), _ginis(np.concatenate([self.mean.flatten(1).numpy()[None], self.draws]))
        null_number, null_gini = self._null_heads_above.sum(-1), _ginis(self.null.flatten(2).numpy())
        rows = []
        for f, name in enumerate(self.functions):
            own = self.codes == f
            (few, many), (low, high) = _interval(number[1:, f]), _interval(gini[1:, f])
            U = self._heads_above.shape[-1]
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
        """One row per function and layer: its heads above the elbow, their interval, and their mean number under permuted labels."""
        L, H = self.mean.shape[1:]
        counts = self._heads_above.reshape(*self._heads_above.shape[:2], L, H).sum(-1)
        null = self._null_heads_above.reshape(-1, L, H).sum(-1).mean(0)
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
        """One row per pair of functions: the Jaccard overlap of their heads, its interval, and its median under permuted labels."""
        rows = []
        for a, b in combinations(range(len(self.functions)), 2):
            found, null = (
                _jaccard(self._heads_above[:, a], self._heads_above[:, b]),
                _jaccard(self._null_heads_above[:, a], self._null_heads_above[:, b]),
            )
            low, high = _interval(found[1:])
            spread = {"jaccard": found[0], "low": low, "high": high, "null": float(np.median(null))}
            rows.append({"a": self.functions[a], "b": self.functions[b]} | spread)
        return pd.DataFrame(rows)

    def fewer(self, functions: Iterable[str]) -> statistics.Difference:
        """Mean number of heads of these functions minus that of all others.

        Args:
            functions: some of the functions, not all.

        Returns:
            The difference with its interval over images; p is one-sided: as low a difference under permuted labels.

        Raises:
            DataError: for an unknown function, for none, and for all of them.
        """
        own = np.isin(np.arange(len(self.functions)), [self._number(name) for name in functions])
        if own.all() or not own.any():
            raise DataError(f"{int(own.sum())} of {len(own)} functions: give some of them, and leave some to compare them with")
        number, null = self._heads_above.sum(-1), self._null_heads_above.sum(-1)
        found, chance = (counts[:, own].mean(1) - counts[:, ~own].mean(1) for counts in (number, null))
        low, high = _interval(found[1:])
        return statistics.Difference(float(found[0]), low, high, _rank(chance <= found[0] + 1e-9), "label permutation, one-sided")

    def plot(self, **options: Any) -> Any:
        """Layer histograms, one per function (see viz.layer_histogram)."""
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
    epochs: int | None = None,
    permutations: Count = 39,
    seed: Seed = 0,
    recipe: ProbeRecipe = "default",
) -> FunctionalHeads:
    """Which heads a joint probe uses to recognise what function a question asks for (CogQA pipeline, arXiv 2512.10978).

    A share of the images is scored and not learned from; the paper's release scores the questions that it trains on.

    Args:
        vlm: the model, from `si.load`.
        questions: training questions, ideally equally many of each function.
        by: what gives a question's function, as the label of `probe`.
        positions: which tokens z is read from; see `answer_activations`.
        held_out: share of the images to score, between 0 and 1 (ours).
        epochs: passes over the questions; by default 20 (ours), or the 100 of recipe="release".
        permutations: how many probes to train on permuted labels, for the p-values (ours).
        seed: for the split, the permutations and the probes.
        recipe: "default" trains on scaled activations in batches of 64 that are drawn anew. "release" does what the published code does:
            single questions in a fixed order, unscaled, 100 epochs, and importance averaged over the projection's 64 numbers, not summed.
            Both score held-out images only.

    Returns:
        A FunctionalHeads, importance [Q, L, H] of the held-out questions.

    Raises:
        DataError: for a question without a function, a function on fewer than four images, or a setting out of its range.

    >>> import scale_interp as si
    >>> from scale_interp.data.readers.cogvsr import subquestions
    >>> from scale_interp.data.decomposed import cog_questions
    >>> steps = subquestions(cog_questions("train", n=12))
    >>> functional_heads(si.load("demo"), steps, epochs=1, permutations=1).functions[0]
    'attribute recognition'
    """
    questions = require(questions)
    if not 0 < held_out < 1:
        raise DataError(f"held_out={held_out}: give a share of the images between 0 and 1")
    epochs = (RELEASED_EPOCHS if recipe == "release" else EPOCHS) if epochs is None else epochs
    if permutations < 1 or epochs < 1:
        raise DataError(f"permutations={permutations}, epochs={epochs}: give at least one of each")
    functions, codes = read_labels(questions, by)
    group = groups(questions)
    require_images(functions, codes, group, 4)
    z = answer_activations(vlm, questions, positions).cpu()
    made = provenance(vlm, questions, by=label_name(by), positions=positions, held_out=held_out, epochs=epochs, probe_seed=seed)
    made |= {"recipe": recipe} if recipe != "default" else {}
    pictures = image_names(questions)
    return joint_importance(z, codes, group, functions, pictures, made, held_out, epochs, permutations, seed, recipe)


def joint_importance(
    z: Float[Tensor, "questions layers heads dim"],
    codes: Int[np.ndarray, " questions"],
    group: Int[np.ndarray, " questions"],
    functions: tuple[str, ...],
    pictures: tuple[str, ...],
    made: dict[str, Any],
    held_out: float = 0.4,
    epochs: int = EPOCHS,
    permutations: int = 39,
    seed: int = 0,
    recipe: ProbeRecipe = "default",
) -> FunctionalHeads:
    """functional_heads on activations z [Q, L, H, D] that were read before, with function numbers [Q] and image numbers [Q]."""
    rng = np.random.default_rng(seed)
    count = int(group.max()) + 1
    held = np.isin(group, rng.permutation(count)[: max(1, round(held_out * count))])
    missing = [name for f, name in enumerate(functions) if f not in codes[held] or f not in codes[~held]]
    if missing:
        raise DataError(f"function {missing[0]!r} is not on both sides of the split: give more images, or another seed")
    learn, score = torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
    effects, verdicts, null, right = torch.empty(0), torch.empty(0), [], []
    for run in track(range(1 + permutations), "joint probes", 1 + permutations):
        labels = torch.from_numpy(codes if run == 0 else permuted(codes, group, rng))
        model = fit_joint_probe(z[learn], labels[learn], len(functions), epochs, seed, recipe)
        found, said = importance(model, z[score], labels[score], recipe)
        if run == 0:
            effects, verdicts = found, said
            continue
        right.append((said == labels[score]).float().mean())
        null.append(torch.stack([found[labels[score] == f].mean(0) for f in range(len(functions))]).nan_to_num())
    numbers = torch.from_numpy(group)[score]
    true = torch.from_numpy(codes)[score]
    return FunctionalHeads(functions, effects, true, verdicts, numbers, torch.stack(null), torch.stack(right), pictures, made)


def _above(values: np.ndarray) -> np.ndarray:
    """Which heads are above the elbow of their |values|: [..., U] gives bool [..., U]."""
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
    """Permutation p-value: the share of null values that are as extreme, the observed one included."""
    return float((1 + as_extreme.sum()) / (1 + as_extreme.size))
