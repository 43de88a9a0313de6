"""What can be read from each head alone: one logistic probe per head, scored on images that it did not learn from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..core.arguments import AtLeast, Count, OwnCheck, Seed, checked
from ..core.progress import track
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError
from ..interventions.capture import capture
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .ablation import provenance
from .answer_tokens import Positions, answer_activations
from .headmap import HeadMap

Label = str | Callable[[Question], Any]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation strengths C to choose from, for features of unit variance."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProbeMap(HeadMap):
    """A HeadMap of held-out accuracy: per_question [Q, L, H] is 1.0 where a head's probe gives the question's label.

    Attributes:
        p: [L, H], the share of label permutations whose best head reaches the head's score, and so corrected for all heads
            (max-statistic, Westfall & Young 1993).
        classes: the labels.
        chance: accuracy of always giving the most common label.

    >>> right, p = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]), torch.tensor([[0.01, 0.6]])
    >>> ProbeMap("probe", "held-out accuracy", right, torch.arange(2), p=p, classes=("left", "right"), chance=0.5).significant()
    tensor([[ True, False]])
    """

    significance: ClassVar[str] = "above chance (max-statistic, {alpha})"

    p: Float[Tensor, "layers heads"]
    classes: tuple[str, ...]
    chance: float

    @cached_property
    def p_values(self) -> Float[Tensor, "layers heads"]:
        """`p`, which needs no further correction [L, H]."""
        return self.p


@checked
def probe(
    vlm: VLM,
    questions: Sequence[Question],
    label: Label = "relation",
    *,
    positions: Positions = "first",
    at: Annotated[At, OwnCheck()] = "last",
    folds: Annotated[int, AtLeast(2)] = 5,
    permutations: Count = 1000,
    seed: Seed = 0,
) -> ProbeMap:
    """Held-out accuracy of a logistic probe on each head's z (after ITI, arXiv 2306.03341).

    Every image is held out once. The probe's regularisation is chosen by three-fold cross-validation inside the other parts (the grid
    is ours). For p-values, labels are exchanged between and within images and compared with the held-out guesses.

    Args:
        vlm: the model, from `si.load`.
        questions: Q training questions, as the result chooses heads.
        label: a field of Question, an entry of its meta, or a function of a question.
        positions: which tokens z is read from; see `answer_activations`.
        at: a token group of the prompt over which z is averaged, in place of `positions`.
        folds: parts that are held out in turn, at least 2.
        permutations: how many label permutations; the smallest p is 1 / (permutations + 1).
        seed: for folds and permutations.

    Returns:
        A ProbeMap, per_question [Q, L, H].

    Raises:
        DataError: for a question without a label, fewer than two labels, or a label on fewer images than folds.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", "train", n=40)
    >>> probe(vlm, qs, folds=2).unit
    'held-out accuracy'
    """
    questions = require(questions)
    classes, codes = read_labels(questions, label)
    group = groups(questions)
    require_images(classes, codes, group, folds)
    z = (answer_activations(vlm, questions, positions) if at == "last" else capture(vlm, questions, at=at).z).float().cpu().numpy()
    guesses = held_out_guesses(z, codes, group, folds, seed)
    made = provenance(
        vlm, questions, label=label_name(label), positions=positions, folds=folds, permutations=permutations, probe_seed=seed, at=at
    )
    return ProbeMap(
        "probe",
        "held-out accuracy",
        torch.from_numpy((guesses == codes[:, None, None]).astype(np.float32)),
        torch.from_numpy(group),
        made,
        p=torch.from_numpy(permutation_p(guesses, codes, group, permutations, seed)),
        classes=classes,
        chance=float(np.bincount(codes).max() / len(codes)),
    )


def read_labels(questions: Sequence[Question], label: Label, least: int = 2) -> tuple[tuple[str, ...], Int[np.ndarray, " questions"]]:
    """Read each question's label.

    Returns:
        The labels, sorted, and the number of each question's own [Q].

    Raises:
        DataError: for a question without a label, and for fewer than `least` labels.
    """
    found = [label(q) if callable(label) else getattr(q, label) if hasattr(q, label) else q.meta.get(label) for q in questions]
    for question, value in zip(questions, found, strict=True):
        if value is None or value == "":
            raise DataError(f"question {question.id}: it has no {label_name(label)!r}; leave it out, or give another label")
    names, codes = np.unique([str(value) for value in found], return_inverse=True)
    if len(names) < least:
        raise DataError(f"all questions have the label {str(names[0])!r}: give questions of at least two labels")
    return tuple(names.tolist()), codes


def label_name(label: Label) -> str:
    """What a result records of a label; a function's address would differ from run to run."""
    return label if isinstance(label, str) else getattr(label, "__name__", type(label).__name__)


