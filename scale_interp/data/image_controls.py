"""Questions with their image taken away, exchanged or replaced by noise: what is left to answer from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..errors import DataError
from .items import Questions, require
from .prompts import digest
from .question import ImageSource, Question


def without_image(questions: Sequence[Question]) -> Questions:
    """The same questions with no image.

    Answers and groups stay, the id gets a mark, and boxes are dropped, because they no longer hold anything; so it is with
    every control. PaliGemma's processor refuses a prompt without an image: use `with_noise` there.

    Args:
        questions: Questions that have an image.

    Raises:
        DataError: Where a question has no image to begin with.

    >>> from scale_interp import load_questions
    >>> without_image(load_questions("scenes/relation", n=4))
    <4 questions of scenes/relation no-picture test>
    """
    questions = _with_images(questions)
    return _controls(questions, [()] * len(questions), "no-picture")


def with_other_image(questions: Sequence[Question], seed: int = 0) -> Questions:
    """The same questions, each with the image (or images) of a question of another group.

    The groups are put into a ring in a random order, and each takes the images of the next one: questions that share an
    image still share one, and no group's images are used twice. Questions with several images take those of a question
    with as many.

    Args:
        questions: Questions that have an image.
        seed: Draws the order of the groups.

    Returns:
        The questions; `meta["picture_of"]` is the id of the question that the images were of.

    Raises:
        DataError: Where there is no other group, or where two groups hold the same image.

    >>> from scale_interp import load_questions
    >>> with_other_image(load_questions("scenes/relation", n=4))
    <4 questions of scenes/relation other-picture test>
    """
    questions = _with_images(questions)
    _require_own_images(questions)
    rng = np.random.default_rng(seed)
    giver: dict[int, Question] = {}
    for count in sorted({len(q.image_sources) for q in questions}):
        members: dict[str, list[int]] = {}
        for i, q in enumerate(questions):
            if len(q.image_sources) == count:
                members.setdefault(q.group, []).append(i)
        if len(members) == 1:
            raise DataError(f"all questions with {count} image(s) are of one group, {min(members)!r}: no other image to show; load more")
        ring = [sorted(members)[i] for i in rng.permutation(len(members))]
        for group, other in zip(ring, ring[1:] + ring[:1], strict=True):
            for place, i in enumerate(members[group]):
                giver[i] = questions[members[other][place % len(members[other])]]
    givers = [giver[i] for i in range(len(questions))]
    return _controls(questions, [q.image_sources for q in givers], "other-picture", [{"picture_of": q.id} for q in givers])


def with_noise(questions: Sequence[Question], seed: int = 0) -> Questions:
    """The same questions, each image replaced by random pixels of its size, drawn when it is opened.

    Questions of one group that share an image share its noise.

    Args:
        questions: Questions that have an image.
        seed: Draws the pixels.

    Raises:
        DataError: Where a question has no image.

    >>> from scale_interp import load_questions
    >>> with_noise(load_questions("scenes/relation", n=4))[0].image.size
    (56, 56)
    """
    questions = _with_images(questions)
    made: dict[Hashable, Noise] = {}
    images = []
    for q in questions:
        marks = [(q.group, place, _mark(image)) for place, image in enumerate(q.image_sources)]
        images.append([made.setdefault(mark, Noise(q, mark[1], seed)) for mark in marks])
    return _controls(questions, images, "noise")


@dataclass(frozen=True, eq=False)
class Noise:
    """Random pixels of the size of a question's image, the same each time."""

    question: Question
    place: int
    seed: int

    def __call__(self) -> Image.Image:
        width, height = self.question.images[self.place].size
        rng = np.random.default_rng(digest(f"{self.seed}|{self.place}|{self.question.group}"))
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _with_images(questions: Sequence[Question]) -> Sequence[Question]:
    questions = require(questions)
    for q in questions:
        if not q.image_sources:
            raise DataError(f"question {q.id} has no image: an image control would change nothing; leave such questions out")
    return questions


def _require_own_images(questions: Sequence[Question]) -> None:
    owners: dict[Hashable, str] = {}
    for q in questions:
        for image in q.image_sources:
            owner = owners.setdefault(_mark(image), q.group)
            if owner != q.group:
                raise DataError(f"question {q.id}: its image is in group {owner!r} too; give all questions about one image the same group")


def _mark(image: ImageSource) -> Hashable:
    """Equal for the same image: the same file, image object or function."""
    return image if isinstance(image, Hashable) and not isinstance(image, Image.Image) else id(image)


def _controls(
    questions: Sequence[Question], images: Sequence[Sequence[ImageSource]], name: str, notes: Sequence[dict[str, str]] | None = None
) -> Questions:
    made = []
    for i, (q, sources) in enumerate(zip(questions, images, strict=True)):
        # The scene behind a rendered image would tell what is no longer shown.
        meta = {k: v for k, v in q.meta.items() if k != "scene"} | {"control": name} | (notes[i] if notes else {})
        made.append(replace(q, image_sources=tuple(sources), id=f"{q.id}~{name}", boxes={}, meta=meta))
    source = f"{getattr(questions, 'source', 'given')} {name}"
    return Questions(made, source, getattr(questions, "split", ""), getattr(questions, "seed", None))


without_picture, with_other_picture = without_image, with_other_image
"""Older names."""
