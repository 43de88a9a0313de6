"""The state that is explored: one question, the heads and MLPs that are scaled, and a ScAle that is faded in. No widgets here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters.scale.scale import ScAle
from ..attribution.attention.grid import PatchGrid, patch_grid
from ..attribution.attention.last_token import read_attention
from ..attribution.gradient import attribute
from ..attribution.headmap import HeadMap
from ..data.decoding import ImageSource
from ..data.items import require
from ..data.question import Question
from ..data.question_card import question_card
from ..errors import DataError, EditError, FileError, ModelError
from ..interventions.edit import Edit, Head, Scope, check_heads
from ..interventions.engine import choose_path, run_edits
from ..interventions.knockout.edit import AttentionEdit
from ..interventions.prefix import PrefixStore
from ..vlm.vlm import VLM
from .code import code, loading

Component = tuple[int, int | None]
"""A head (layer, head), or the MLP of a layer (layer, None)."""
LARGEST = 4.0
"""The largest factor of a head or MLP; 1 changes nothing."""
KEPT = 8
"""How many questions' prompts stay in memory; those of earlier questions are read again."""


def component_name(part: Component) -> str:
    """The head or MLP in words."""
    layer, head = part
    return f"MLP {layer}" if head is None else f"head {layer}.{head}"


@dataclass(frozen=True)
class Looking:
    """Where the last token of the unedited model looks: attention weights on the question's patch grid."""

    weights: Float[Tensor, "layers heads tokens"]
    grid: PatchGrid


