"""The patch grid of a question's prompt: which token shows which part of which image."""

from __future__ import annotations

from ...core.arguments import checked
from ...data.question import Question
from ...vlm.patch_grid import PatchGrid as PatchGrid
from ...vlm.patch_grid import Raster as Raster
from ...vlm.patch_grid import place_images
from ...vlm.vlm import VLM


@checked
def patch_grid(vlm: VLM, question: Question) -> PatchGrid:
    """The patch grid of a question's prompt, with no image, one or several.

    Args:
        vlm: the model, from `si.load`.
        question: one question.

    Returns:
        A PatchGrid of the prompt's T tokens.

    Raises:
        ModelError: for a family whose grid is not known, and where the grid and the prompt's image tokens do not match.

    >>> import scale_interp as si
    >>> grid = patch_grid(si.load("demo"), si.load_questions("scenes/relation", n=1)[0])
    >>> [raster.tokens.shape for raster in grid.rasters]
    [torch.Size([7, 7])]
    """
    return place_images(vlm, vlm.encode(question)["input_ids"][0], question)
