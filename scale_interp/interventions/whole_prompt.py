"""Prompts that are read in full, once: what each layer was given and what it cached, for variants that start at any layer and token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ..data.question import Question
from ..vlm.cache import CACHE, OLD
from ..vlm.decoder import stream_of
from ..vlm.vlm import VLM
from .choices import Choices, Scoring, read_choices
from .prefix import with_answer
from .prompt_end import require_none_attached
from .rows import attention
from .suffix_attention import NAME, Seen

Limit = tuple[int | None, bool]
"""How many tokens a layer sees at most, None for all, and whether they are those of a row's own chunk, not the last ones."""
APART = ("attention_mask", OLD, CACHE, "use_cache")
"""Arguments of a layer that are made for each run."""


@dataclass(frozen=True)
class LayerRead:
    """One layer's part of a reading, with T columns of prompts and R - 1 of the choices' inner tokens behind them.

    Attributes:
        hidden: The residual stream before the layer [B, T + R - 1, d].
        keys, values: [B, Hkv, T + R - 1, D].
        seen: Which columns a column attends to [B or 1, 1, T + R - 1, T + R - 1].
        given: The layer's other arguments by name.
        between: What the decoder adds behind the layer, as DeepStack does [B, T + R - 1, d]; None for nothing.
        z: The heads' outputs [B, T + R - 1, H * D].
        attn: The attention outputs behind W_O [B, T + R - 1, d].
        mlp: The MLP outputs [B, T + R - 1, d].
    """

    hidden: Float[Tensor, "questions columns width"]
    keys: Tensor
    values: Tensor
    seen: Bool[Tensor, "questions 1 columns columns"]
    given: Mapping[str, Any]
    between: Tensor | None
    z: Tensor | None = None
    attn: Tensor | None = None
    mlp: Tensor | None = None

    def component(self, name: str) -> Tensor:
        """The values of a component in every column."""
        found = {"resid": self.hidden, "head": self.z, "attn": self.attn, "mlp": self.mlp}[name]
        assert found is not None
        return found


@dataclass(frozen=True)
class WholePrompts:
    """B prompts, left-padded to T columns, that were read in full.

    Attributes:
        layers: What each layer was given and cached.
        pads: The padding in front of each prompt [B].
        choices: The tree of choices, R rows.
        clean: The clean choice scores [B, C].
    """

    questions: Sequence[Question]
    layers: tuple[LayerRead, ...]
    pads: tuple[int, ...]
    length: int
    choices: Choices
    clean: Float[Tensor, "questions choices"]

    @property
    def rows(self) -> int:
        """R, the rows that are read off: the last token and the inner nodes of the tree of choices."""
        return self.choices.tokens.shape[1]

    def columns(self, positions: Sequence[Sequence[int]]) -> list[list[int]]:
        """Positions of each prompt as columns of the batch."""
        return [[pad + p for p in own] for pad, own in zip(self.pads, positions, strict=True)]

    def first_reached(self, columns: Sequence[Sequence[int]]) -> int:
        """The first column that an edit of these columns can reach: an image's tokens may attend to later ones."""
        return self.apart_from(min((min(own) for own in columns if own), default=self.length - 1))

    def apart_from(self, first: int) -> int:
        """The last column up to this one before which no column attends to it or to what follows it."""
        masks = {id(layer.seen): layer.seen for layer in self.layers}.values()
        while True:
            reached = first
            for seen in masks:
                ahead = seen[:, 0, :first, first:].any(-1).any(0).nonzero()[:, 0]
                reached = min([reached, *ahead[:1].tolist()])
            if reached == first:
                return first
            first = reached


@dataclass(frozen=True)
class Start:
    """Where a run of suffixes begins.

    Attributes:
        first: The first column that is run.
        before: The reading whose keys and values stand before it.
    """

    first: int
    before: WholePrompts


