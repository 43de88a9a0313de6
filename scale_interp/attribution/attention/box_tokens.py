"""The prompt's tokens that show the asked objects, by the boxes that a question carries."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.arguments import checked
from ...data.items import require
from ...data.question import Question
from ...errors import DataError
from ...vlm.vlm import VLM
from .grid import PatchGrid, patch_grid

BOX_UNSEEN = "its boxes lie outside the part of the picture that the model gets to see"
LEAST_SHARE = 1e-9
"""A token that shows less than this share of itself of a box shows rounding."""


@checked
def box_tokens(vlm: VLM, questions: Question | Sequence[Question]) -> list[Tensor]:
    """Which of each prompt's tokens show any part of the asked objects' boxes: booleans [T] a question.

    What `selected` of `evaluate_scaled` takes, so that PASTA looks at the asked objects in place of the whole picture. Tokens of
    every view of the picture count, the coarse ones too. Raises DataError for a question without such boxes, or whose boxes the
    model does not get to see; ModelError for a family whose patch grid is not known.

    >>> import scale_interp as si
    >>> (shown,) = box_tokens(si.load("demo"), si.load_questions("scenes/relation", n=1))
    >>> shown.dtype, bool(shown.any()), bool(shown.all())
    (torch.bool, True, False)
    """
    out = []
    for question in require(questions):
        if why := why_no_box(question):
            raise DataError(f"question {question.id}: {why}")
        cover = box_cover(question, patch_grid(vlm, question))
        if not cover.any():
            raise DataError(f"question {question.id}: {BOX_UNSEEN}; leave it out")
        out.append(cover > LEAST_SHARE)
    return out


def box_cover(question: Question, grid: PatchGrid) -> Tensor:
    """How much of each token's part of the picture lies in the asked boxes, [T]: boxes are in pixels of the first picture."""
    return grid.cover([question.boxes[name] for name in question.about])


def why_no_box(question: Question) -> str | None:
    """Why a question says of nothing where it lies, or None."""
    if not question.pictures:
        return "it has no picture"
    if not question.about:
        return "it does not say what it is about; give Question(about=...)"
    missing = [name for name in question.about if name not in question.boxes]
    return f"it has no box of {', '.join(missing)}; give Question(boxes=...)" if missing else None
