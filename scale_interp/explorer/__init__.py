"""Scale heads and fitted scalars by hand on one question, and watch the answer change: `explore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ..adapters import ScAle
    from ..attribution import HeadMap
    from ..data import Question
    from ..models import VLM
    from .notebook import NotebookExplorer


def explore(
    vlm: VLM,
    questions: Question | Sequence[Question],
    *,
    head_map: HeadMap | None = None,
    scale: ScAle | str | Path | None = None,
    dark: bool | None = None,
) -> NotebookExplorer:
    """Explore questions in a notebook: choose a head on its map, see where it looks, scale it, and see the answers.

    The returned object displays itself and can also be used without being shown (see `Explorer`). Showing it needs
    `pip install 'scale-interp[notebook]'`.

    Args:
        vlm: the model.
        questions: one question or several.
        head_map: the scores to choose heads by; by default the gradient on these questions (`si.attribute`).
        scale: a ScAle to fade in, or the folder of one.
        dark: whether figures are dark; by default as the page that shows them.

    Returns:
        The explorer.

    Raises:
        DataError: the questions are empty or not questions.
        EditError: the ScAle or the head map does not fit the model.
        FileError: the folder does not hold a ScAle.

    >>> import scale_interp as si
    >>> explorer = explore(si.load("demo"), si.load_questions("scenes/relation", n=2))
    >>> explorer.select((5, 4))
    >>> explorer.factor = 0.0
    >>> explorer.probabilities.shape == explorer.base.shape
    True
    """
    # Imported here: these modules would make `import scale_interp.viz` wait for torch.
    from .notebook import NotebookExplorer

    return NotebookExplorer(vlm, questions, head_map=head_map, scale=scale, dark=dark)
