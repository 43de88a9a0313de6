"""The prompt's tokens that show the objects asked about, from the boxes that a question has."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from ...core.arguments import checked
from ...data.items import require
from ...data.question import Question
from ...errors import DataError
from ...vlm.token_groups import LEAST_SHARE
from ...vlm.vlm import VLM
from .grid import PatchGrid, patch_grid

BOX_UNSEEN = "its boxes are outside the part of the image that the model sees"


@checked
def box_tokens(vlm: VLM, questions: Question | Sequence[Question]) -> list[Bool[Tensor, " _"]]:
    """Which of each prompt's tokens show any part of the boxes of the objects asked about.

    This is what `selected` of `evaluate_scaled` takes, so that PASTA looks at these objects instead of the whole image. Tokens of every
    view of the image count, the coarse ones too.

    Args:
        vlm: the model, from `si.load`.
        questions: one question, or several.

    Returns:
        One boolean tensor [T] per question.

    Raises:
        DataError: for a question without such boxes, and for boxes that the model does not see.
        ModelError: for a family whose patch grid is not known.

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


def box_cover(question: Question, grid: PatchGrid) -> Float[Tensor, " tokens"]:
    """The share of each token's part of the image that is inside the asked boxes [T]; boxes are in pixels of the first image."""
    return grid.cover([question.boxes[name] for name in question.about])


def why_no_box(question: Question) -> str | None:
    """Why a question does not say where its objects are, or None."""
    if not question.pictures:
        return "it has no image"
    if not question.about:
        return "it does not say what it is about; give Question(about=...)"
    missing = [name for name in question.about if name not in question.boxes]
    return f"it has no box of {', '.join(missing)}; give Question(boxes=...)" if missing else None
