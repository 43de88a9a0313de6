"""The direction of right answers: where a function's heads point when the model is right and not when it is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.ablation import provenance
from ...attribution.head_probe import Label, read_labels
from ...attribution.metric import measure
from ...core.arguments import Count, checked
from ...core.notebook import MOST
from ...core.result import Result
from ...data.identity import count_images, image_names
from ...data.items import require
from ...data.question import Question
from ...interventions.edit import Edit, Head, Scope
from ...interventions.engine import Path, run_edits
from ...vlm.vlm import VLM
from .steering import fit_steering


@dataclass(frozen=True, eq=False)
class AnswerDirection(Result):
    """unit [L, H, D]: from wrong to right answers, of length 1; sigma [L, H]: spread of z along it. pictures: learned from.

    >>> found = AnswerDirection(torch.full((6, 8, 16), 0.25), torch.ones(6, 8), ("scene 1", "scene 2"))
    >>> found.edit([(3, 1)], alpha=5.0)
    <Edit of 1 variant: shift [1, 6, 8, 16]; scope each_new_token>
    """

    unit: Float[Tensor, "layers heads dim"]
    sigma: Float[Tensor, "layers heads"]
    pictures: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        L, H, D = self.unit.shape
        return f"<AnswerDirection on {L} layers x {H} heads of {D}, learned from {count_images(self.pictures)} images>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        H = self.sigma.shape[1]
        largest = self.sigma.flatten().argsort(descending=True, stable=True)[:MOST].tolist()
        return ({"layer": i // H, "head": i % H, "sigma": float(self.sigma[i // H, i % H])} for i in largest)

    def edit(self, heads: Iterable[Head], alpha: float, scope: Scope = "each_new_token") -> Edit:
        """z += alpha * sigma * unit on the given heads."""
        return Edit(shift=(alpha * self.sigma[..., None] * self.unit)[None], scope=scope).restrict(heads)


@checked
def answer_direction(vlm: VLM, train: Sequence[Question], *, path: Path = "auto") -> AnswerDirection:
    """The direction of step 7 of the CogQA pipeline (arXiv 2512.10978): mean z of right minus of wrong answers, on every head.

    train: training questions of one function, and only these. It is `fit_steering`'s direction, kept for all heads: z of
    the prompt's last token, where the edit is made, and its standard deviation along the direction.
    Raises DataError where all answers are right, or all wrong.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=40)
    >>> answer_direction(vlm, train).edit([(3, 1)], alpha=5).n_variants
    1
    """
    train = require(train)
    every = [(layer, head) for layer in range(vlm.n_layers) for head in range(vlm.n_heads)]
    found = fit_steering(vlm, train, every, path=path)
    made = provenance(vlm, train, right=found.settings["right"])
    return AnswerDirection(found.directions, found.sigma, image_names(train), made)


@checked
def answer_directions(
    vlm: VLM, train: Sequence[Question], by: Label = "function", *, least: Count = 5, path: Path = "auto"
) -> dict[str, AnswerDirection]:
    """answer_direction of every function's training questions, by the function's name.

    A function with fewer than `least` right or wrong answers has no direction and is left out.

    >>> import scale_interp as si
    >>> steps = si.subquestions(si.cog_questions("train", n=40))
    >>> {"relational reasoning", "visual reception"} & answer_directions(si.load("demo"), steps).keys()
    {'relational reasoning'}
    """
    train = require(train)
    functions, codes = read_labels(train, by)
    right = measure("accuracy", run_edits(vlm, train, path=path, what="answering")[:, 0], train).bool().cpu()
    own = {name: [q for q, code in zip(train, codes, strict=True) if code == f] for f, name in enumerate(functions)}
    counts = {name: int(right[torch.from_numpy(codes == f)].sum()) for f, name in enumerate(functions)}
    return {name: answer_direction(vlm, own[name], path=path) for name in functions if least <= counts[name] <= len(own[name]) - least}