class Explorer:
    """One question at a time, with an edit that is built by hand; `si.viz.explore` returns it.

    Attributes:
        index: index of the current question.
        selected: the head (layer, head) or MLP (layer, None) that `factor` belongs to.
        factors: what is scaled, and by how much (0 to 4).
        at: the token group at which heads and MLPs are scaled; "last" at the start.
        blind: the heads whose last token does not see the image.
        scale: a ScAle, or None.
        strength: how far the ScAle is faded in, from 0 to 1: s(t) = 1 + t (s - 1).
        base: the answer's probabilities [choices] without the edit (softmax over the choices' scores).
        probabilities: the same with the edit [choices].

    >>> import scale_interp as si
    >>> explorer = Explorer(si.load("demo"), si.load_questions("scenes/relation", n=2))
    >>> explorer.set((5, 4), 2.5)
    >>> explorer.set((3, None), 0.5)
    >>> explorer.factors
    mappingproxy({(3, None): 0.5, (5, 4): 2.5})
    >>> explorer.reset()
    >>> bool((explorer.probabilities == explorer.base).all())
    True
    """

    def __init__(
        self,
        vlm: VLM,
        questions: Question | Sequence[Question],
        *,
        head_map: HeadMap | None = None,
        scale: ScAle | str | Path | None = None,
        dark: bool | None = None,
    ):
        self.vlm, self.dark = vlm, dark
        self._given_questions = require(questions)
        self.questions: Sequence[Question] = self._given_questions
        if head_map is not None and tuple(head_map.scores.shape) != (vlm.n_layers, vlm.n_heads):
            raise DataError(
                f"the head map is for {' layers x '.join(map(str, head_map.scores.shape))} heads, {vlm.name} has "
                f"{vlm.n_layers} layers x {vlm.n_heads} heads: give a map of this model"
            )
        self._given, self._index, self._strength = head_map, 0, 1.0
        self._selected: Component | None = None
        self._factors: dict[Component, float] = {}
        self._blind: set[Head] = set()
        self._at = "last"
        self._groups: dict[int, tuple[str, ...]] = {}
        self._scale: ScAle | None = None
        self._folder: str | None = None
        self._read: OrderedDict[int, PrefixStore] = OrderedDict()
        self._looking: dict[int, Looking] = {}
        self._base: dict[int, Tensor] = {}
        self._edited: Tensor | None = None
        self.watchers: list[Callable[[], None]] = []
        """Called after every change."""
        if isinstance(scale, str | Path):
            self.load(scale)
        else:
            self.scale = scale

    @property
    def question(self) -> Question:
        """The current question."""
        return self.questions[self._index]

    @property
    def index(self) -> int:
        """Index of the current question."""
        return self._index

    @index.setter
    def index(self, value: int) -> None:
        if not 0 <= value < len(self.questions):
            raise DataError(f"question {value}: there are {len(self.questions)}, counted from 0")
        self._index = int(value)
        if self._at != "last" and self._at not in self.groups:
            self._at = "last"
        self._changed()

    @property
    def groups(self) -> tuple[str, ...]:
        """The token groups of the current question's prompt; "last" alone where its words cannot be found."""
        if self._index not in self._groups:
            try:
                found = tuple(self.vlm.token_groups(self.question))
            except (ModelError, DataError):
                found = ()
            self._groups[self._index] = ("last", *(name for name in found if name != "last"))
        return self._groups[self._index]

    @property
    def at(self) -> str:
        """The token group at which heads and MLPs are scaled."""
        return self._at

    @at.setter
    def at(self, group: str) -> None:
        if group not in self.groups:
            raise EditError(f"no token group {group!r}: this question's prompt has {', '.join(map(repr, self.groups))}")
        self._require_one_place(group, self._scale, self._blind)
        self._at = group
        self._changed()

    @staticmethod
    def _require_one_place(at: str, scale: ScAle | None, blind: Collection[Head]) -> None:
        """EditError where parts of the edit would act at different tokens, which one edit cannot."""
        if scale is not None and scale.at != at:
            raise EditError(f"the ScAle acts at {scale.at!r} and the chosen heads at {at!r}: take it off, or choose {scale.at!r}")
        if blind and at != "last":
            raise EditError(
                f"hiding the image acts at the last token and the chosen heads at {at!r}: show the image again, or choose 'last'"
            )

    def ask(self, text: str, choices: Sequence[str], image: ImageSource | None = None, answer: int = 0) -> None:
        """Ask a question of one's own, which joins the others and is shown.

        Args:
            text: the question.
            choices: at least two.
            image: what `si.Question(image=...)` takes.
            answer: the number of the right choice.

        Raises:
            DataError: it is no question.
        """
        own = Question(text, tuple(choices), answer, image=image)
        self._require_askable(own)
        self.questions = [*self.questions, own]
        self.index = len(self.questions) - 1

    def _require_askable(self, question: Question) -> None:
        """Raise what the model has against a question before it is taken."""
        self.vlm.choice_ids(question)
        self.vlm.encode(question)

    @property
    def own(self) -> Question | None:
        """The current question, where it was asked with `ask`."""
        return None if self._index < len(self._given_questions) else self.question

    @property
    def selected(self) -> Component | None:
        """The head or MLP that `factor` belongs to; None before one is chosen."""
        return self._selected

    def select(self, part: Component) -> None:
        """Choose the head (layer, head) or MLP (layer, None) that `factor` belongs to.

        Raises:
            EditError: the model does not have it.
        """
        self._selected = self._checked(part)
        self._changed()

    @property
    def factor(self) -> float:
        """What the chosen head or MLP is multiplied by."""
        return 1.0 if self._selected is None else self._factors.get(self._selected, 1.0)

    @factor.setter
    def factor(self, value: float) -> None:
        if self._selected is None:
            raise EditError("no head is chosen: choose one with select((layer, head))")
        self.set(self._selected, value)

    @property
    def factors(self) -> Mapping[Component, float]:
        """What differs from 1, layer by layer, MLPs first."""
        order = sorted(self._factors, key=lambda part: (part[0], -1 if part[1] is None else part[1]))
        return MappingProxyType({part: self._factors[part] for part in order})

    def set(self, part: Component, factor: float) -> None:
        """Multiply the output of a head or MLP.

        Args:
            part: (layer, head), or (layer, None) for the layer's MLP.
            factor: from 0 to 4; 1 changes nothing.

        Raises:
            EditError: the model does not have this head, or the factor is out of range.
        """
        part = self._checked(part)
        if not 0 <= factor <= LARGEST:
            raise EditError(f"factor {factor} of {component_name(part)}: give 0 to {LARGEST:g}; 1 changes nothing")
        self._factors.pop(part, None)
        if factor != 1:
            self._factors[part] = float(factor)
        self._changed()

    @property
    def blind(self) -> tuple[Head, ...]:
        """The heads whose last token does not see the image, layer by layer."""
        return tuple(sorted(self._blind))

    def hide_image(self, head: Component, hidden: bool = True) -> None:
        """Hide the image from the last token in one head (attention knockout), or show it again.

        Raises:
            EditError: the model does not have this head, or it is an MLP.
        """
        layer, number = self._checked(head)
        if number is None:
            raise EditError(f"MLP {layer} sees no other tokens: choose a head")
        self._require_one_place(self._at, self._scale, [(layer, number)] if hidden else ())
        (self._blind.add if hidden else self._blind.discard)((layer, number))
        self._changed()

    def remove(self, part: Component) -> None:
        """Stop editing a head or MLP."""
        self._blind.discard(part)
        self.set(part, 1.0)

    def reset(self) -> None:
        """Stop editing all heads and MLPs; the ScAle stays."""
        self._factors.clear()
        self._blind.clear()
        self._changed()

    def _checked(self, part: Component) -> Component:
        if not (isinstance(part, tuple) and len(part) == 2):
            raise EditError(f"{part!r} is not a (layer, head) pair; (layer, None) is a layer's MLP")
        layer, head = part
        (found,) = check_heads([(layer, 0 if head is None else head)], self.vlm.n_layers, self.vlm.n_heads)
        return (found[0], None) if head is None else found

    @property
    def scale(self) -> ScAle | None:
        """The ScAle that is faded in, or None."""
        return self._scale

    @scale.setter
    def scale(self, scale: ScAle | None) -> None:
        self._take(scale, None)

    def _take(self, scale: ScAle | None, folder: str | None) -> None:
        if scale is not None:
            if not isinstance(scale, ScAle):
                raise EditError(f"expected a ScAle, found a {type(scale).__name__}")
            if tuple(scale.scalars.shape) != (self.vlm.n_layers, self.vlm.n_heads):
                L, H = scale.scalars.shape
                raise EditError(
                    f"these scalars are of another model: {L} layers x {H} heads, but {self.vlm.name} has {self.vlm.n_layers} x "
                    f"{self.vlm.n_heads}; load those that were fitted on it"
                )
            if scale.at not in self.groups:
                raise EditError(f"these scalars act at {scale.at!r}, a token group that this question's prompt does not have")
            if scale.at != self._at:
                self._require_one_place(scale.at, None, self._blind)
                self._at = scale.at
        self._scale, self._folder = scale, folder
        self._changed()

    @property
    def folder(self) -> str | None:
        """The folder that the ScAle was loaded from, as it was given; None where a ScAle was given."""
        return self._folder

    def load(self, folder: str | Path) -> None:
        """Load the ScAle that `save_pretrained` wrote into a folder.

        Raises:
            FileError: the folder does not hold one.
            EditError: it belongs to a model of another shape.
        """
        if not str(folder).strip():
            raise FileError("no folder is given: give one that `save_pretrained` or `scale-interp fit` wrote, such as runs/.../scale")
        if not Path(folder).is_dir():
            raise FileError(f"no folder {folder}: give one that `save_pretrained` or `scale-interp fit` wrote, such as runs/.../scale")
        self._take(ScAle.from_pretrained(folder), str(folder))

    @property
    def foreign(self) -> str | None:
        """The model that the ScAle was fitted on, where that has this model's shape but another name."""
        fitted = self._scale.provenance.get("model") if self._scale is not None else None
        return None if fitted in (None, self.vlm.name) else str(fitted)

    @property
    def strength(self) -> float:
        """How far the ScAle is faded in: 0 is the base model, 1 the fitted scalars."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise EditError(f"strength {value}: give 0 (the base model) to 1 (the fitted scalars)")
        self._strength = float(value)
        self._changed()

    @property
    def scope(self) -> Scope:
        """Which tokens the edit acts on: the ScAle's scope, or the last token without one."""
        return "last" if self._scale is None or self._at != "last" else self._scale.scope

    @property
    def edit(self) -> Edit | AttentionEdit:
        """The current edit, one variant: the faded ScAle, with the factors applied on top, and the image hidden from some heads."""
        L, H = self.vlm.n_layers, self.vlm.n_heads
        heads, mlps = torch.ones(1, L, H), torch.ones(1, L)
        for (layer, head), factor in self._factors.items():
            if head is None:
                mlps[0, layer] = factor
            else:
                heads[0, layer, head] = factor
        mine = Edit(scale=heads, mlp_scale=mlps, scope=self.scope, at=self._at)
        mine = mine if self._scale is None else self._scale.edit(self._strength).compose(mine)
        if not self._blind:
            return mine
        blind = torch.zeros(1, L, H, dtype=torch.bool)
        for layer, number in self._blind:
            blind[0, layer, number] = True
        return AttentionEdit(blind, beside=mine)

    @property
    def base(self) -> Float[Tensor, " choices"]:
        """The answer's probabilities without the edit [choices]."""
        if self._index not in self._base:
            self._base[self._index] = self._run(None)
        return self._base[self._index]

    @property
    def probabilities(self) -> Float[Tensor, " choices"]:
        """The answer's probabilities with the edit [choices]."""
        if self._edited is None:
            self._edited = self._run(self.edit)
        return self._edited

    def _run(self, edit: Edit | AttentionEdit | None) -> Float[Tensor, " choices"]:
        return run_edits(self.vlm, self.question, edit, prompts=self._prompts())[0, 0].softmax(-1).cpu()

    def _prompts(self) -> PrefixStore:
        """The prompts of the current question, read once while it is shown."""
        found = self._read.pop(self._index, None) or PrefixStore(self.vlm, [self.question])
        self._read[self._index] = found
        if len(self._read) > KEPT:
            self._read.popitem(last=False)
        return found

    @cached_property
    def head_map(self) -> HeadMap | None:
        """The scores that heads are chosen by; None where the model runs by the reference path, which has no gradients."""
        if self._given is not None:
            return self._given
        return attribute(self.vlm, self._given_questions) if choose_path(self.vlm, self._given_questions) == "packed" else None

    @property
    def looking(self) -> Looking | None:
        """Where the unedited model's heads look; None for a question without an image.

        Raises:
            ModelError: the model's attention cannot be read.
        """
        if not self.question.pictures:
            return None
        if self._index not in self._looking:
            grid = patch_grid(self.vlm, self.question)
            self._looking[self._index] = Looking(read_attention(self.vlm, self.question)[0], grid)
        return self._looking[self._index]

    @cached_property
    def loading(self) -> str | None:
        """The line of Python that loads these questions, or None where there is none."""
        return loading(self._given_questions)

    def code(self) -> str:
        """Python that runs the current edit on the current question and gives the same `probabilities`."""
        return code(self)

    def _changed(self) -> None:
        self._edited = None
        for tell in self.watchers:
            tell()

    def _repr_html_(self) -> str:
        """The question and its answers, for pages that cannot show widgets."""
        rows = "".join(
            f"<tr><td>{escape(choice)}</td><td>{before:.3f}</td><td>{after:.3f}</td></tr>"
            for choice, before, after in zip(self.question.choices, self.base.tolist(), self.probabilities.tolist(), strict=True)
        )
        return f"{question_card(self.question)}<table><tr><th>answer</th><th>base</th><th>edited</th></tr>{rows}</table>"
