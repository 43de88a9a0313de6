"""Prompts that are read once: the keys and values of every token but the last, shared by all variants and never modified."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import BatchFeature
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from ..core.out_of_memory import out_of_memory
from ..data.question import Question
from ..errors import EditError, ModelError
from ..execution.memory import READING, in_halves, prompts_at_once
from ..vlm.cache import CACHE
from ..vlm.decoder import CROSS, STATES
from ..vlm.fingerprint import processor_settings
from ..vlm.mode import require_ready
from ..vlm.vlm import VLM, PrefixCache, check_cache
from .choices import Choices, Scoring, read_choices
from .prefix_disk import Spill
from .prompt_end import require_none_attached
from .shared_prompt import PROMPT, Prompt
from .states import StateLayer, concatenate_states, rows_in_batch
from .storage import PlaceName, cheapest, now, on_host, rooms
from .vision import FeatureSource, Vision

SEEN_IMAGES = ("cross_attention_mask", "image_attention_mask")
"""Inputs [B, T, images, ...] that say which images each token sees; an answer sees those that the prompt's last token does."""
MODULES = "the modules, adapters, hooks or attention"
SAMPLED = 512
"""Numbers of each weight, drawn once, by which a change of it is noticed."""
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "image_embeds_position_mask", *SEEN_IMAGES)


class KeyedLayer(DynamicLayer):
    """One layer's keys and values [B, Hkv, K, D]."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    @property
    def nbytes(self) -> int:
        """The size of the keys and values in bytes."""
        return self.keys.nbytes + self.values.nbytes

    def part(self, some: slice) -> Self:
        """Those of some prompts, as views."""
        return type(self)(self.keys[some], self.values[some])


class PrefixLayer(KeyedLayer):
    """Those of the prompt. New rows are appended to a copy and not stored."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)


class ImageLayer(KeyedLayer):
    """Those of images [B, Hkv, N, D] in a layer of cross-attention, which rows read as they are."""


class EmptyLayer(DummyLayer):
    """A layer that keeps nothing: it reads the keys and values of an earlier one, or has no attention."""

    nbytes = 0

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = False  # there is nothing in it

    def part(self, some: slice) -> EmptyLayer:
        """The same, for some prompts."""
        return self


KeptLayer = PrefixLayer | ImageLayer | StateLayer | EmptyLayer
"""What one layer keeps of the prompt."""


class ApartLayer(PrefixLayer):
    """The same, for `packed_attention`: new rows' keys carry the prompt's beside them, and nothing is copied."""

    def __init__(self, prompt: Prompt):
        super().__init__(prompt.keys, prompt.values)
        self.prompt = prompt

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_states = key_states.view_as(key_states)  # an object of its own, as a model may use the same keys elsewhere
        setattr(key_states, PROMPT, self.prompt)
        return key_states, value_states


