"""Pairs of questions that differ in one thing and so in their answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..core.arguments import checked
from ..errors import DataError
from .items import Items, require
from .partners import Partners
from .question import Question
from .question_card import question_card
from .require import require_items
from .scenes.questions import partner

Change = Literal["mirror", "swap", "set"]
OWN = "contrast"
"""The entry of a question's meta with the partner that it brings along."""


class Encoder(Protocol):
    """What turns questions into tokens: a VLM."""

    def encode(self, questions: Question) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Contrast:
    """Two questions whose right answers differ: the same words or the same image, the same choices, another answer.

    >>> here, there = (Question("Where is the cat?", ("left", "right"), i, id=name) for i, name in enumerate(("photo", "mirrored")))
    >>> Contrast(here, there)
    <Contrast: 'Where is the cat?' 'left' against 'right'>
    """

    clean: Question
    corrupt: Question

    @classmethod
    def require_items(cls, items: Any) -> Sequence[Any]:
        """The items as a non-empty sequence of this class, or DataError."""
        return require_items(items, cls, "si.contrasts(questions)", "build pairs with si.contrasts(questions)")

    def __post_init__(self) -> None:
        if wrong := next((q for q in (self.clean, self.corrupt) if not isinstance(q, Question)), None):
            raise DataError(f"a contrast of a {type(wrong).__name__}: give two Questions")
        if self.clean.choices != self.corrupt.choices:
            differ = f"{self.clean.choices} / {self.corrupt.choices}"
            raise DataError(f"contrast {self.clean.id}: the choices differ ({differ}); give both questions the same")
        if self.clean.answer == self.corrupt.answer:
            same = f"both questions have the answer {self.clean.answer_text!r}"
            raise DataError(f"contrast {self.clean.id}: {same}; give two with different ones")

    def __repr__(self) -> str:
        a, b = (f"{q.text!r} {q.answer_text!r}" for q in (self.clean, self.corrupt))
        return f"<Contrast: {a} against {b if self.clean.text != self.corrupt.text else repr(self.corrupt.answer_text)}>"

    def _repr_html_(self) -> str:
        return f"<div style='display:flex;flex-wrap:wrap;gap:12px'>{question_card(self.clean)}{question_card(self.corrupt)}</div>"

    @property
    def id(self) -> str:
        return f"{self.clean.id}>{self.corrupt.id}"

    @property
    def group(self) -> str:
        return self.clean.group

    @property
    def pixel_keys(self) -> tuple[Hashable, ...]:
        return self.clean.pixel_keys


class Contrasts(Items[Contrast]):
    """Contrasts, and the questions for which none could be built (`skipped`: id -> why).

    >>> from scale_interp import load_questions
    >>> pairs = contrasts(load_questions("scenes/relation", n=4))
    >>> pairs[0].clean.choices == pairs[0].corrupt.choices, pairs.skipped
    (True, {})
    """

    noun = "contrasts"

    def __init__(self, items: Iterable[Contrast], skipped: Mapping[str, str], source: str, split: str = "", seed: int | None = None):
        super().__init__(items, source, split, seed)
        self.skipped = dict(skipped)

    def __repr__(self) -> str:
        return f"<{len(self)} contrasts of {self.source}, {len(self.skipped)} questions without one>"

    def _card_row(self, item: Contrast) -> Mapping[str, Any]:
        clean, corrupt = item.clean, item.corrupt
        other = "" if clean.text == corrupt.text else corrupt.text
        return {
            "question": clean.text,
            "right": clean.answer_text,
            "its partner": other or "the same words",
            "right there": corrupt.answer_text,
        }


def own_partners(questions: Iterable[Question]) -> list[Question]:
    """The partners that questions bring along: `contrast_of` and `contrast_image` of JSON lines, or `meta["contrast"]`."""
    return [q.meta[OWN] for q in questions if isinstance(q.meta.get(OWN), Question)]


@checked
def contrasts(questions: Sequence[Question], change: Change = "mirror", vlm: Encoder | None = None) -> Contrasts:
    """Pair each question with one that differs in one thing and so has another right answer.

    A question that brings a partner along (`meta["contrast"]`; JSON lines with `contrast_of` or `contrast_image`) is paired with that one.

    Args:
        questions: The questions to find partners for.
        change: "mirror": the mirror image. The things of a scene move to their mirror places along the asked axis; a photograph
            is flipped left-right, which works for left and right only. "swap": the two things asked about exchange their
            places in a scene, or their words where there is a photograph. "set": another image of the same two things
            (What'sUp), that of the opposite relation where it is among the questions.
        vlm: Measures the prompts; a pair whose prompts differ in their number of tokens is left out.

    Returns:
        The pairs. Questions without a partner are listed in `.skipped` with the reason.

    Raises:
        DataError: For an unknown change, or where no question has a partner.

    >>> from scale_interp import load_questions
    >>> contrasts(load_questions("scenes/relation", n=8))
    <8 contrasts of scenes/relation mirror, 0 questions without one>
    """
    if change not in ("mirror", "swap", "set"):
        raise DataError(f"change {change!r}: choose 'mirror', 'swap' or 'set'")
    questions = require(questions)
    photographs = Partners(questions)
    made, skipped = [], {}
    for question in questions:
        scene = "scene" in question.meta and change != "set"
        own = question.meta.get(OWN)
        if isinstance(own, Question) and "control" not in question.meta:
            other: Question | str = own
        else:
            other = partner(question, change) if scene else photographs.find(question, change)
        why = other if isinstance(other, str) else _unequal_lengths(vlm, question, other)
        if isinstance(other, Question) and why is None:
            made.append(Contrast(question, other))
        else:
            skipped[question.id] = str(why)
    if not made:
        reasons = Counter(skipped.values()).most_common(3)
        raise DataError(
            f"no contrast by {change!r} could be built from {len(questions)} questions: "
            + "; ".join(f"{reason} ({n} questions)" for reason, n in reasons)
            + ": give questions about places or relations"
        )
    alone = all(isinstance(pair.clean.meta.get(OWN), Question) for pair in made)
    source = f"{getattr(questions, 'source', 'given')} {'own pairs' if alone else change}"
    return Contrasts(made, skipped, source, getattr(questions, "split", ""), getattr(questions, "seed", None))


def _unequal_lengths(vlm: Encoder | None, clean: Question, corrupt: Question) -> str | None:
    if vlm is None:
        return None
    a, b = (vlm.encode(question)["input_ids"].shape[1] for question in (clean, corrupt))
    return None if a == b else f"its prompt has {a} tokens, its partner's {b}"
