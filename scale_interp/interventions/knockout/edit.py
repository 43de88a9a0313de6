"""Edits of what some tokens of the prompt see of others: attention knockout, N variants at once.

In the chosen heads, the rows of `source` attend as if some columns were not there. A token always sees itself, so no row is ever empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...core.arguments import Raises
from ...data.question import Question
from ...errors import EditError
from ...vlm.vlm import VLM
from ..edit import LayerEdit, Scope

Mode = Annotated[Literal["block", "only", "move"], Raises(EditError)]
Where = str | Sequence[int]
"""A group of tokens by name, or places in the prompt; negative ones count from its end."""


@dataclass(frozen=True)
class AttentionEdit:
    """N edits of attention, run by `run_edits` like an `Edit`.

    Args:
        heads: Which heads each variant edits, [N, L, H].
        source: The tokens whose attention changes: "last", "image", another group, or places in the prompt.
        target: The tokens that they attend to.
        mode: "block" hides the target from the source (attention knockout, Geva et al. 2023, arXiv 2304.14767). "only" hides everything
            else. "move" puts the attention that falls on the image on the target, a part of it, and leaves the rest as it is (gaze, arXiv
            2606.14703). In every mode a token keeps seeing itself.

    Raises:
        EditError: `heads` is not [N, L, H] of booleans, or the mode is unknown.

    >>> AttentionEdit(torch.ones(1, 6, 8, dtype=torch.bool))
    <AttentionEdit of 1 variant: last sees no image>
    """

    heads: Bool[Tensor, "variants layers heads"]
    source: Where = "last"
    target: Where = "image"
    mode: Mode = "block"

    def __post_init__(self) -> None:
        heads = self.heads
        if not isinstance(heads, Tensor) or heads.dtype != torch.bool or heads.ndim != 3 or not len(heads):
            what = f"{heads.dtype} {tuple(heads.shape)}" if isinstance(heads, Tensor) else f"a {type(heads).__name__}"
            raise EditError(f"heads is {what}: give booleans [N, L, H], True where a variant edits a head")
        if self.mode not in ("block", "only", "move"):
            raise EditError(f"mode {self.mode!r}: choose 'block', 'only' or 'move'")
        for name in ("source", "target"):
            where = getattr(self, name)
            if not isinstance(where, str):
                object.__setattr__(self, name, _places(name, where))

    def __repr__(self) -> str:
        source, target = (where if isinstance(where, str) else f"{len(where)} tokens" for where in (self.source, self.target))
        does = {"block": "sees no", "only": "sees only", "move": "looks within the image at"}[self.mode]
        n = self.n_variants
        return f"<AttentionEdit of {n} variant{'s' * (n > 1)}: {source} {does} {target}>"

    @property
    def scope(self) -> Scope:
        """Only tokens of the prompt are edited."""
        return "last"

    @property
    def n_variants(self) -> int:
        """The number N of variants."""
        return len(self.heads)

    @property
    def of_last(self) -> bool:
        """Whether only the prompt's last token is edited, so that a prompt need not be run again."""
        return self.source in ("last", (-1,))

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError if the edit does not fit this model."""
        if tuple(self.heads.shape[1:]) != (n_layers, n_heads):
            raise EditError(f"heads has shape {tuple(self.heads.shape)}, but the model needs [N, {n_layers}, {n_heads}]: give that shape")

    def starts(self, n_layers: int) -> Int[Tensor, " variants"]:
        """The first layer that each variant edits, [N]; n_layers if there is none."""
        layers = self.heads.any(-1).cpu()
        return torch.where(layers.any(1), layers.int().argmax(1), n_layers)

    def at(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """None: neither heads' outputs nor MLPs are edited."""
        return None

    def __getitem__(self, variant: int) -> AttentionEdit:
        """One variant as an edit. Raises IndexError if there is no such variant."""
        if not -self.n_variants <= variant < self.n_variants:
            raise IndexError(f"variant {variant} of {self.n_variants}")
        return replace(self, heads=self.heads[variant % self.n_variants][None])

    def tokens(self, vlm: VLM, question: Question, ids: Int[Tensor, " tokens"]) -> tuple[Tensor, Tensor, Tensor]:
        """The source, the target and the image in one prompt.

        Args:
            vlm: The model.
            question: The question.
            ids: The prompt's tokens, [T].

        Returns:
            Three boolean tensors [T].

        Raises:
            EditError: A place is outside the prompt, or attention is to be moved to tokens outside the image.
        """
        image = (ids == vlm.image_token_id).cpu()
        source, target = (marked(vlm, question, where, image) for where in (self.source, self.target))
        if self.mode == "move" and bool((outside := target & ~image).any()):
            raise EditError(
                f"question {question.id}: mode='move' puts attention on a part of the image, and token {int(outside.nonzero()[0])} of the "
                "target is not of the image: give a target within the image"
            )
        return source, target, image


def marked(vlm: VLM, question: Question, where: Where, image: Bool[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    """Which tokens of a prompt belong to a group, [T].

    Args:
        vlm: The model.
        question: The question.
        where: The group's name, or places.
        image: The prompt's image tokens, [T].

    Returns:
        Booleans [T].

    Raises:
        EditError: There is no such group, or a place is outside the prompt.
    """
    T = len(image)
    if where == "image":
        return image
    places = [T - 1] if where == "last" else _group(vlm, question, where) if isinstance(where, str) else list(where)
    if wrong := [p for p in places if not -T <= p < T]:
        raise EditError(f"question {question.id}: token {wrong[0]}, but its prompt has {T} tokens: give places from 0 to {T - 1}")
    out = torch.zeros(T, dtype=torch.bool)
    out[places] = True
    return out


def _group(vlm: VLM, question: Question, name: str) -> list[int]:
    raise EditError(f"no group {name!r}: choose 'last' or 'image', or give places in the prompt")


def _places(name: str, where: Any) -> tuple[int, ...]:
    try:
        return tuple(int(place) for place in where)
    except (TypeError, ValueError) as error:
        raise EditError(f"{name}={where!r}: give the name of a group, or a list of places in the prompt") from error
