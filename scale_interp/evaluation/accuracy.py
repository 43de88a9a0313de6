"""How well the model answers, with and without an edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
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
"""How the names of models begin whose weights are drawn, not trained."""
FEW = 10
"""An option offered in fewer questions than this, and not in all of them, has no share worth counting."""


@dataclass(frozen=True, eq=False)
class Evaluation(NotebookView):
    """Answers of one run: scores [Q, C] over the choices; per_question [Q] is 1.0 where the right one is largest.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> list(si.evaluate(vlm, qs).by("relation").columns)
    ['relation', 'n', 'accuracy', 'low', 'high']
    """

    questions: Sequence[Question]
    scores: Tensor
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        low, high = self.interval()
        notes = "".join(f", {note}" for note in self._notes())
        return (
            f"<{type(self).__name__}: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] "
            f"on {len(self.questions)} questions, chance {self.chance:.3f}{notes}>"
        )

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        right = self.per_question.tolist()
        told = zip(self.questions, self.answers, right, strict=True)
        return ({"answered wrong": q.text, "right": q.answer_text, "given": given} for q, given, good in told if not good)

    def _notes(self) -> list[str]:
        return [RANDOM_WEIGHTS] if self.random_weights else []

    @property
    def random_weights(self) -> bool:
        """Whether the model's weights are random, so that its accuracy says nothing."""
        return self.provenance.get("weights") == RANDOM_WEIGHTS

    @cached_property
    def per_question(self) -> Tensor:
        return measure("accuracy", self.scores, self.questions)

    @cached_property
    def groups(self) -> np.ndarray:
        return groups(self.questions)

    @property
    def accuracy(self) -> float:
        return float(self.per_question.mean())

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return float(np.mean([1 / len(q.choices) for q in self.questions]))

    @property
    def majority(self) -> float:
        """Accuracy of always giving the option that is right most often when it is offered, in whatever order options stand.

        Equally good options count as a draw between them. Where options change from question to question, those offered
        in fewer than 10 questions count as a guess: one question would make its own right answer the commonest.
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
        """The choice with the largest score, for each question."""
        return [q.choices[i] for q, i in zip(self.questions, self.scores.argmax(1).tolist(), strict=True)]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the accuracy: Wilson's, or a bootstrap over pictures where questions share one."""
        return statistics.accuracy_interval(self.per_question.numpy(), self.groups, level)

    def compare(self, other: Evaluation) -> statistics.Difference:
        """This accuracy minus the other's on the same questions, paired.

        >>> import torch
        >>> qs = [Question("Where is the mug?", ("left", "right"), 0, id=name) for name in ("1", "2")]
        >>> before, after = (Evaluation(qs, torch.tensor([[1.0, 0.0], [score, 0.5]])) for score in (0.0, 1.0))
        >>> after.compare(before).mean
        0.5
        """
        if [q.id for q in self.questions] != [q.id for q in other.questions]:
            raise DataError("the two evaluations are of different questions: a paired difference needs the same ones")
        return statistics.paired_difference(self.per_question.numpy(), other.per_question.numpy(), self.groups)

    def values(self, key: str) -> list[str]:
        """Each question's value of a field ("relation", "task", "answer_text") or meta entry, "None" where it has none."""
        return [str(getattr(q, key, None) if hasattr(q, key) else q.meta.get(key)) for q in self.questions]

    def part(self, members: np.ndarray) -> Self:
        """The same run on some of its questions; members: booleans [Q]."""
        index = np.flatnonzero(members).tolist()
        return replace(self, questions=[self.questions[i] for i in index], scores=self.scores[index])

    def by(self, key: str) -> pd.DataFrame:
        """Accuracy with interval for each value of a question's field ("relation", "task", "answer_text") or meta entry."""
        values = self.values(key)
        if set(values) == {"None"}:
            raise DataError(f"no question has a value for {key!r}")
        rows = []
        for value in sorted(set(values)):
            members = np.array([v == value for v in values])
            right = self.per_question.numpy()[members]
            low, high = statistics.accuracy_interval(right, self.groups[members])
            rows.append({key: value, "n": int(members.sum()), "accuracy": float(right.mean()), "low": low, "high": high})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """A row a question: id, text, right answer, given answer, correct."""
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
    """Answer the questions, with one edit in place (an Edit or a ScAle) or with none.

    scoring: "auto", "first", "whole" or "mean", as in run_edits.

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
    """One Evaluation for each variant, all run side by side.

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
    """The provenance of answers; it says so where the weights are random."""
    if vlm.name.startswith(RANDOM):
        settings["weights"] = RANDOM_WEIGHTS
    return provenance(vlm, questions, **settings)


def relative_gain(new: float, base: float) -> float:
    """(new - base) / base, the papers' relative gain; infinite from a base of 0."""
    return (new - base) / base if base else float("inf")
