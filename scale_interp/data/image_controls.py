"""Questions with their picture taken away, exchanged or replaced by noise: what is left to answer from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .items import Questions, require
from .prompts import digest
from .question import Picture, Question


def without_picture(questions: Sequence[Question]) -> Questions:
    """The same questions with no picture.

    Like every control: answers and groups stay, the id gets a mark, and boxes, which no longer hold anything, go.
    PaliGemma's processor refuses a prompt without a picture: take `with_noise` there. Raises DataError where a
    question has no picture to begin with.

    >>> from scale_interp import load_questions
    >>> without_picture(load_questions("scenes/relation", n=4))
    <4 questions of scenes/relation no-picture test>
    """
    questions = _pictured(questions)
    return _controls(questions, [None] * len(questions), "no-picture")


def with_other_picture(questions: Sequence[Question], seed: int = 0) -> Questions:
    """The same questions, each with the picture (or pictures) of a question of another group.

    The groups are put into a ring in an order drawn with `seed`, and each takes the next one's pictures: questions
    that share a picture still share one, and no group's pictures are used by two. Questions with several pictures take
    those of a question with as many. `meta["picture_of"]` is the id of the question that the pictures were of.
    Raises DataError where there is no other group, or where two groups hold the same picture.

    >>> from scale_interp import load_questions
    >>> with_other_picture(load_questions("scenes/relation", n=4))
    <4 questions of scenes/relation other-picture test>
    """
    questions = _pictured(questions)
    _require_own_pictures(questions)
    rng = np.random.default_rng(seed)
    giver: dict[int, Question] = {}
    for count in sorted({len(q.pictures) for q in questions}):
        members: dict[str, list[int]] = {}
        for i, q in enumerate(questions):
            if len(q.pictures) == count:
                members.setdefault(q.group, []).append(i)
        if len(members) == 1:
            raise DataError(
                f"all questions with {count} picture(s) are of one group, {min(members)!r}: no other picture to show; load more"
            )
        ring = [sorted(members)[i] for i in rng.permutation(len(members))]
        for group, other in zip(ring, ring[1:] + ring[:1], strict=True):
            for place, i in enumerate(members[group]):
                giver[i] = questions[members[other][place % len(members[other])]]
    givers = [giver[i] for i in range(len(questions))]
    return _controls(questions, [q.picture for q in givers], "other-picture", [{"picture_of": q.id} for q in givers])


def with_noise(questions: Sequence[Question], seed: int = 0) -> Questions:
    """The same questions, each picture replaced by random pixels of its size, drawn when it is opened.

    Questions of one group that share a picture share its noise. Raises DataError where a question has no picture.

    >>> from scale_interp import load_questions
    >>> with_noise(load_questions("scenes/relation", n=4))[0].image.size
    (56, 56)
    """
    questions = _pictured(questions)
    made: dict[Hashable, Noise] = {}
    pictures = []
    for q in questions:
        marks = [(q.group, place, _mark(picture)) for place, picture in enumerate(q.pictures)]
        pictures.append([made.setdefault(mark, Noise(q, mark[1], seed)) for mark in marks])
    return _controls(questions, pictures, "noise")


@dataclass(frozen=True, eq=False)
class Noise:
    """Random pixels of the size of a question's picture, the same each time."""

    question: Question
    place: int
    seed: int

    def __call__(self) -> Image.Image:
        width, height = self.question.images[self.place].size
        rng = np.random.default_rng(digest(f"{self.seed}|{self.place}|{self.question.group}"))
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _pictured(questions: Sequence[Question]) -> Sequence[Question]:
    questions = require(questions)
    for q in questions:
        if not q.pictures:
            raise DataError(f"question {q.id} has no picture: a picture control would change nothing; leave such questions out")
    return questions


def _require_own_pictures(questions: Sequence[Question]) -> None:
    owners: dict[Hashable, str] = {}
    for q in questions:
        for picture in q.pictures:
            owner = owners.setdefault(_mark(picture), q.group)
            if owner != q.group:
                raise DataError(
                    f"question {q.id}: its picture is in group {owner!r} too; give all questions about one picture the same group"
                )


def _mark(picture: Picture) -> Hashable:
    """Equal for the same picture: the same file, image object or function."""
    return picture if isinstance(picture, Hashable) and not isinstance(picture, Image.Image) else id(picture)


def _controls(
    questions: Sequence[Question], pictures: Sequence[Any], name: str, notes: Sequence[dict[str, str]] | None = None
) -> Questions:
    made = []
    for i, (q, picture) in enumerate(zip(questions, pictures, strict=True)):
        # The scene behind a rendered picture would tell what is no longer shown.
        meta = {k: v for k, v in q.meta.items() if k != "scene"} | {"control": name} | (notes[i] if notes else {})
        made.append(replace(q, picture=picture, id=f"{q.id}~{name}", boxes={}, meta=meta))
    source = f"{getattr(questions, 'source', 'given')} {name}"
    return Questions(made, source, getattr(questions, "split", ""), getattr(questions, "seed", None))
