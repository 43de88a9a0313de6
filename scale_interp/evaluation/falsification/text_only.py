"""Text-only corrections: how much of a gain needs no image.

A bias over the options is added to the base model's scores. It is learned on the training questions by penalised maximum
likelihood, as a constant (output bias) or from the question's words (text-only correction). Whatever it gains is
un-biasing, not spatial reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...data.items import groups
from ...data.question import Question

PENALTIES = (0.001, 0.01, 0.1, 1.0)
FOLDS = 4


@dataclass(frozen=True, eq=False)
class TextCorrection:
    """A learned bias over the words of options.

    Args:
        features: feature of a question -> its row of the weights.
        words: word of an option -> its column.
        weights: what each of V features adds to the score of each of W words; the last row is the constant bias [V + 1, W].
        penalty: the chosen penalty on the squared weights.
    """

    features: dict[str, int]
    words: dict[str, int]
    weights: Float[Tensor, "features+1 words"]
    penalty: float

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned."""
        return self.weights.numel()

    def correct(self, scores: Float[Tensor, "questions choices"], questions: Sequence[Question]) -> Float[Tensor, "questions choices"]:
        """The base model's scores of the questions [Q, C] with the learned bias added."""
        return scores + _bias(_features(questions, self.features), self.weights, _columns(questions, self.words, scores.shape[1]))


def fit_text_correction(scores: Float[Tensor, "questions choices"], questions: Sequence[Question], from_words: bool) -> TextCorrection:
    """Learn the bias on training questions; the penalty is chosen by cross-validation over images.

    Args:
        scores: the base model's scores of the training questions [Q, C].
        questions: the Q training questions.
        from_words: whether to use the question's words as features, each also with its place ("1:red" gives the subject's colour); else
            only a constant is learned.

    Returns:
        The learned TextCorrection.
    """
    vocabulary = sorted({f for q in questions for f in _words(q)}) if from_words else []
    features = {f: i for i, f in enumerate(vocabulary)}
    words = {w: i for i, w in enumerate(sorted({c for q in questions for c in q.choices}))}
    x, columns = _features(questions, features), _columns(questions, words, scores.shape[1])
    answers = torch.tensor([q.answer for q in questions])
    group = groups(questions)
    fold = np.random.default_rng(0).permutation(int(group.max()) + 1)[group] % FOLDS
    losses = {}
    for penalty in PENALTIES:
        held = []
        for k in range(FOLDS):
            learn, test = torch.from_numpy(fold != k), torch.from_numpy(fold == k)
            if learn.any() and test.any():
                weights = _fit(x[learn], columns[learn], scores[learn], answers[learn], len(words), penalty)
                held.append(F.cross_entropy(scores[test] + _bias(x[test], weights, columns[test]), answers[test], reduction="sum"))
        losses[penalty] = float(sum(held)) if held else 0.0
    best = min(losses, key=lambda p: losses[p])
    return TextCorrection(features, words, _fit(x, columns, scores, answers, len(words), best), best)


@torch.inference_mode(False)
@torch.enable_grad()
def _fit(x: Tensor, columns: Tensor, scores: Tensor, answers: Tensor, n_words: int, penalty: float) -> Tensor:
    x, columns, scores, answers = (part.clone() for part in (x, columns, scores, answers))  # they may come from inference mode
    weights = torch.zeros(x.shape[1], n_words, dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(scores + _bias(x, weights, columns), answers) + penalty * weights.square().mean() * n_words
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()


def _bias(x: Tensor, weights: Tensor, columns: Tensor) -> Tensor:
    return (x @ weights).gather(1, columns.clamp(min=0)) * (columns >= 0)


def _words(question: Question) -> list[str]:
    words = re.findall(r"\w+", question.text.lower())
    return [*words, *(f"{i}:{word}" for i, word in enumerate(words))]


def _features(questions: Sequence[Question], features: dict[str, int]) -> Tensor:
    x = torch.zeros(len(questions), len(features) + 1, dtype=torch.float32)
    x[:, -1] = 1
    for q, question in enumerate(questions):
        for name in _words(question):
            if name in features:
                x[q, features[name]] = 1
    return x


def _columns(questions: Sequence[Question], words: dict[str, int], n_choices: int) -> Tensor:
    """The column of each choice's word [Q, C]; -1 where there is no such choice, or it is not in the training questions."""
    columns = torch.full((len(questions), n_choices), -1)
    for q, question in enumerate(questions):
        for c, choice in enumerate(question.choices):
            columns[q, c] = words.get(choice, -1)
    return columns
