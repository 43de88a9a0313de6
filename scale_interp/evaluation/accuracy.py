"""How well the model answers, with and without an edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.ablation import provenance
from ..attribution.metric import measure
from ..core import statistics
from ..core.arguments import checked
from ..core.notebook import NotebookView
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, EditError
from ..interventions.choices import Scoring
from ..interventions.engine import Path, as_variants, choose_path, run_with_clean
from ..interventions.prefix import PrefixStore
from ..models import zoo
from ..vlm.vlm import VLM

RANDOM_WEIGHTS = "random weights"
RANDOM = (zoo.PREFIX, "realistic/")
"""How the names of models with random, untrained weights begin."""
FEW = 10
"""An option offered in fewer questions than this, and not in all of them, is too rare to count how often it is right."""


@dataclass(frozen=True, eq=False)
class Evaluation(NotebookView):
    """Answers of one run.

    Args:
        questions: the Q questions.
        scores: a score for each of up to C choices [Q, C], -inf where a question has fewer; the largest is the answer.
        provenance: model, data, settings and versions.

    Raises:
        DataError: for scores that are not numbers, and for another number of them than of questions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> list(si.evaluate(vlm, qs).by("relation").columns)
    ['relation', 'n', 'accuracy', 'low', 'high']
    """

    questions: Sequence[Question]
    scores: Float[Tensor, "questions choices"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.scores, Tensor) or self.scores.ndim != 2 or len(self.scores) != len(self.questions):
            raise DataError(f"scores are no tensor [{len(self.questions)}, C] with a row for each question; give one")
        if wrong := self.scores.isnan().any(1).nonzero().flatten().tolist():
            raise DataError(f"the scores of question {self.questions[wrong[0]].id} are not all numbers; give a number for every choice")

    def __repr__(self) -> str:
        low, high = self.interval()
        notes = "".join(f", {note}" for note in self._notes())
        return (
            f"<{type(self).__name__}: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] "
            f"on {len(self.questions)} questions, chance {self.chance:.3f}{notes}>"
        )

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        right = self.per_question.tolist()
        answers = zip(self.questions, self.answers, right, strict=True)
        return ({"answered wrong": q.text, "right": q.answer_text, "given": given} for q, given, good in answers if not good)

    def _notes(self) -> list[str]:
        return [RANDOM_WEIGHTS] if self.random_weights else []

    @property
    def random_weights(self) -> bool:
        """Whether the model's weights are random, so that its accuracy means nothing."""
        return self.provenance.get("weights") == RANDOM_WEIGHTS

    @cached_property
    def per_question(self) -> Float[Tensor, " questions"]:
        """1.0 where the right choice has the largest score, else 0.0 [Q]."""
        return measure("accuracy", self.scores, self.questions)

    @cached_property
    def groups(self) -> Int[np.ndarray, " questions"]:
        """The number of each question's image [Q]; intervals treat questions of one image as dependent."""
        return groups(self.questions)

    @property
    def accuracy(self) -> float:
        """The share of questions answered right."""
        return float(self.per_question.mean())

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing at random."""
        return float(np.mean([1 / len(q.choices) for q in self.questions]))

    @property
    def majority(self) -> float:
        """Accuracy of always giving the option that is right most often when it is offered, whatever the order of the options.

        Between equally good options it guesses. Where options differ between questions, an option that is offered in fewer than 10
        questions counts as a guess; otherwise a single question would make its own right answer the commonest.
        """
        offered = Counter(c for q in self.questions for c in q.choices)
        right = Counter(q.answer_text for q in self.questions)
        total = 0.0
        for q in self.questions:
            known = [offered[c] >= min(FEW, len(self.questions)) for c in q.choices]
            share = [right[c] / offered[c] if k else 1 / len(q.choices) for c, k in zip(q.choices, known, strict=True)]
            total += (share[q.answer] == max(share)) / share.count(max(share))
        return total / len(self.questions)

    @property
    def answers(self) -> Sequence[str | None]:
        """The choice with the largest score for each question; None where there is no answer."""
        return [q.choices[i] for q, i in zip(self.questions, self.scores.argmax(1).tolist(), strict=True)]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the accuracy: Wilson's, or a bootstrap over images where questions share one.

        Args:
            level: the interval's coverage, between 0 and 1.

        Returns:
            The lower and the upper end.
        """
        return statistics.accuracy_interval(self.per_question.numpy(), self.groups, level)

    def compare(self, other: Evaluation) -> statistics.Difference:
        """This accuracy minus the other's on the same questions, paired.

        Args:
            other: the answers of another run to the same questions, in the same order.

        Returns:
            The mean difference with its interval and p-value.

        Raises:
            DataError: for an evaluation of other questions, or of the same ones with other right answers.

        >>> import torch
        >>> qs = [Question("Where is the mug?", ("left", "right"), 0, id=name) for name in ("1", "2")]
        >>> before, after = (Evaluation(qs, torch.tensor([[1.0, 0.0], [score, 0.5]])) for score in (0.0, 1.0))
        >>> after.compare(before).mean
        0.5
        """
        mine, theirs = ([(q.id, q.answer_words) for q in one.questions] for one in (self, other))
        if mine != theirs:
            what = "questions" if [name for name, _ in mine] != [name for name, _ in theirs] else "right answers"
            raise DataError(f"the two evaluations are of different {what}; give answers to the same ones, in the same order")
        return statistics.paired_difference(self.per_question.numpy(), other.per_question.numpy(), self.groups)

    def values(self, key: str) -> list[str]:
        """The value of a field ("relation", "task", "answer_text") or meta entry for each question, "None" where it has none."""
        return [str(getattr(q, key, None) if hasattr(q, key) else q.meta.get(key)) for q in self.questions]

    def part(self, members: Bool[np.ndarray, " questions"]) -> Self:
        """The same run on some of its questions; members says which [Q]."""
        index = np.flatnonzero(members).tolist()
        return replace(self, questions=[self.questions[i] for i in index], scores=self.scores[index])

    def by(self, key: str) -> pd.DataFrame:
        """Accuracy with its interval for each value of a field.

        Args:
            key: a field of the questions ("relation", "task", "answer_text") or an entry of their meta.

        Returns:
            One row per value: the value, n, accuracy, low and high (95%).

        Raises:
            DataError: where no question has a value for the key.
        """
        values = self.values(key)
        if set(values) == {"None"}:
            raise DataError(f"no question has a value for {key!r}; name a field such as 'task', or an entry of meta")
        rows = []
        for value in sorted(set(values)):
            members = np.array([v == value for v in values])
            right = self.per_question.numpy()[members]
            low, high = statistics.accuracy_interval(right, self.groups[members])
            rows.append({key: value, "n": int(members.sum()), "accuracy": float(right.mean()), "low": low, "high": high})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per question: id, text, right answer, given answer, correct."""
        return pd.DataFrame(
            {
                "id": [q.id for q in self.questions],
                "question": [q.text for q in self.questions],
                "right": [q.answer_text for q in self.questions],
                "given": self.answers,
                "correct": self.per_question.bool().numpy(),
            }
        )


@checked
def evaluate(
    vlm: VLM,
    questions: Sequence[Question],
    edit: Any = None,
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
) -> Evaluation:
    """Answer the questions, with one edit in place or with none.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        edit: an Edit of one variant or a ScAle, or None for the model as it is.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.

    Returns:
        An Evaluation, scores [Q, C].

    Raises:
        EditError: for an edit of several variants, or of another model's shape.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> silent = si.Edit.scaling([(3, 1)], 0.0, vlm.n_layers, vlm.n_heads)
    >>> evaluate(vlm, qs, silent).per_question.shape
    torch.Size([8])
    """
    if edit is not None and as_variants(edit).n_variants != 1:
        raise EditError(f"evaluate takes one edit, not {as_variants(edit).n_variants}: use evaluate_many, or pick one with edit[i]")
    return evaluate_many(vlm, questions, edit, path=path, prompts=prompts, scoring=scoring)[0]


@checked
def evaluate_many(
    vlm: VLM,
    questions: Sequence[Question],
    edits: Any = None,
    *,
    path: Path = "auto",
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
) -> list[Evaluation]:
    """Answer the questions under several edits, all run side by side.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        edits: an Edit of N variants, or a list of Edits and ScAles; None is the model as it is.
        path: "packed" reads each prompt once and runs edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.
        scoring: how choices are scored, "auto", "first", "whole" or "mean", as in `run_edits`.

    Returns:
        One Evaluation per variant, in their order.

    Raises:
        EditError: for an edit of another model's shape.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> gains = [si.Edit.scaling([(3, 1)], gain, vlm.n_layers, vlm.n_heads) for gain in (0.0, 2.0)]
    >>> len(evaluate_many(vlm, qs, gains))
    2
    """
    questions = require(questions)
    path = choose_path(vlm, questions, path)
    scores, _ = run_with_clean(vlm, questions, edits, path, prompts=prompts, scoring=scoring, what="answering")
    made = answering(vlm, questions, path=path, scoring=scoring)
    return [Evaluation(questions, column.cpu(), made) for column in scores.unbind(1)]


def answering(vlm: VLM, questions: Sequence[Question], **settings: Any) -> dict[str, Any]:
    """The provenance of answers, with a note where the model's weights are random."""
    if vlm.name.startswith(RANDOM):
        settings["weights"] = RANDOM_WEIGHTS
    return provenance(vlm, questions, **settings)


def relative_gain(new: float, base: float) -> float:
    """The relative gain (new - base) / base, as the papers report it; infinite for a base of 0."""
    return (new - base) / base if base else float("inf")