@dataclass(frozen=True)
class Prefix:
    """B prompts up to their last token, and what is run after them.

    Attributes:
        rows: Which of the caller's questions these are.
        layers: What each layer keeps: keys and values, a state, or nothing.
        seen: True for real tokens, False for padding, [B, P].
        positions: Of the last token and the tree of choices, [B, R], or [3, B, R] for mrope.
        choices: The tree of choices.
        windows: The sliding window of each layer, in tokens, or None.
        tokens: The token ids of the prompts, [B, P].
        mask_names: The name of each layer's mask, where the decoder takes masks by name.
        images_seen: Which keys of images the last token sees in layers of cross-attention, [B, N]; None without such layers.
    """

    questions: Sequence[Question]
    rows: slice
    layers: tuple[KeptLayer, ...]
    seen: Bool[Tensor, "questions prompt"]
    positions: Int[Tensor, "*axes questions rows"]
    choices: Choices
    windows: tuple[int | None, ...]
    tokens: Int[Tensor, "questions prompt"]
    mask_names: tuple[str, ...] = ()
    images_seen: Bool[Tensor, "questions keys"] | None = None

    @property
    def nbytes(self) -> int:
        """The size of what is kept, in bytes."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def state_bytes(self) -> int:
        """What one row takes while a layer that keeps a state runs: a copy of the largest one, in bytes."""
        return max((layer.nbytes // len(self.questions) for layer in self.layers if isinstance(layer, StateLayer)), default=0)

    def inputs(self, copies: int = 1, apart: bool = False) -> dict[str, Any]:
        """The text decoder's arguments for the clean row: the last token and its tree of choices.

        Args:
            copies: How often the clean row is given.
            apart: Whether the prompt's keys and values go beside the rows' own, as `packed_attention` takes them, instead of in front.
        """
        layers: list[Any] = [
            layer.reader() if isinstance(layer, StateLayer) else layer for layer in (self._apart if apart else self.layers)
        ]
        return {
            "input_ids": self.choices.tokens.tile(copies),
            "position_ids": self.positions.tile(copies),
            "attention_mask": self._masks(),
            CACHE: Cache(layers=layers),
            "use_cache": True,
        } | self._image_masks()

    def _image_masks(self) -> dict[str, Tensor]:
        """What layers of cross-attention are given besides; a prompt without an image has zeros there for keys and values."""
        if self.images_seen is None:
            return {}
        dtype = next(layer.keys.dtype for layer in self.layers if isinstance(layer, ImageLayer))
        some = self.images_seen.any(1, keepdim=True)
        hidden = torch.zeros(self.images_seen.shape, dtype=dtype, device=some.device)
        hidden = hidden.masked_fill(~self.images_seen & some, torch.finfo(dtype).min)
        return {"cross_attention_mask": hidden[:, None, None], "full_text_row_masked_out_mask": some[:, None, None].to(dtype)}

    def _masks(self) -> Any:
        """One mask for all layers, or one for each kind of layer, by the name that the decoder gives it."""
        windows = dict(zip(self.mask_names, self.windows, strict=False)) if self.mask_names else {}
        for name, window in zip(self.mask_names, self.windows, strict=False):
            windows[name] = window or windows[name]  # a layer that reads another's keys and values caches nothing, and so has no window
        if not windows:
            # without names, all layers see alike
            return self._mask(self.windows[0] if len(set(self.windows)) == 1 else None)
        masks: dict[str, Tensor | None] = {}
        for name, window in windows.items():
            if name in STATES:
                masks[name] = None
            else:
                masks[name] = self._chunk_mask(window) if window and "chunk" in name else self._mask(window)
        return masks

    @cached_property
    def _apart(self) -> tuple[KeptLayer, ...]:
        R, masks = self.choices.tokens.shape[1], self._masks()
        seen: dict[tuple[str, int | None, int], tuple[Tensor | None, bool, Tensor]] = {}
        layers: list[KeptLayer] = []
        for number, (layer, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            if not isinstance(layer, PrefixLayer):
                layers.append(layer)
                continue
            name, K = self.mask_names[number] if self.mask_names else "", layer.keys.shape[2]
            if (name, window, K) not in seen:
                whole = masks[name] if name else masks
                part = whole[..., -R - K : -R]
                alike = part[:, :, :1]
                part = alike if bool((part == alike).all()) else part
                seen[name, window, K] = None if part.all() else part, bool(part.any(-1).all()), whole[..., -R:]
            mask, by_all, own = seen[name, window, K]
            mask = None if mask is None else mask.to(layer.keys.device)
            layers.append(ApartLayer(Prompt(layer.keys, layer.values, mask, by_all, own.to(layer.keys.device))))
        return tuple(layers)

    def part(self, start: int, stop: int) -> Prefix:
        """Some of these questions, as views."""
        if start == 0 and stop >= len(self.questions):
            return self
        some, first = slice(start, min(stop, len(self.questions))), self.rows.start or 0
        return replace(
            self,
            questions=self.questions[some],
            rows=slice(first + some.start, first + some.stop),
            layers=tuple(layer.part(some) for layer in self.layers),
            seen=self.seen[some],
            positions=self.positions[..., some, :],
            choices=self.choices.part(some),
            tokens=self.tokens[some],
            images_seen=None if self.images_seen is None else self.images_seen[some],
        )

    def _mask(self, window: int | None) -> Tensor:
        """The mask [B, 1, R, P + R]: prompt tokens within the window, and the row's own branch of the tree."""
        B, R = self.choices.tokens.shape
        P = self.seen.shape[1]
        seen = self.seen[:, None].expand(B, R, P)
        if window is not None:
            distance = P + self.choices.depth[..., None] - torch.arange(P, device=seen.device)
            seen = seen & (distance < window)
        return torch.cat([seen, self.choices.own], 2)[:, None]

    def _chunk_mask(self, chunk: int) -> Tensor:
        """The mask [B, 1, R, P + R]: tokens in the row's own chunk of the prompt, and of its branch of the tree."""
        places = self.seen.cumsum(1) - 1
        ends = self.seen.sum(1, keepdim=True) + self.choices.depth
        seen = self.seen[:, None] & (places[:, None] // chunk == ends[..., None] // chunk)
        own = self.choices.own & (ends[:, None] // chunk == ends[..., None] // chunk)
        return torch.cat([seen, own], 2)[:, None]

    def state_layers(self, vlm: VLM) -> AbstractContextManager[None]:
        """A block in which layers that keep a state run every row in the batch."""
        numbered = vlm.all_layers
        kept = {number: numbered[number] for number, layer in enumerate(self.layers) if isinstance(layer, StateLayer)}
        return rows_in_batch(kept, self.choices.own, self.choices.depth) if kept else nullcontext()


@torch.no_grad()
def read_prefix(
    vlm: VLM,
    questions: Sequence[Question],
    rows: slice = slice(None),
    vision: FeatureSource | None = None,
    scoring: Scoring = "auto",
    inputs: BatchFeature | None = None,
) -> Prefix:
    """Run the prompts up to their last token once, and keep their keys and values.

    If a prompt attends in both directions, it is run in full and its last token is dropped. The keys and values before it then depend on
    the unedited last token ("prompt frozen").

    Args:
        vlm: The model.
        questions: The questions.
        rows: Which of the caller's questions these are.
        vision: Features of images that several questions share.
        scoring: How choices are scored.
        inputs: What `vlm.process` made of these questions; made here by default.

    Returns:
        The prefix.

    Raises:
        ModelError: A layer does not cache keys and values.
        DataError: The tokenizer does not distinguish the choices of a question.
    """
    require_none_attached(vlm.hf_model)
    vlm.require_no_traced_edits()
    unlike = vlm.quirks.unpadded and len({bool(q.pictures) for q in questions}) > 1
    singly = unlike or (vlm.quirks.singly and len(questions) > 1)
    if not singly:
        inputs = vlm.encode(questions) if inputs is None else vlm.on_device(inputs)
        singly = vlm.quirks.unpadded and not bool(inputs["attention_mask"].all())
    if singly or inputs is None:
        return _concatenate(vlm, questions, rows, [read_prefix(vlm, [q], rows, vision, scoring) for q in questions], scoring)
    layers, windows = run_prompts(vlm, prompt_inputs(vlm, inputs, None if vision is None else vision.replace_pixels(inputs, questions)))
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1], scoring)
    seen, positions = inputs["attention_mask"][:, :-1].bool(), vlm.position_ids(inputs)[..., -1:] + choices.depth
    tokens, images = inputs["input_ids"][:, :-1], _images_seen(inputs, layers)
    return Prefix(questions, rows, layers, seen, positions, choices, windows, tokens, vlm.parts.mask_names, images)


