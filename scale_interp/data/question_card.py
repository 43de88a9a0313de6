"""A question as a small piece of HTML."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DataError

if TYPE_CHECKING:
    from .question import Question

SMALL, LARGE = 180, 320
"""An image that fits in SMALL pixels more than once is enlarged by a whole factor, one with a side above LARGE is reduced."""
CARD = (
    "display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start;align-content:flex-start;max-width:640px;"
    "border:1px solid rgba(128,128,128,.4);border-radius:8px;padding:12px"
)


def question_card(question: Question, note: str = "") -> str:
    """A question as HTML without outside parts: image, text, choices with the right one marked, and a note of what was answered.

    Text is escaped. An image that cannot be opened is replaced by the reason, so that showing a question never fails.

    >>> import scale_interp as si
    >>> "<img" in question_card(si.load_questions("scenes/relation", n=1)[0])
    True
    """
    try:
        shown = "".join(_image(image, question.text) for image in question.images)
    except DataError as error:
        shown = f"<p style='flex:1 1 160px;margin:0'>{escape(str(error))}</p>"
    choices = "".join(_choice(choice, i == question.answer) for i, choice in enumerate(question.choices))
    facts = " · ".join(escape(str(part)) for part in (question.task, question.relation) if part)
    said = f"<p style='margin:0 0 8px'>{escape(note)}</p>" if note else ""
    return (
        f"<article style='{CARD}'>{shown}<div style='flex:1 1 150px;min-width:0;overflow-wrap:anywhere'>"
        f"<p style='margin:0 0 8px;font-weight:600'>{escape(question.text)}</p>"
        f"<ul style='list-style:none;margin:0 0 8px;padding:0'>{choices}</ul>{said}"
        f"<p style='margin:0;font-size:12px;opacity:.75'>{facts}</p></div></article>"
    )


def _choice(text: str, right: bool) -> str:
    mark, weight = ("✓", 700) if right else ("", 400)
    label = " aria-label='right answer'" if right else ""
    return f"<li style='font-weight:{weight}'><span style='display:inline-block;width:1.4em'{label}>{mark}</span>{escape(text)}</li>"


def _image(image: Image.Image, text: str) -> str:
    side = max(image.size)
    factor = SMALL // side
    shown = side * factor if factor > 1 else min(side, LARGE)
    width, height = (max(1, round(s * shown / side)) for s in image.size)
    if side > LARGE:
        image = image.resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"width:{width}px;max-width:100%;height:auto;border-radius:4px" + (";image-rendering:pixelated" if factor > 1 else "")
    return f"<img src='data:image/png;base64,{data}' width='{width}' height='{height}' alt='{escape(f'image of: {text}')}' style='{style}'>"
