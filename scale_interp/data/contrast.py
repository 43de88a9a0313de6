"""Pairs of questions that differ in one thing and so in their answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DataError
from .items import Items, require
from .question import Question
from .scene_questions import partner

Change = Literal["mirror", "swap"]


@dataclass(frozen=True)
class Contrast:
    """Two questions of equal token length whose right answers differ: same words or same picture, other answer."""

    clean: Question
    corrupt: Question

    def __post_init__(self) -> None:
        if self.clean.choices != self.corrupt.choices:
            raise DataError(f"contrast {self.clean.id}: the choices differ ({self.clean.choices} / {self.corrupt.choices})")
        if self.clean.answer == self.corrupt.answer:
            raise DataError(f"contrast {self.clean.id}: both questions have the answer {self.clean.answer_text!r}")

    @property
    def id(self) -> str:
        return f"{self.clean.id}>{self.corrupt.id}"

    @property
    def group(self) -> str:
        return self.clean.group


class Contrasts(Items[Contrast]):
    """Contrasts, and the questions for which none could be built (`skipped`: id -> why)."""

    noun = "contrasts"

    def __init__(self, items: Iterable[Contrast], skipped: Mapping[str, str], source: str, split: str = "", seed: int | None = None):
        super().__init__(items, source, split, seed)
        self.skipped = dict(skipped)

    def __repr__(self) -> str:
        return f"<{len(self)} contrasts of {self.source}, {len(self.skipped)} questions without one>"


def contrasts(questions: Sequence[Question], change: Change = "mirror") -> Contrasts:
    """Pair each question with one that has other content, the same words and another right answer.

    change: "mirror" moves every thing to its mirror place along the asked axis; "swap" exchanges the places of the
    two things asked about. Needs questions that know their scene (`scenes/...`) and ask for a place or a relation.
    Questions for which no such partner exists are listed in `.skipped` with the reason.

    >>> from scale_interp import load_questions
    >>> contrasts(load_questions("scenes/relation", n=8))
    <8 contrasts of scenes/relation mirror, 0 questions without one>
    """
    if change not in ("mirror", "swap"):
        raise DataError(f"change {change!r}: choose 'mirror' or 'swap'")
    made, skipped = [], {}
    for question in require(questions):
        other = partner(question, change)
        if isinstance(other, str):
            skipped[question.id] = other
        else:
            made.append(Contrast(question, other))
    if not made:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise DataError(f"no contrast could be built from {len(questions)} questions: {reasons}")
    source = f"{getattr(questions, 'source', 'given')} {change}"
    return Contrasts(made, skipped, source, getattr(questions, "split", ""), getattr(questions, "seed", None))
