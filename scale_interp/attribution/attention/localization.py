"""Localization heads: heads with much attention on the image, gathered in one part of it (arXiv 2503.06287)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.arguments import checked
from ...core.figures import draw
from ...core.notebook import FigureView
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError
from ...interventions.edit import Head
from ...interventions.engine import Path, choose_path
from ...vlm.vlm import VLM
from ..ablation import provenance
from ..elbow_rule import elbow
from ..headmap import HeadMap
from .grid import patch_grid
from .last_token import image_mass, spatial_entropy, stream_attention

HEADS = 3
"""How many heads are chosen by default."""


@dataclass(frozen=True, eq=False)
class LocalizationHeads(FigureView):
    """The chosen heads, and the two maps that they were chosen by.

    Attributes:
        heads: the chosen heads, the most gathered map first.
        above: the heads above the elbow of image attention, the most attention first.
        image: attention on the image, of all heads.
        entropy: spatial entropy in nats, of all heads.

    >>> import scale_interp as si
    >>> found = localization_heads(si.load("demo"), si.load_questions("scenes/relation", "train", n=4), n=1)
    >>> len(found.heads), found.entropy.unit
    (1, 'nats')
    """

    heads: tuple[Head, ...]
    above: tuple[Head, ...]
    image: HeadMap
    entropy: HeadMap

    def __repr__(self) -> str:
        chosen = ", ".join(f"({layer}, {head})" for layer, head in self.heads)
        return f"<LocalizationHeads {chosen} of {len(self.above)} above the elbow, {len(self.image.per_question)} questions>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        image, entropy = self.image.scores, self.entropy.scores
        return ({"layer": h[0], "head": h[1], "on the image": float(image[h]), "entropy (nats)": float(entropy[h])} for h in self.heads)

    def plot(self, **options: Any) -> Any:
        """Both maps as plotly heatmaps, the chosen heads outlined (see viz.head_heatmaps)."""
        return draw("head_heatmaps", [self.image, self.entropy], **({"marks": self.heads} | options))


@checked
def localization_heads(vlm: VLM, questions: Sequence[Question], n: int = HEADS, *, path: Path = "auto") -> LocalizationHeads:
    """The n heads of least spatial entropy among those whose attention on the image is above the elbow (arXiv 2503.06287).

    Both criteria are means over the questions. Neither boxes nor answers are used.

    Args:
        vlm: the model, from `si.load`.
        questions: Q training questions; no test question should help to choose.
        n: how many heads; there are fewer where fewer are above the elbow.
        path: "packed" reads attention from prompts that are read once, "reference" from whole forward passes, "auto" chooses.

    Returns:
        A LocalizationHeads.

    Raises:
        DataError: for n below 1, and for a question without an image.
        ModelError: for a family whose patch grid is not known.

    >>> import scale_interp as si
    >>> found = localization_heads(si.load("demo"), si.load_questions("scenes/relation", "train", n=8))
    >>> set(found.heads) <= set(found.above)
    True
    """
    questions = require(questions)
    if blind := next((q for q in questions if not q.pictures), None):
        raise DataError(f"question {blind.id} has no image to localize anything in; leave it out")
    path = choose_path(vlm, questions, path)
    masses, entropies = [], []
    for question, (weights, _) in zip(questions, stream_attention(vlm, questions, path), strict=True):
        grid = patch_grid(vlm, question)
        masses.append(image_mass(weights, grid))
        entropies.append(spatial_entropy(weights, grid))
    made, pictures = provenance(vlm, questions, metric="attention", path=path), torch.from_numpy(groups(questions))
    image = HeadMap("image attention", "share of attention", torch.stack(masses), pictures, made)
    return choose_localization(image, HeadMap("spatial entropy", "nats", torch.stack(entropies), pictures, made), n)


def choose_localization(image: HeadMap, entropy: HeadMap, n: int = HEADS) -> LocalizationHeads:
    """localization_heads from maps that were read before, such as `.image` and `.entropy` of an ObjectAttention of training questions."""
    if n < 1:
        raise DataError(f"n={n}: choose at least one head")
    above = image.top(elbow(image.scores))
    ranked = sorted(above, key=lambda head: float(entropy.scores[head]))
    return LocalizationHeads(tuple(ranked[:n]), tuple(above), image, entropy)
