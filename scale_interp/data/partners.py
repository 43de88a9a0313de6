"""Contrast partners of questions about photographs: the mirror image, exchanged words, another image of the set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, ImageOps

from .article import with_article
from .question import LETTERED, Box, Question
from .wording import short

AXES = (("left", "right"), ("on|on top|above|over", "under|underneath|beneath|below"), ("front", "behind|back"))
"""Words for the two ends of each axis: left-right, up-down, front-back."""
SIDES = [[re.compile(rf"(?:(?:to|on|at) the |in )?(?:{words})(?: side)?(?: of)?", re.IGNORECASE) for words in axis] for axis in AXES]


@dataclass(frozen=True)
class Mirrored:
    """The image of a question flipped left-right, opened only when asked for; equal for one image."""

    image: Hashable
    question: Question = field(compare=False, repr=False)

    def __call__(self) -> Image.Image:
        return ImageOps.mirror(self.question.images[0])


class Partners:
    """Finds the contrast partner of each of the questions, or says why it has none."""

    def __init__(self, questions: Iterable[Question]):
        self.sets: dict[Hashable, list[Question]] = defaultdict(list)
        for question in questions:
            if "set" in question.meta:
                self.sets[_set(question)].append(question)

    def find(self, question: Question, change: str) -> Question | str:
        """change: "mirror", "swap" or "set"."""
        if "control" in question.meta:
            return f"its image is a control ({question.meta['control']}), which does not show what is asked"
        if change == "mirror":
            return mirrored(question)
        if change == "swap":
            return swapped(question)
        if "set" not in question.meta:
            return "it belongs to no set of images"
        return other_member(question, self.sets[_set(question)])


def _set(question: Question) -> Hashable:
    return question.task, question.about, question.meta["set"]


def mirrored(question: Question) -> Question | str:
    """The question about its image flipped left-right, where left is right and all else is as it was."""
    if len(question.image_sources) != 1:
        return "only a question about one image can be mirrored"
    if "form" in question.meta and (question.meta["form"], question.meta.get("kind")) != ("vqa", "real"):
        return "its image is drawn and holds writing, or its words describe the image"
    yes_no = _asks_yes_no(question)
    answer = _no_after_yes(question, axes=(0,)) if yes_no else _opposite(question, axes=(0,))
    if isinstance(answer, str):
        return answer
    stated = str(question.meta.get("caption", question.text)) if yes_no else question.text
    said = re.findall(r"\b(?:left|right)\b", stated.lower())
    if len(said) != 1 if yes_no else said.count("left") != said.count("right"):
        return "its words say left or right of something else, which the mirror changes too"
    image = question.image_sources[0]
    key = id(image) if isinstance(image, Image.Image) or not isinstance(image, Hashable) else image
    return replace(
        _answered(question, answer, "captions"),
        image_sources=(Mirrored(key, question),),
        id=f"{question.id}~mirror",
        boxes=_mirrored_boxes(question),
    )


def swapped(question: Question) -> Question | str:
    """The question with the words for its two things exchanged: the same image, the opposite relation."""
    if len(question.about) < 2:
        return "only one thing is asked about: nothing to swap"
    first, second = question.about[:2]
    if first.lower() == second.lower():
        return "both things have the same name"
    # Two things that face each other are each in front of the other: there a yes implies no "no".
    answer = _no_after_yes(question, axes=(0, 1)) if _asks_yes_no(question) else _opposite(question, axes=(0, 1, 2))
    if isinstance(answer, str):
        return answer
    text = exchange(question.text, first, second)
    if text is None:
        return "its words do not name each of the two things once"
    about = (second, first, *question.about[2:])
    return replace(_answered(question, answer, "captions", "caption"), text=text, about=about, id=f"{question.id}~swap")


def other_member(question: Question, members: Sequence[Question]) -> Question | str:
    """The question asked of another image of its set: that of the opposite relation, else of its first other choice."""
    others = [m for m in members if m.answer_words != question.answer_words and set(m.choice_words) == set(question.choice_words)]
    if not others:
        return "no other image of its set is among the questions"
    opposite = _opposite(question, axes=(0, 1, 2))
    place = lambda m: question.choice_words.index(m.answer_words)  # noqa: E731
    other = min(others, key=lambda m: (place(m) != opposite, place(m)))
    return replace(
        other,
        text=question.text,
        choices=question.choices,
        answer=place(other),
        id=f"{question.id}~set:{other.answer_words}",
        meta={**other.meta, **{key: question.meta[key] for key in (LETTERED,) if key in question.meta}},
    )


def side(phrase: str) -> tuple[int, int] | None:
    """The axis that a relation lies on and its end: "to the left of" is (0, 0), "right" (0, 1), "under" (1, 1)."""
    found = ((axis, end) for axis, ends in enumerate(SIDES) for end, words in enumerate(ends) if words.fullmatch(phrase.strip()))
    return next(found, None)


def exchange(text: str, first: str, second: str) -> str | None:
    """The text with two names in each other's place, their articles right, or None unless it names each once.

    >>> exchange("A mug to the left of an apple", "mug", "apple")
    'An apple to the left of a mug'
    """
    others = {first.lower(): second, second.lower(): first}
    longest_first = "|".join(re.escape(name) for name in sorted(others, key=len, reverse=True))
    found: list[str] = []

    def put(match: re.Match[str]) -> str:
        found.append(match["name"].lower())
        new = others[match["name"].lower()]
        new = with_article(new) if match["article"] else new
        begins = match[0][0].isupper() and (match["article"] or match.start() == 0)
        return new[0].upper() + new[1:] if begins else new

    out = re.sub(rf"\b(?P<article>an? )?(?P<name>{longest_first})\b", put, text, flags=re.IGNORECASE)
    return out if sorted(found) == sorted(others) else None


def _asks_yes_no(question: Question) -> bool:
    return {choice.lower() for choice in question.choice_words} == {"yes", "no"}


def _opposite(question: Question, axes: tuple[int, ...]) -> int | str:
    """The index of the answer at the other end of the answer's axis, or why there is none."""
    here = side(question.answer_words)
    if here is None or here[0] not in axes:
        return f"the change leaves the answer {short(question.answer_words)} as it is, or has no known effect on it"
    found = [i for i, choice in enumerate(question.choice_words) if side(choice) == (here[0], 1 - here[1])]
    return found[0] if len(found) == 1 else f"its choices hold no single opposite of {short(question.answer_words)}"


def _no_after_yes(question: Question, axes: tuple[int, ...]) -> int | str:
    """The index of "no" where the asked relation holds and so cannot hold after the change, or why that is not implied."""
    here = None if question.relation is None else side(question.relation)
    if here is None or here[0] not in axes:
        return f"the change does not reverse what is asked ({question.relation or 'no relation'})"
    if question.answer_words.lower() == "no":
        return f"that it is not {question.relation!r} does not make it so after the change"
    return 1 - question.answer


def _answered(question: Question, answer: int, *stale: str) -> Question:
    """The question with another right answer, without the entries of meta that gave the old one away."""
    relation = question.relation
    if relation is not None and not _asks_yes_no(question):
        relation = question.choice_words[answer]
    meta: Mapping[str, Any] = {key: value for key, value in question.meta.items() if key not in stale}
    return replace(question, answer=answer, relation=relation, meta=meta)


def _mirrored_boxes(question: Question) -> dict[str, Box]:
    if not question.boxes:
        return {}
    width = question.meta["size"][0] if "size" in question.meta else question.images[0].width
    return {name: (width - right, top, width - left, bottom) for name, (left, top, right, bottom) in question.boxes.items()}