def _images_seen(inputs: Mapping[str, Any], layers: Sequence[KeptLayer]) -> Tensor | None:
    """Which keys of images each prompt's last token sees, [B, N]; None without layers of cross-attention that have some."""
    kept = next((layer for layer in layers if isinstance(layer, ImageLayer)), None)
    if kept is None:
        return None
    tiles = inputs["cross_attention_mask"][:, -1].flatten(1).bool()
    return tiles.repeat_interleave(kept.keys.shape[2] // tiles.shape[1], 1)


def prompt_inputs(vlm: VLM, inputs: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model's arguments that run encoded prompts up to their last token.

    Args:
        vlm: The model.
        inputs: The encoded prompts.
        whole: The same inputs with image features in place of pixels, if there are any.

    Returns:
        Arguments of the transformers model.
    """
    end = None if vlm.quirks.bidirectional else -1
    given = inputs if whole is None else whole
    short = {k: v[:, :end] if k in PER_TOKEN and v.shape[:2] == inputs["input_ids"].shape else v for k, v in given.items()}
    return short | {"position_ids": vlm.position_ids(inputs)[..., :end].contiguous()}  # type: ignore[arg-type]


def with_answer(vlm: VLM, prompt: Mapping[str, Any], tokens: Int[Tensor, "questions answer"]) -> dict[str, Any]:
    """Encoded prompts with the tokens of an answer behind each."""
    inputs = dict(prompt) | {"input_ids": torch.cat([prompt["input_ids"], tokens], 1)}
    following = {"attention_mask": 1, "token_type_ids": vlm.quirks.answer_type, "mm_token_type_ids": 0, "image_embeds_position_mask": 0}
    for key, value in following.items():
        if key in prompt:
            inputs[key] = torch.cat([prompt[key], torch.full_like(tokens, value)], 1)
    for key in SEEN_IMAGES:
        if key in prompt and prompt[key].shape[:2] == prompt["input_ids"].shape:  # Phi-4-multimodal's is one of patches
            inputs[key] = torch.cat([prompt[key], prompt[key][:, -1:].repeat_interleave(tokens.shape[1], 1)], 1)
    return inputs


def run_prompts(vlm: VLM, given: dict[str, Any]) -> tuple[tuple[KeptLayer, ...], tuple[int | None, ...]]:
    """Run prompts, and keep the keys and values of every layer; with gradients enabled they carry the graph.

    Args:
        vlm: The model.
        given: Arguments from `prompt_inputs`.

    Returns:
        The keys and values, and the sliding window of each layer in tokens (None for full attention).

    Raises:
        ModelError: A layer does not cache keys and values.
    """
    layers = _keys_and_values(vlm, given)
    drop = -1 if vlm.quirks.bidirectional else None
    kept = tuple(_kept(vlm, number, layer, drop) for number, layer in enumerate(layers))
    return kept, tuple(getattr(layer, "sliding_window", None) for layer in layers)


def _kept(vlm: VLM, number: int, layer: Any, drop: int | None) -> KeptLayer:
    """What a layer's cache keeps of a prompt, without its last token if drop is -1."""
    if type(layer) is LinearAttentionLayer and drop is None and any(layer.has_previous_state.values()):
        return StateLayer(layer.conv_states, layer.recurrent_states)
    if isinstance(layer, DummyLayer) or (type(layer) is DynamicLayer and layer.keys is None):
        return EmptyLayer()
    if vlm.parts.others.get(number) == CROSS and type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
        return ImageLayer(layer.keys, layer.values)
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None:
        raise ModelError(f"{vlm.name}: layer {number} keeps a {type(layer).__name__} and not keys and values: use path='reference'")
    return PrefixLayer(layer.keys[:, :, :drop], layer.values[:, :, :drop])


class _StopForward(Exception):
    """Raised to end a forward pass as soon as nothing more of it is needed."""


def _keys_and_values(vlm: VLM, inputs: dict[str, Any]) -> list[Any]:
    """What the decoder's layers cache for the prompt. The pass ends after the last layer's attention, as nothing more is needed."""
    cache = DynamicCache(config=vlm.hf_model.config.get_text_config())

    def stop(*_: object) -> None:
        raise _StopForward

    with vlm.alone():
        last = vlm.head_layers[-1]
        ends = last.output() if last.number == len(vlm.all_layers) - 1 else vlm.norm
        hook = ends.register_forward_pre_hook(stop)
        try:
            vlm.hf_model(**inputs, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        except _StopForward:
            pass
        finally:
            hook.remove()
    return cache.layers


def read_halving(
    vlm: VLM,
    questions: Sequence[Question],
    rows: slice,
    vision: Vision | None,
    scoring: Scoring,
    inputs: BatchFeature | None = None,
) -> Prefix:
    """Call `read_prefix`, splitting the questions in halves as long as memory runs out.

    Returns:
        The prefix of all these questions.

    Raises:
        ModelError: There is not enough memory for a single prompt.
    """

    def read(part: Sequence[Question]) -> Prefix:
        with vlm.alone():
            return read_prefix(vlm, part, rows, vision, scoring, inputs if len(part) == n else None)

    n = len(questions)
    parts = in_halves(vlm, questions, read, READING)
    if len(parts) == 1:
        return parts[0]
    try:
        return _concatenate(vlm, questions, rows, parts, scoring)
    except Exception as error:
        if not out_of_memory(error):
            raise
        said = str(error).splitlines()[0]
    raise ModelError(f"{vlm.name}: no memory to keep {n} prompts at once: give fewer questions at once (batch_size, micro_batch) ({said})")


def _concatenate(vlm: VLM, questions: Sequence[Question], rows: slice, parts: Sequence[Prefix], scoring: Scoring) -> Prefix:
    """Join the prefixes of several questions, left-padded to the same length."""
    P = max(part.seen.shape[1] for part in parts)
    layers: list[KeptLayer] = []
    for pieces in zip(*(part.layers for part in parts), strict=True):
        if any(isinstance(piece, ImageLayer) for piece in pieces):
            layers.append(_concatenate_images(parts, pieces))
            continue
        if not isinstance(pieces[0], PrefixLayer):
            layers.append(concatenate_states(list(pieces)) if isinstance(pieces[0], StateLayer) else pieces[0])
            continue
        K = max(piece.keys.shape[2] for piece in pieces)
        keys, values = (
            [F.pad(getattr(piece, name), (0, 0, K - piece.keys.shape[2], 0)) for piece in pieces] for name in ("keys", "values")
        )
        layers.append(PrefixLayer(torch.cat(keys), torch.cat(values)))
    seen, tokens = (torch.cat([F.pad(getattr(part, name), (P - part.seen.shape[1], 0)) for part in parts]) for name in ("seen", "tokens"))
    choices = read_choices(vlm, questions, torch.cat([part.choices.tokens[:, 0] for part in parts]), scoring)
    positions = torch.cat([part.positions[..., :1] for part in parts], -2) + choices.depth
    images, N = [part.images_seen for part in parts], _most_images(parts)
    known = [
        seen.new_zeros(len(part.seen), N) if one is None else F.pad(one, (0, N - one.shape[1]))
        for part, one in zip(parts, images, strict=True)
    ]
    joined = torch.cat(known) if N else None
    return Prefix(questions, rows, tuple(layers), seen, positions, choices, parts[0].windows, tokens, parts[0].mask_names, joined)


def _most_images(parts: Sequence[Prefix]) -> int:
    return max((part.images_seen.shape[1] for part in parts if part.images_seen is not None), default=0)


def _concatenate_images(parts: Sequence[Prefix], pieces: Sequence[KeptLayer]) -> ImageLayer:
    """Keys and values of images of several batches, filled with zeros to the same number; a prompt without an image has zeros alone."""
    N, like = _most_images(parts), next(piece for piece in pieces if isinstance(piece, ImageLayer))

    def joined(name: str) -> Tensor:
        found = []
        for part, piece in zip(parts, pieces, strict=True):
            whole = (
                getattr(piece, name) if isinstance(piece, ImageLayer) else getattr(like, name)[:1, :, :0].expand(len(part.seen), -1, -1, -1)
            )
            found.append(F.pad(whole, (0, 0, 0, N - whole.shape[2])))
        return torch.cat(found)

    return ImageLayer(joined("keys"), joined("values"))


class PrefixStore(Sequence[Prefix]):
    """The prefixes of many questions in batches, each read when it is first needed and then kept.

    Args:
        vlm: The model.
        questions: The questions.
        batch_size: Questions per batch; by default `prompts_at_once`.
        keep: Whether the prefixes will be needed again.
        scoring: How choices are scored (see `run_edits`).
        cache: Where prefixes are kept; by default `vlm.prefix_cache`.
        within: Questions that belong together, such as the batch of a fit, of which a batch here is a part (`steps`); where steps are of
            different sizes, the size of each.

    Attributes:
        reads: How many times the model has read a batch.
        ahead: Whether another thread prepares images and tokens of the next batch meanwhile, which pays where the model runs on a GPU.
        places: Where each batch that was read is kept; batches that are read again are not in it.
        clean: What the clean last tokens computed, z [Q, L, H, D] and scores [Q, C], once that was read (`attribution.read_clean`).
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
        within: int | Sequence[int] | None = None,
    ):
        self.vlm, self.questions, self._asked, self.scoring = vlm, questions, batch_size, scoring
        self.cache: PrefixCache = check_cache(cache or vlm.prefix_cache) if keep else "recompute"
        self.within = within if within is None or isinstance(within, int) else tuple(within)
        self.reads = 0
        self.ahead = vlm.device.type != "cpu" and not (vlm.quirks.unpadded or vlm.quirks.singly)
        self.clean: tuple[Tensor, Tensor] | None = None
        self._prepared: dict[int, Future[BatchFeature]] = {}
        self.keep = keep
        self._read_as = _how_read(vlm) if keep else {}
        self._vision = Vision(vlm, questions)
        self._kept: dict[int, Prefix] = {}
        self.places: dict[int, PlaceName] = {}
        self._room = rooms(vlm, self.cache)
        self._spill = Spill() if "disk" in self._room else None
        if self._spill is not None:
            self._room["disk"] = sys.maxsize  # where it is full, the spill says so
        self._devices: list[torch.device] = []
        self._reading = float("inf")
        """Seconds per byte of reading, at its fastest so far."""

    @cached_property
    def batch_size(self) -> int:
        """The number of questions per batch."""
        if self._asked is not None:
            return self._asked
        tokens = self.vlm.encode(self.questions[0])["input_ids"].shape[1]
        return prompts_at_once(self.vlm, tokens)

    def require(self, vlm: VLM, questions: Sequence[Question], scoring: Scoring = "auto") -> None:
        """Raise EditError if the store is for another model, other questions or another scoring, or if the model has changed since."""
        if vlm.hf_model is not self.vlm.hf_model:
            raise EditError(f"the prompts were read by another model ({self.vlm.name}): give prompts of {vlm.name}, or none")
        if len(self.questions) != len(questions) or not all(map(_asked_alike, self.questions, questions)):
            raise EditError("the prompts are those of other questions: give the prompts of these questions, or none")
        if self.scoring != scoring:
            raise EditError(f"the prompts were read for scoring={self.scoring!r}, not {scoring!r}: give both the same scoring")
        before, now = self._read_as, _how_read(vlm) if self.keep else {}
        for what in now:
            if now[what] != before[what] and (what != MODULES or not self._reads_the_same()):
                raise EditError(f"{what} of {vlm.name} changed since these prompts were made: make them again, or give none")
        if now != before:
            self._read_as, self.clean = now, None

    def _reads_the_same(self) -> bool:
        """Whether a kept prompt, read again, is what it was: a hook may change something or only look on."""
        index = next(iter(self._kept), None)
        if index is None:
            return True
        batch = self[index].part(0, 1)
        try:
            with self.vlm.alone():
                again = read_prefix(self.vlm, batch.questions, scoring=self.scoring)
        except Exception as error:
            if out_of_memory(error):
                return True  # what comes next says so
            raise
        pairs = [
            (k, a) for k, a in zip(batch.layers, again.layers, strict=True) if isinstance(k, PrefixLayer) and isinstance(a, PrefixLayer)
        ]
        both = [(getattr(k, name)[:, :, -a.keys.shape[2] :], getattr(a, name)) for k, a in pairs for name in ("keys", "values")]
        return all(torch.allclose(kept, new, rtol=1e-2, atol=1e-2 * float(new.abs().max())) for kept, new in both)

    @property
    def plan(self) -> Callable[[VLM], PrefixStore]:
        """Makes the same store for the model of another process."""
        return partial(open_store, tuple(self.questions), self.batch_size, self.scoring, self.within)

    @cached_property
    def slices(self) -> list[slice]:
        """The rows of the questions of each batch."""
        size = self.batch_size
        return [slice(i, min(i + size, end)) for start, end in pairwise(self._bounds) for i in range(start, end, size)]

    @property
    def _bounds(self) -> list[int]:
        """The first question of each step, and how many questions there are; one step where none are given."""
        Q = len(self.questions)
        if isinstance(self.within, tuple):
            return [0, *accumulate(self.within)]
        return [*range(0, Q, self.within or max(Q, 1)), Q]

    @cached_property
    def steps(self) -> list[list[int]]:
        """The numbers of the batches that belong together: those of each `within` questions, or each alone."""
        if self.within is None:
            return [[i] for i in range(len(self))]
        return [[i for i, rows in enumerate(self.slices) if start <= rows.start < end] for start, end in pairwise(self._bounds)]

    def step_of(self, row: int) -> int:
        """How many questions are in the step of this one."""
        return next(end - start for start, end in pairwise(self._bounds) if start <= row < end)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Prefix:  # type: ignore[override]
        index = range(len(self))[index]
        prefix, place = self._kept.get(index), self.places.get(index)
        if prefix is None:
            return self._read(index)
        if place == "memory":
            return prefix
        if place == "host":
            kept = [(layer.keys, layer.values) for layer in prefix.layers if isinstance(layer, PrefixLayer)]
            moved = ((k.to(on, non_blocking=True), v.to(on, non_blocking=True)) for (k, v), on in zip(kept, self._devices, strict=True))
            return replace(prefix, layers=tuple(PrefixLayer(*pair) for pair in moved))
        assert self._spill is not None
        pairs = self._spill.get(index, self._devices)
        return self._read(index) if pairs is None else replace(prefix, layers=tuple(PrefixLayer(*pair) for pair in pairs))

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "scale-interp-prompts")

    def _inputs(self, index: int) -> BatchFeature | None:
        """The processed inputs of one batch, made ahead where it was the next one; those of the batch after it are begun.

        None where there is no memory to process all of them at once.
        """
        require_ready(self.vlm)
        begun = self._prepared.pop(index, None)
        try:
            with torch.inference_mode(False):
                inputs = self.vlm.process(self.questions[self.slices[index]]) if begun is None else begun.result()
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        following = index + 1
        if self.ahead and not self._prepared and following < len(self) and following not in self._kept:
            self._prepared[following] = self._thread.submit(self.vlm.process, self.questions[self.slices[following]])
        return inputs

    def _read(self, index: int) -> Prefix:
        self.reads += 1
        rows = self.slices[index]
        started = self._clock()
        inputs = self._inputs(index)
        with torch.inference_mode(False):  # prompts that are kept may be fitted on later, outside of it
            prefix = read_halving(self.vlm, self.questions[rows], rows, self._vision, self.scoring, inputs)
        if self._room:
            self._reading = min(self._reading, (self._clock() - started) / max(prefix.nbytes, 1))
            self._keep(index, prefix)
        return prefix

    def _clock(self) -> float:
        return now(self.vlm.device) if self._room else 0.0

    def _keep(self, index: int, prefix: Prefix) -> None:
        size = prefix.nbytes
        place = cheapest(size, size * self._reading, self._room, self.vlm.device, measured=self.cache == "auto")
        pairs = [(layer.keys, layer.values) for layer in prefix.layers if isinstance(layer, PrefixLayer)]
        if place == "recompute" or (place != "memory" and len(pairs) < len(prefix.layers)):
            return  # states of recurrent layers stay where they are
        self._devices = [keys.device for keys, _ in pairs]
        if place == "host":
            prefix = replace(prefix, layers=tuple(PrefixLayer(on_host(keys), on_host(values)) for keys, values in pairs))
        elif place == "disk":
            assert self._spill is not None
            if not self._spill.put(index, pairs):
                return
            prefix = replace(prefix, layers=())
        self._kept[index], self.places[index] = prefix, place
        self._room[place] -= size


def open_store(
    questions: Sequence[Question], batch_size: int, scoring: Scoring, within: int | Sequence[int] | None, vlm: VLM
) -> PrefixStore:
    """The same store for the model of another process."""
    return PrefixStore(vlm, questions, batch_size, keep=False, scoring=scoring, within=within)


@dataclass(frozen=True)
class StorePair:
    """Two stores with the same batches: (first, second)."""

    first: PrefixStore
    second: PrefixStore

    @property
    def plan(self) -> Callable[[VLM], StorePair]:
        """Makes the same pair for the model of another process."""
        return partial(open_pair, self.first.plan, self.second.plan)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[Prefix, Prefix]:
        return self.first[index], self.second[index]


def open_pair(first: Callable[[VLM], PrefixStore], second: Callable[[VLM], PrefixStore], vlm: VLM) -> StorePair:
    """The same pair of stores for the model of another process."""
    return StorePair(first(vlm), second(vlm))


def _asked_alike(one: Question, other: Question) -> bool:
    """Whether two questions are the same prompt with the same choices, whatever their answers and names."""
    if one is other:
        return True
    if (one.text, one.choices) != (other.text, other.choices):
        return False
    return one.image_sources == other.image_sources or one.image_digest == other.image_digest


def _how_read(vlm: VLM) -> dict[str, Any]:
    """What prompts depend on besides the questions, by name."""
    processor, tokenizer = vlm.processor, vlm.tokenizer
    texts = (vlm.prompt, processor.chat_template, id(tokenizer), len(tokenizer), vlm.choice_space)
    return {
        "the prompt, the processor or the choice space": (*texts, *processor_settings(processor)),
        MODULES: vlm.state,
        "the weights": [(weight.data_ptr(), weight._version) for weight in vlm.hf_model.parameters()] + _sums(vlm),
    }


def _sums(vlm: VLM) -> list[Any]:
    """The sums of some numbers of each weight, as `weight.data[...] = 0` leaves no trace in torch's count of writes."""
    sampled = (weight.detach().view(-1)[_places(weight.numel(), weight.device)] for weight in vlm.hf_model.parameters() if _plain(weight))
    sums = [some.float().sum().to(vlm.device) for some in sampled]
    return torch.stack(sums).nan_to_num().tolist() if sums else []


def _plain(weight: Tensor) -> bool:
    wide = type(weight.data) is Tensor and weight.is_floating_point() and weight.dtype.itemsize > 1
    return wide and weight.is_contiguous() and not weight.is_meta and weight.numel() > 0


@lru_cache(256)
def _places(numel: int, device: torch.device) -> Tensor:
    return torch.randint(numel, (min(numel, SAMPLED),), generator=torch.Generator().manual_seed(numel)).to(device)