def require_images(classes: Sequence[str], codes: Int[np.ndarray, " questions"], group: Int[np.ndarray, " questions"], least: int) -> None:
    """Raise DataError for a label that is on fewer images than there are parts to hold out."""
    for number, name in enumerate(classes):
        count = len(np.unique(group[codes == number]))
        if count < least:
            raise DataError(f"label {name!r} is on {count} image(s), fewer than the {least} parts: give more questions, or fewer folds")


def held_out_guesses(
    z: Float[np.ndarray, "questions layers heads dim"],
    codes: Int[np.ndarray, " questions"],
    group: Int[np.ndarray, " questions"],
    folds: int = 5,
    seed: int = 0,
) -> Int[np.ndarray, "questions layers heads"]:
    """Label every question with each head's probe, trained on other images.

    Args:
        z: [Q, L, H, D].
        codes: the number of each question's label [Q].
        group: the number of each question's image [Q].
        folds: parts that are held out in turn.
        seed: for the parts.

    Returns:
        Numbers of labels [Q, L, H].

    Raises:
        DataError: where the questions cannot be split into that many parts.
    """
    Q, L, H, _ = z.shape
    outer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(Q), codes, group)
    try:
        parts = [(learn, held, list(StratifiedGroupKFold(3).split(learn, codes[learn], group[learn]))) for learn, held in outer]
    except ValueError as error:
        raise DataError(f"{Q} questions are too few for {folds} parts ({error}): give more of each label, or fewer folds") from error
    columns = (_guesses(z[:, i // H, i % H], codes, parts) for i in range(L * H))
    return np.stack(list(track(columns, "probing heads", L * H)), 1).reshape(Q, L, H)


def _guesses(x: np.ndarray, codes: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray, list[Any]]]) -> np.ndarray:
    out = np.empty(len(codes), dtype=np.int64)
    for learn, held, inner in parts:
        scaler = StandardScaler().fit(x[learn])
        model = LogisticRegressionCV(Cs=STRENGTHS, cv=inner, scoring="accuracy", max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about attributes and defaults that are not used here
            out[held] = model.fit(scaler.transform(x[learn]), codes[learn]).predict(scaler.transform(x[held]))
    return out


def permutation_p(
    guesses: Int[np.ndarray, "questions layers heads"],
    codes: Int[np.ndarray, " questions"],
    group: Int[np.ndarray, " questions"],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "layers heads"]:
    """The p-value of every head's accuracy against the best head under permuted labels [L, H]."""
    Q, *heads = guesses.shape
    rng = np.random.default_rng(seed)
    shuffled = np.stack([permuted(codes, group, rng) for _ in range(permutations)])
    flat = guesses.reshape(Q, -1)
    hits = sum((shuffled == c).astype(np.float32) @ (flat == c).astype(np.float32) for c in np.unique(codes))
    best = np.asarray(hits).max(1) / Q
    score = (flat == codes[:, None]).mean(0)
    return ((1 + (best[:, None] >= score - 1e-9).sum(0)) / (1 + permutations)).reshape(heads)


def permuted(
    codes: Int[np.ndarray, " questions"], group: Int[np.ndarray, " questions"], rng: np.random.Generator
) -> Int[np.ndarray, " questions"]:
    """Labels without signal: images with equally many questions exchange theirs, and labels are shuffled within an image."""
    members: dict[int, list[np.ndarray]] = {}
    for number in np.unique(group):
        own = np.flatnonzero(group == number)
        members.setdefault(len(own), []).append(own)
    out = codes.copy()
    for same in members.values():
        taken = np.stack(same)[rng.permutation(len(same))]
        out[np.stack(same)] = rng.permuted(codes[taken], axis=1)
    return out
