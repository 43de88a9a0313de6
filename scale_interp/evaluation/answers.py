"""Answers in words: generated as a user would get them, and scored by the option that they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ..adapters.attach import attach
from ..adapters.scale.scale import ScAle
from ..core.arguments import Count, checked
from ..data.items import describe, require
from ..data.question import Question
from ..errors import DataError
from ..execution.batches import BatchResult, Rows, map_batches
from ..execution.memory import in_halves
from ..interventions.edit import Edit
from ..vlm.generation import own_settings
from ..vlm.vlm import VLM
from .accuracy import Evaluation, answering
from .scoring import Scorer, score_text

BATCH = 16


@dataclass(frozen=True, eq=False, repr=False)
class TextEvaluation(Evaluation):
    """Answers in words; an answer that names no option, or several, counts as wrong.

    Args:
        questions: the Q questions.
        scores: 1 for the option that the text names, 0 for the others [Q, C], -inf where a question has fewer options.
        provenance: model, data, settings and versions.
        texts: the answers as generated [Q].

    >>> q = Question("Where is the mug?", ("left", "right"), 0)
    >>> score_answers(["Left.", "by the door"], [q, q]).unanswered
    0.5
    """

    texts: Sequence[str] = ()

    @property
    def answered(self) -> Bool[Tensor, " questions"]:
        """Whether each text names exactly one option [Q]."""
        return self.scores.amax(1) > 0

    @property
    def unanswered(self) -> float:
        """The share of texts that name no option, or several."""
        return float((~self.answered).float().mean())

    @property
    def answers(self) -> Sequence[str | None]:
        """The option that each text names, or None."""
        return [a if named else None for a, named in zip(super().answers, self.answered.tolist(), strict=True)]

    def part(self, members: Bool[np.ndarray, " questions"]) -> Self:
        return replace(super().part(members), texts=[self.texts[i] for i in np.flatnonzero(members).tolist()])

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        answers = zip(self.questions, self.texts, self.per_question.tolist(), strict=True)
        return ({"answered wrong": q.text, "right": q.answer_text, "text": text} for q, text, good in answers if not good)

    def to_frame(self) -> pd.DataFrame:
        """One row per question: id, text, right answer, given answer, correct, and the text as generated."""
        return super().to_frame().assign(text=list(self.texts))

    def _notes(self) -> list[str]:
        return [f"{self.unanswered:.3f} unanswered", *super()._notes()]


@checked
def evaluate_text(
    vlm: VLM,
    questions: Sequence[Question],
    edit: ScAle | Edit | None = None,
    *,
    scorer: Scorer = "strict",
    max_new_tokens: Count = 16,
    batch_size: Count = BATCH,
) -> TextEvaluation:
    """Answer the questions in words, with one edit in place or with none, and score which option each answer names.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        edit: an Edit of one variant or a ScAle, or None for the model as it is.
        scorer: "strict", or "legacy" to reproduce published figures (see `score_text`).
        max_new_tokens: the longest answer, in tokens.
        batch_size: questions that are answered at once.

    Returns:
        A TextEvaluation, texts [Q] and scores [Q, C].

    Raises:
        DataError: for options that `score_text` cannot tell apart.

    >>> import scale_interp as si
    >>> evaluate_text(si.load("demo"), si.load_questions("scenes/relation", n=4)).unanswered
    0.0
    """
    questions = require(questions)
    texts = answer_texts(vlm, questions, edit, max_new_tokens=max_new_tokens, batch_size=batch_size)
    generation = {"decoding": "greedy", "max_new_tokens": max_new_tokens, "checkpoint_settings_set_aside": own_settings(vlm.hf_model)}
    made = answering(vlm, questions, scorer=scorer, max_new_tokens=max_new_tokens, generation=generation)
    return score_answers(texts, questions, scorer, made)


@checked
def answer_texts(
    vlm: VLM,
    questions: Sequence[Question],
    edit: ScAle | Edit | None = None,
    *,
    max_new_tokens: Count = 16,
    batch_size: Count = BATCH,
) -> list[str]:
    """Answer the questions in words by greedy decoding with transformers' own generate, with one edit in place or with none.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        edit: an Edit of one variant or a ScAle, or None for the model as it is.
        max_new_tokens: the longest answer, in tokens.
        batch_size: questions that are answered at once.

    Returns:
        One text per question.

    >>> import scale_interp as si
    >>> len(answer_texts(si.load("demo"), si.load_questions("scenes/relation", n=2)))
    2
    """
    questions = require(questions)
    edit = edit.edit() if isinstance(edit, ScAle) else edit
    work = partial(text_work, edit=edit, max_new_tokens=max_new_tokens)
    found = map_batches(vlm, Rows.in_order(questions, batch_size), work, "answering in words")
    return [bytes(text.tolist()).decode() for part in found for text in part.values()]


def text_work(vlm: VLM, questions: Sequence[Question], edit: Edit | None, max_new_tokens: int) -> BatchResult:
    """One batch's answers as UTF-8, one tensor of bytes per question."""
    with nullcontext() if edit is None else attach(vlm.hf_model, edit):
        parts = in_halves(vlm, questions, lambda part: vlm.generate(list(part), max_new_tokens=max_new_tokens))
    texts = [text for part in parts for text in part]
    return {f"{i:06}": torch.tensor(list(text.encode()), dtype=torch.uint8) for i, text in enumerate(texts)}


@checked
def score_answers(
    texts: Sequence[str], questions: Sequence[Question], scorer: Scorer = "strict", provenance: Mapping[str, Any] | None = None
) -> TextEvaluation:
    """Score answers that were generated earlier or elsewhere.

    Args:
        texts: one answer per question [Q], in the order of the questions.
        questions: Q questions.
        scorer: "strict", or "legacy" to reproduce published figures (see `score_text`).
        provenance: where the answers come from, to keep with the result.

    Returns:
        A TextEvaluation, scores [Q, C].

    Raises:
        DataError: for another number of answers than of questions, and for options that `score_text` cannot tell apart.

    >>> q = Question("Where is the mug?", ("left", "right"), 0)
    >>> score_answers(["Left.", "left or right"], [q, q]).answers
    ['left', None]
    """
    questions = require(questions)
    if len(texts) != len(questions):
        raise DataError(f"{len(texts)} answers to {len(questions)} questions: give one answer per question")
    scores = torch.full((len(questions), max(len(q.choices) for q in questions)), float("-inf"), dtype=torch.float32)
    for row, text, question in zip(scores, texts, questions, strict=True):
        row[: len(question.choices)] = 0
        if (named := score_text(text, question, scorer)) is not None:
            row[named] = 1
    made = describe(questions) | {"scorer": scorer} | dict(provenance or {})
    return TextEvaluation(questions, scores, made, tuple(texts))
