"""Turn heads and fitted scalars up and down on one question, and watch the answer move: `explore`."""

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

    head_map: the scores to choose heads by; default: the gradient on these questions (`si.attribute`). scale: a ScAle, or the
    folder of one, to fade in. dark: dark figures; default: as the page that shows them is.

    The object that is returned draws itself, and can be used without being shown (see `Explorer`). Raises DataError for
    questions, EditError or FileError for a ScAle, that do not fit; being shown needs `pip install 'scale-interp[notebook]'`.

    >>> import scale_interp as si
    >>> explorer = explore(si.load("demo"), si.load_questions("scenes/relation", n=2))
    >>> explorer.select((5, 4))
    >>> explorer.factor = 0.0
    >>> explorer.probabilities.shape == explorer.base.shape
    True
    """
    # Here and not above: these modules would make `import scale_interp.viz` wait for torch.
    from .notebook import NotebookExplorer

    return NotebookExplorer(vlm, questions, head_map=head_map, scale=scale, dark=dark)
