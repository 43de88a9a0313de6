"""A question as a small piece of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from ..core.template import render
from ..errors import DataError

SMALL, LARGE = 180, 320
"""Pixels. An image that fits into SMALL more than once is enlarged by a whole factor; one with a side above LARGE is reduced."""


class Asked(Protocol):
    """What a card shows; a Question has it."""

    @property
    def text(self) -> str: ...
    @property
    def choices(self) -> Sequence[str]: ...
    @property
    def answer(self) -> int: ...
    @property
    def images(self) -> Sequence[Image.Image]: ...
    @property
    def task(self) -> str: ...
    @property
    def relation(self) -> str | None: ...


def question_card(question: Asked, note: str = "") -> str:
    """Show a question as HTML that needs nothing from outside: image, text, choices with the right one marked, and a note.

    Text is escaped. An image that cannot be opened is replaced by the reason, so that showing a question never fails.

    Args:
        question: the question to show.
        note: what was answered, in words.

    >>> import scale_interp as si
    >>> "<img" in question_card(si.load_questions("scenes/relation", n=1)[0])
    True
    """
    problem, images = "", []
    try:
        images = [_shown(image) for image in question.images]
    except DataError as error:
        problem = str(error)
    card = render(
        "scale_interp.data",
        "question.html.jinja",
        text=question.text,
        choices=question.choices,
        answer=question.answer,
        images=images,
        problem=problem,
        note=note,
        facts=[part for part in (question.task, question.relation) if part],
    )
    return str(card)


def _shown(image: Image.Image) -> dict[str, Any]:
    """The image as base64 PNG, and the size to show it in."""
    side = max(image.size)
    factor = SMALL // side
    shown = side * factor if factor > 1 else min(side, LARGE)
    width, height = (max(1, round(s * shown / side)) for s in image.size)
    if side > LARGE:
        image = image.resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return {"png": base64.b64encode(buffer.getvalue()).decode(), "width": width, "height": height, "enlarged": factor > 1}
