"""The prompt, read once: keys and values of every token but the last, shared by all variants and never written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..data.question import Question
from ..errors import EditError, MemoryWarning, ModelError
from ..execution.memory import free_memory, out_of_memory, release, working_bytes
from ..vlm.vlm import VLM, PrefixCache, check_cache
from .choices import Choices, Scoring, read_choices
from .prefix_disk import Spill
from .vision import Vision

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of the prompt [B, Hkv, K, D]; new rows are appended to a copy, nothing is stored."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)


@dataclass(frozen=True)
class Prefix:
    """B prompts up to their last token, and what is run after it.

    rows: which of the caller's questions these are; seen [B, P]: True on real tokens; positions [..., B, R] of the
    last token and the choices' tree; windows: the sliding window of each layer, or None; tokens [B, P]: the prompts' ids.
    """

    questions: Sequence[Question]
    rows: slice
    layers: tuple[PrefixLayer, ...]
    seen: Tensor
    positions: Tensor
    choices: Choices
    windows: tuple[int | None, ...]
    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the text decoder that run one clean variant: the last token and its tree."""
        full = self._mask(None)
        named = {"full_attention": full}
        if window := next((w for w in self.windows if w is not None), None):
            named["sliding_attention"] = self._mask(window)
        return {
            "input_ids": self.choices.tokens,
            "position_ids": self.positions,
            "attention_mask": named if len(named) > 1 else full,
            "past_key_values": Cache(layers=list(self.layers)),
            "use_cache": True,
        }

    def _mask(self, window: int | None) -> Tensor:
        """[B, 1, R, P + R]: prompt tokens within the window, and the row's own branch of the tree."""
        B, R = self.choices.tokens.shape
        P = self.seen.shape[1]
        seen = self.seen[:, None].expand(B, R, P)
        if window is not None:
            distance = P + self.choices.depth[..., None] - torch.arange(P, device=seen.device)
            seen = seen & (distance < window)
        return torch.cat([seen, self.choices.own], 2)[:, None]


@torch.no_grad()
def read_prefix(
    vlm: VLM,
    questions: Sequence[Question],
    rows: slice = slice(None),
    vision: Vision | None = None,
    scoring: Scoring = "auto",
) -> Prefix:
    """Run the prompts up to their last token, once, and keep their keys and values; vision: features of shared pictures.

    Where a prompt attends in both directions it is run whole and its last token dropped: keys and values before it
    then hold the unedited last token ("prompt frozen").
    """
    inputs = vlm.encode(questions)
    layers, windows = run_prompts(vlm, prompt_inputs(vlm, inputs, None if vision is None else vision.replace_pixels(inputs, questions)))
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1], scoring)
    seen, positions = inputs["attention_mask"][:, :-1].bool(), vlm.position_ids(inputs)[..., -1:] + choices.depth
    return Prefix(questions, rows, layers, seen, positions, choices, windows, inputs["input_ids"][:, :-1])


