"""Edits of what some tokens of the prompt see of others: attention knockout, N variants at once.

In the chosen heads, the rows of `source` attend as if some columns were not there. A token always sees itself, so no row is ever empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...core.arguments import Raises
from ...data.question import Question
from ...errors import EditError, ModelError
from ...vlm.patch_grid import place_images
from ...vlm.token_groups import At, positions_at
from ...vlm.vlm import VLM
from ..edit import Change, Edit, LayerEdit, Scope, plain_tokens, positioned

Mode = Annotated[Literal["block", "only", "move"], Raises(EditError)]


@dataclass(frozen=True)
class AttentionEdit:
    """N edits of attention, run by `run_edits` like an `Edit`.

    Args:
        heads: Which heads each variant edits, [N, L, H].
        source: The tokens whose attention changes: a token group or several (`VLM.token_groups`), or token numbers.
        target: The tokens that they attend to, given the same way.
        mode: "block" hides the target from the source (attention knockout, Geva et al. 2023, arXiv 2304.14767). "only" hides everything
            else. "move" puts the attention that falls on the image on the target, a part of it, and leaves the rest as it is (gaze, arXiv
            2606.14703). In every mode a token keeps seeing itself.
        beside: An edit of heads and MLPs in the same runs, with N variants or one; both act on the last token.
        nth: Which of the target's tokens, counted from 0, each variant takes for its whole target, [N]: of a question with fewer, none. By
            default each variant takes all.

    Raises:
        EditError: `heads` is not [N, L, H] of booleans, the mode is unknown, or `beside` or `nth` does not fit.

    >>> AttentionEdit(torch.ones(1, 6, 8, dtype=torch.bool))
    <AttentionEdit of 1 variant: last sees no image>
    """

    heads: Bool[Tensor, "variants layers heads"]
    source: At = "last"
    target: At = "image"
    mode: Mode = "block"
    beside: Edit | None = None
    nth: Int[Tensor, " variants"] | None = None

    def __post_init__(self) -> None:
        heads = self.heads
        if not isinstance(heads, Tensor) or heads.dtype != torch.bool or heads.ndim != 3 or not len(heads):
            what = f"{heads.dtype} {tuple(heads.shape)}" if isinstance(heads, Tensor) else f"a {type(heads).__name__}"
            raise EditError(f"heads is {what}: give booleans [N, L, H], True where a variant edits a head")
        if self.mode not in ("block", "only", "move"):
            raise EditError(f"mode {self.mode!r}: choose 'block', 'only' or 'move'")
        for name in ("source", "target"):
            where = getattr(self, name)
            if name == "target" and not isinstance(where, str) and hasattr(where, "__len__") and len(where) == 0:
                object.__setattr__(self, name, ())  # an empty target: nothing is taken away
            elif not isinstance(where, str):
                object.__setattr__(self, name, plain_tokens(name, where))
        if self.nth is not None and (self.nth.shape != (self.n_variants,) or self.nth.is_floating_point() or int(self.nth.min()) < 0):
            raise EditError(f"nth is {self.nth.dtype} {list(self.nth.shape)}: give {self.n_variants} whole numbers from 0, one per variant")
        if self.beside is None:
            return
        if self.beside.n_variants not in (1, self.n_variants):
            raise EditError(f"beside has {self.beside.n_variants} variants: give 1 or {self.n_variants}")
        if self.at != "last" or positioned(self.beside):
            raise EditError(f"source={self.source!r} with an edit beside it: only that of the last token acts together with one")

    def __repr__(self) -> str:
        source, target = words(self.source), words(self.target)
        does = {"block": "sees no", "only": "sees only", "move": "looks within the image at"}[self.mode]
        n, one = self.n_variants, "" if self.nth is None else "one token of "
        return f"<AttentionEdit of {n} variant{'s' * (n > 1)}: {source} {does} {one}{target}>"

    @property
    def scope(self) -> Scope:
        """Which tokens the edit beside acts on; of attention, only that of the prompt's tokens is edited."""
        return "last" if self.beside is None else self.beside.scope

    @property
    def n_variants(self) -> int:
        """The number N of variants."""
        return len(self.heads)

    @property
    def at(self) -> At:
        """The tokens whose rows change: the source."""
        return "last" if self.source == (-1,) else self.source

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError if the edit does not fit this model."""
        if tuple(self.heads.shape[1:]) != (n_layers, n_heads):
            raise EditError(f"heads has shape {tuple(self.heads.shape)}, but the model needs [N, {n_layers}, {n_heads}]: give that shape")
        if self.beside is not None:
            self.beside.check(n_questions, n_layers, n_heads, head_dim)

    def starts(self, n_layers: int) -> Int[Tensor, " variants"]:
        """The first layer that each variant edits, [N]; n_layers if there is none."""
        layers = self.heads.any(-1).cpu()
        first = torch.where(layers.any(1), layers.int().argmax(1), n_layers)
        return first if self.beside is None else torch.minimum(first, self.beside.starts(n_layers))

    def part(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """What the edit beside does in one layer."""
        if self.beside is None:
            return None
        return self.beside.part(layer, alive if self.beside.n_variants > 1 else alive * 0, starts, rows)

    def changes(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> list[Change]:
        """Nothing: with tokens before the last, there is no edit beside."""
        return []

    def __getitem__(self, variant: int) -> AttentionEdit:
        """One variant as an edit. Raises IndexError if there is no such variant."""
        if not -self.n_variants <= variant < self.n_variants:
            raise IndexError(f"variant {variant} of {self.n_variants}")
        beside = self.beside if self.beside is None or self.beside.n_variants == 1 else self.beside[variant]
        variant %= self.n_variants
        nth = None if self.nth is None else self.nth[variant : variant + 1]
        return replace(self, heads=self.heads[variant][None], beside=beside, nth=nth)

    def tokens(
        self, vlm: VLM, question: Question, ids: Int[Tensor, " tokens"], variants: Int[Tensor, " variants"]
    ) -> tuple[Bool[Tensor, " tokens"], Bool[Tensor, "_ tokens"], Bool[Tensor, " tokens"]]:
        """The source, the target and the image in one prompt.

        Args:
            vlm: The model.
            question: The question.
            ids: The prompt's tokens, [T].
            variants: The numbers of the variants.

        Returns:
            Booleans: the source [T], the target of each variant [n, T], or [1, T] for all, and the image [T].

        Raises:
            DataError: The question has no such group or token.
            EditError: Attention is to be moved to tokens outside the image.
        """
        source, target = (marked(vlm, question, where, ids) for where in (self.source, self.target))
        image = image_tokens(vlm, question, ids)
        if self.mode == "move" and bool((outside := target & ~image).any()):
            raise EditError(
                f"question {question.id}: mode='move' puts attention on a part of the image, and token {int(outside.nonzero()[0])} of the "
                "target is not of the image: give a target within the image"
            )
        if self.nth is None:
            return source, target[None], image
        places, numbers = target.nonzero()[:, 0], self.nth.cpu()[variants.cpu()]
        each = torch.zeros(len(numbers), len(target), dtype=torch.bool)
        there = numbers < len(places)
        each[there.nonzero()[:, 0], places[numbers[there]]] = True
        return source, each, image


def marked(vlm: VLM, question: Question, where: At, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    """Which tokens of a prompt belong to a group, [T]; the same as `positions_at`, without encoding the question again where possible.

    Args:
        vlm: The model.
        question: The question.
        where: A group's name, several names, or token numbers.
        ids: The prompt's tokens, [T].

    Returns:
        Booleans [T].

    Raises:
        DataError: The question has no such group or token.
    """
    image = image_tokens(vlm, question, ids) if where == "image" else None
    if image is not None and bool(image.any()):
        return image
    out = torch.zeros(len(ids), dtype=torch.bool)
    out[[len(ids) - 1] if where == "last" else positions_at(vlm, question, where)] = True
    return out


def image_tokens(vlm: VLM, question: Question, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    """The tokens that show a part of an image, as the token group "image" has them, [T]."""
    try:
        return place_images(vlm, ids, question).shown
    except ModelError:  # a family whose patch grid is not known
        return (ids == vlm.image_token_id).cpu()


def words(where: At) -> str:
    """A group, or a list of groups or token numbers, in a few words."""
    if isinstance(where, str):
        return where
    return ", ".join(map(str, where)) if len(where) <= 3 else f"{len(where)} tokens"