class _Record:
    """What hooks put down of one layer."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.hidden = self.out = self.z = self.attn = self.mlp = torch.empty(0)
        self.seen: Seen | None = None


def read_whole(
    vlm: VLM, questions: Sequence[Question], scoring: Scoring = "auto", components: Sequence[str] = (), grad: bool = False
) -> WholePrompts:
    """Read prompts in full, with what each layer computes.

    Args:
        vlm: The model.
        questions: The questions.
        scoring: How choices are scored.
        components: Of which of "head", "attn" and "mlp" the values are kept; those of "resid" always are.
        grad: Whether the graph is kept.

    Returns:
        The prompts.
    """
    require_none_attached(vlm.hf_model)
    vlm.require_no_traced_edits()
    inputs = vlm.encode(questions)
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1], scoring)
    T, R = inputs["input_ids"].shape[1], choices.tokens.shape[1]
    place = vlm.position_ids(inputs)
    given = with_answer(vlm, inputs, choices.tokens[:, 1:])
    given["position_ids"] = torch.cat([place, place[..., -1:] + choices.depth[:, 1:]], -1)
    names = vlm.parts.mask_names
    windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=vlm.hf_model.config.get_text_config()).layers]
    correct = partial(_with_tree, T=T, choices=choices, real=inputs["attention_mask"].bool()) if R > 1 else None
    records = [_Record() for _ in vlm.head_layers]
    masks: dict[Any, Seen] = {}
    hooks = []
    for number, (block, record) in enumerate(zip(vlm.head_layers, records, strict=True)):
        layer = block.module
        window = windows[number] if number < len(windows) else None
        chunked = number < len(names) and "chunk" in names[number]
        before = partial(_before, record=record, masks=masks, correct=correct, limit=(window, chunked))
        hooks += [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(partial(_after, record=record))]
        hooks.append(block.output().register_forward_pre_hook(partial(_put, record=record, name="z")))
        if "attn" in components:
            hooks.append(block.output().register_forward_hook(partial(_put, record=record, name="attn")))
        if "mlp" in components:
            hooks.append(block.mlp().register_forward_hook(partial(_put, record=record, name="mlp")))
    final: list[Tensor] = []
    hooks.append(vlm.norm.register_forward_hook(lambda _, __, out: final.append(out[:, T - 1 :])))
    try:
        with vlm.alone(), attention(vlm.decoder, NAME), torch.set_grad_enabled(grad):
            vlm.hf_model(**given, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.set_grad_enabled(grad):
        clean = choices.read(vlm, final[0][:, None])[:, 0]
    layers = []
    for number, record in enumerate(records):
        after = records[number + 1].hidden if number + 1 < len(records) else record.out
        same = after is record.out or torch.equal(after, record.out)
        assert record.seen is not None
        keys, values = record.seen.given
        kept = {name: getattr(record, {"head": "z"}.get(name, name)) for name in components if name != "resid"}
        layers.append(
            LayerRead(
                record.hidden, keys, values, record.seen.own, record.given, None if same else after - record.out,
                kept.get("head"), kept.get("attn"), kept.get("mlp"),
            )
        )  # fmt: skip
    pads = tuple(T - int(n) for n in inputs["attention_mask"].sum(1))
    return WholePrompts(questions, tuple(layers), pads, T, choices, clean)


def _before(
    layer: nn.Module, args: tuple, kwargs: dict[str, Any], record: _Record, masks: dict[Any, Seen], correct: Any, limit: Limit
) -> tuple[tuple, dict[str, Any]]:
    """Put down what a layer is given, and give it its mask in the form that keeps its keys and values."""
    hidden = args[0] if args else kwargs["hidden_states"]
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()  # the first layer's input, from which the graph begins
        args, kwargs = ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})
    record.hidden = hidden
    record.given = {name: value for name, value in kwargs.items() if name not in (*APART, "hidden_states")}
    mask = kwargs["attention_mask"]
    key = (mask.data_ptr(), limit if correct is not None else None)
    if key not in masks:
        allowed = mask if mask.dtype == torch.bool else mask == 0
        masks[key] = Seen(allowed if correct is None else correct(allowed, limit=limit))
    shared = masks[key]
    record.seen = Seen.__new__(Seen)
    vars(record.seen).update(vars(shared))
    return args, kwargs | {"attention_mask": record.seen}


def _with_tree(seen: Tensor, T: int, choices: Choices, real: Tensor, limit: Limit) -> Tensor:
    """The mask with the choices' inner tokens as a tree behind the prompt's last token."""
    (B, R), (window, chunked) = choices.tokens.shape, limit
    seen = seen.expand(B, 1, T + R - 1, T + R - 1).clone()
    prompt, own = real[:, None].expand(B, R - 1, T), choices.own[:, 1:, 1:]
    places, ends = real.cumsum(1) - 1, real.sum(1, keepdim=True) - 1 + choices.depth[:, 1:]
    if window is not None and chunked:
        prompt = prompt & (places[:, None] // window == ends[..., None] // window)
        own = own & (ends[:, None] // window == ends[..., None] // window)
    elif window is not None:
        prompt = prompt & (ends[..., None] - places[:, None] < window)
    seen[:, 0, T:, :T] = prompt
    seen[:, 0, T:, T:] = own
    return seen


def _after(layer: nn.Module, args: tuple, out: Any, record: _Record) -> None:
    record.out = stream_of(out)


def _put(module: nn.Module, args: tuple, out: Any = None, *, record: _Record, name: str) -> None:
    value = args[0] if name == "z" else out
    setattr(record, name, value[0] if isinstance(value, tuple) else value)


def layer_arguments(given: Mapping[str, Any], columns: int, first: int, n: int) -> dict[str, Any]:
    """A layer's arguments for the columns from `first` on, repeated for n variants of each question."""
    return {name: _columns(value, name, columns, first, n) for name, value in given.items()}


def _columns(value: Any, name: str, columns: int, first: int, n: int) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_columns(part, name, columns, first, n) for part in value)
    if not isinstance(value, Tensor):
        return value
    # angles are [..., B or 1, columns, D], numbers of positions [..., B or 1, columns]
    columns_at = -2 if value.is_floating_point() or value.is_complex() else -1
    if value.ndim < -columns_at or value.shape[columns_at] != columns:
        return value
    value = value.narrow(columns_at, first, columns - first)
    questions = value.ndim + columns_at - 1
    return value if questions < 0 or value.shape[questions] == 1 else value.repeat_interleave(n, questions)


def places_of(prompts: WholePrompts, positions: Sequence[Sequence[int]], first: int) -> list[list[int]]:
    """Positions of each prompt as rows of a run that begins at column `first`."""
    return [[column - first for column in own] for own in prompts.columns(positions)]