def prompt_inputs(vlm: VLM, inputs: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model's arguments that run encoded prompts up to their last token; whole: the inputs with features in the pixels' place."""
    end = None if vlm.quirks.bidirectional else -1
    short = {k: v[:, :end] if k in PER_TOKEN else v for k, v in (inputs if whole is None else whole).items()}
    return short | {"position_ids": vlm.position_ids(inputs)[..., :end]}  # type: ignore[arg-type]


def run_prompts(vlm: VLM, given: dict[str, Any]) -> tuple[tuple[PrefixLayer, ...], tuple[int | None, ...]]:
    """Keys and values of the prompts, and the layers' sliding windows; where gradients are on they carry the graph."""
    layers = _keys_and_values(vlm, given)
    for number, layer in enumerate(layers):
        if not isinstance(layer, DynamicLayer) or layer.keys is None:
            raise ModelError(f"{vlm.name}: layer {number} keeps a {type(layer).__name__}, no keys and values: use path='reference'")
    drop = -1 if vlm.quirks.bidirectional else None
    kept = tuple(PrefixLayer(layer.keys[:, :, :drop], layer.values[:, :, :drop]) for layer in layers)
    return kept, tuple(getattr(layer, "sliding_window", None) for layer in layers)


class _Enough(Exception):
    """Raised to end a forward pass of which nothing more is needed."""


def _keys_and_values(vlm: VLM, inputs: dict[str, Any]) -> list[Any]:
    """What the decoder's layers keep of the prompt. Of the last layer that is all that is needed: its rest is not run."""
    cache = DynamicCache(config=vlm.hf_model.config.get_text_config())

    def stop(*_: object) -> None:
        raise _Enough

    with vlm.alone():
        hook = vlm.decoder.layers[-1].self_attn.o_proj.register_forward_pre_hook(stop)
        try:
            vlm.hf_model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        except _Enough:
            pass
        finally:
            hook.remove()
    return cache.layers


KEPT_SHARE = 0.25
"""Share of the memory that is free at the start which kept prefixes may fill; the rest is read again when asked for."""
MOST_QUESTIONS = 16


def read_halving(vlm: VLM, questions: Sequence[Question], rows: slice, vision: Vision | None, scoring: Scoring) -> Prefix:
    """read_prefix; where memory runs out the questions are read in two halves, and these in halves.

    Raises ModelError when a single prompt does not fit.
    """
    try:
        with vlm.alone():
            return read_prefix(vlm, questions, rows, vision, scoring)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    release(vlm.device)
    n = len(questions)
    if n == 1:
        raise ModelError(f"{vlm.name}: no memory to read question {questions[0].id}: give a smaller picture or a shorter prompt ({reason})")
    warnings.warn(f"{vlm.name}: no memory to read {n} prompts at once; reading {n // 2} ({reason})", MemoryWarning, stacklevel=5)
    halves = [read_halving(vlm, part, rows, vision, scoring) for part in (questions[: n // 2], questions[n // 2 :])]
    return _beside(vlm, questions, rows, halves, scoring)


def _beside(vlm: VLM, questions: Sequence[Question], rows: slice, parts: Sequence[Prefix], scoring: Scoring) -> Prefix:
    """Prefixes of some questions as one, padded on the left to one length."""
    P = max(part.seen.shape[1] for part in parts)
    layers = []
    for pieces in zip(*(part.layers for part in parts), strict=True):
        K = max(piece.keys.shape[2] for piece in pieces)
        keys, values = (
            [F.pad(getattr(piece, name), (0, 0, K - piece.keys.shape[2], 0)) for piece in pieces] for name in ("keys", "values")
        )
        layers.append(PrefixLayer(torch.cat(keys), torch.cat(values)))
    seen, tokens = (torch.cat([F.pad(getattr(part, name), (P - part.seen.shape[1], 0)) for part in parts]) for name in ("seen", "tokens"))
    choices = read_choices(vlm, questions, torch.cat([part.choices.tokens[:, 0] for part in parts]), scoring)
    positions = torch.cat([part.positions[..., :1] for part in parts], -2) + choices.depth
    return Prefix(questions, rows, tuple(layers), seen, positions, choices, parts[0].windows, tokens)


class Prompts(Sequence[Prefix]):
    """The prefixes of many questions in batches, each read when first asked for and then kept.

    batch_size: questions a batch; default: 16, or as many as `working_bytes` holds. keep: whether they are asked for
    again. scoring: how their choices are read (see run_edits). cache: where they are kept, `vlm.prefix_cache` by default.
    reads: how often a batch was read by the model.
    """

    def __init__(
        self,
        vlm: VLM,
        questions: Sequence[Question],
        batch_size: int | None = None,
        *,
        keep: bool = True,
        scoring: Scoring = "auto",
        cache: PrefixCache | None = None,
    ):
        self.vlm, self.questions, self._asked, self.scoring = vlm, questions, batch_size, scoring
        self.cache: PrefixCache = check_cache(cache or vlm.prefix_cache) if keep else "recompute"
        self.reads = 0
        self._weights = _versions(vlm)
        self._vision = Vision(vlm, questions)
        self._kept: dict[int, Prefix] = {}
        self._budget = int(KEPT_SHARE * free_memory(vlm.device)) if self.cache in ("auto", "memory") else 0
        self._spill = Spill() if self.cache in ("auto", "disk") else None

    @cached_property
    def batch_size(self) -> int:
        if self._asked is not None:
            return self._asked
        tokens = self.vlm.encode(self.questions[0])["input_ids"].shape[1]
        one = 2 * self.vlm.n_layers * self.vlm.n_kv_heads * self.vlm.head_dim * tokens * self.vlm.dtype.itemsize
        return min(MOST_QUESTIONS, max(1, working_bytes(self.vlm) // one))

    def require(self, questions: Sequence[Question], scoring: Scoring = "auto") -> None:
        """Raise EditError where these are the prompts of other questions, or were read for another scoring."""
        if [q.id for q in self.questions] != [q.id for q in questions]:
            raise EditError("the prompts are those of other questions: give the prompts of the questions that are asked, or none")
        if self.scoring != scoring:
            raise EditError(f"the prompts were read for scoring={self.scoring!r}, not {scoring!r}: give both the same scoring")
        if self._weights != _versions(self.vlm):
            raise EditError(f"the weights of {self.vlm.name} were changed since these prompts were made: make them again, or give none")

    @property
    def plan(self) -> Callable[[VLM], Prompts]:
        return partial(prompts, tuple(self.questions), self.batch_size, self.scoring)

    @cached_property
    def slices(self) -> list[slice]:
        Q = len(self.questions)
        return [slice(i, min(i + self.batch_size, Q)) for i in range(0, Q, self.batch_size)]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Prefix:  # type: ignore[override]
        index = range(len(self))[index]
        if index not in self._kept:
            return self._read(index)
        prefix = self._kept[index]
        if prefix.layers or self._spill is None:
            return prefix
        pairs = self._spill.get(index, self.vlm.device)
        return self._read(index) if pairs is None else replace(prefix, layers=tuple(PrefixLayer(*pair) for pair in pairs))

    def _read(self, index: int) -> Prefix:
        self.reads += 1
        rows = self.slices[index]
        prefix = read_halving(self.vlm, self.questions[rows], rows, self._vision, self.scoring)
        if prefix.nbytes <= self._budget:
            self._kept[index] = prefix
            self._budget -= prefix.nbytes
        elif self._spill is not None and self._spill.put(index, [(layer.keys, layer.values) for layer in prefix.layers]):
            self._kept[index] = replace(prefix, layers=())
        return prefix


def prompts(questions: Sequence[Question], batch_size: int, scoring: Scoring, vlm: VLM) -> Prompts:
    """The same prompts, read by another process's model."""
    return Prompts(vlm, questions, batch_size, keep=False, scoring=scoring)


@dataclass(frozen=True)
class Pairs:
    """The prefixes of two prompts with the same batches: (first, second)."""

    first: Prompts
    second: Prompts

    @property
    def plan(self) -> Callable[[VLM], Pairs]:
        return partial(pairs, self.first.plan, self.second.plan)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[Prefix, Prefix]:
        return self.first[index], self.second[index]


def pairs(first: Callable[[VLM], Prompts], second: Callable[[VLM], Prompts], vlm: VLM) -> Pairs:
    return Pairs(first(vlm), second(vlm))


def _versions(vlm: VLM) -> list[tuple[int, int]]:
    """What torch says of each weight: where it is, and how often it was written to."""
    return [(weight.data_ptr(), weight._version) for weight in vlm.hf_model.parameters()]
