"""Attention logits rewritten on chosen rows and columns of the text decoder, by an attention function and no change to model code.

logits'[h, row, column] = weight[h] * logits[h, row, column] + shift[h]        after q.k / sqrt(d), before mask and softmax

Where a model caps its logits (Gemma 2), the capped ones are rewritten: a cap afterwards would take a large weight out again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...errors import EditError
from ...vlm.cache import cache_of, with_cache
from ...vlm.decoder import describe_layers
from ...vlm.families import describe
from ...vlm.mode import require_ready
from ..prompt_end import Place, Prompt, among_last, prompt_end
from ..rows import NAME as PACKED
from ..rows import attention, sink_logits
from ..written_out import BASES, base_of, masked, require_same, softmax

Rows = Literal["last", "all"]
Steps = Literal["prefill", "each_new_token"]
Columns = Literal["image", "other"]
NAME = "scale_interp_logits_"


@dataclass(frozen=True)
class LogitEdit:
    """What happens to the attention logits: weight, shift [L, H], or [B, L, H] with values of its own for each prompt.

    rows: the prompt's "last" row, or "all" of them; steps: the prompt's rows alone ("prefill"), or also the row of every
    token after it. columns: the prompt's "image" tokens, or all "other" ones.
    """

    weight: Tensor
    shift: Tensor
    rows: Rows = "last"
    steps: Steps = "prefill"
    columns: Columns = "image"

    def __post_init__(self) -> None:
        for name, known in (("rows", ("last", "all")), ("steps", ("prefill", "each_new_token")), ("columns", ("image", "other"))):
            if (value := getattr(self, name)) not in known:
                raise EditError(f"{name}={value!r}: choose {known[0]!r} or {known[1]!r}")

    def check(self, n_layers: int, n_heads: int) -> None:
        for name, part in (("weight", self.weight), ("shift", self.shift)):
            if tuple(part.shape[-2:]) != (n_layers, n_heads):
                raise EditError(f"{name} has shape {tuple(part.shape)}, but the model needs [{n_layers}, {n_heads}]")
            if not torch.isfinite(part).all():
                raise EditError(f"{name} holds values that are not finite")

    def choose(self, ids: Tensor, image_token_id: int) -> Tensor:
        """The prompt's tokens [B, T] whose columns change."""
        image = ids == image_token_id
        return image if self.columns == "image" else ~image


@dataclass
class Pass:
    """The running forward pass: rows None where nothing changes; columns [B, T] of the prompt; total: tokens seen so far.

    chosen [B, rows]: which of the rows change in which prompt, where they end in different columns.
    """

    edit: LogitEdit | None = None
    columns: Tensor | None = None
    rows: slice | None = None
    total: int = 0
    chosen: Tensor | None = None
    read: int | None = None
    """The tokens that an attached model's pass reads, of which a layer may see only the last."""
    ran: set[int] = field(default_factory=set)
    """The layers whose attention this pass has run."""
    same: set[int] = field(default_factory=set)
    """The layers whose attention was found to be what is written out here."""

    def begin(self, edit: LogitEdit | None, columns: Tensor, new: int, length: int | None = None) -> None:
        """Begin a pass over `new` tokens, of which the first `length` (by default all) are the prompt."""
        self.edit, self.columns, self.total, self.chosen = edit, columns, new, None
        length = new if length is None else length
        if edit is None:
            self.rows = None
        else:
            self.rows = slice(length - 1 if edit.rows == "last" else 0, length if edit.steps == "prefill" else None)

    def at(self, edit: LogitEdit | None, columns: Tensor, place: Place) -> None:
        """A pass of a model that an edit is attached to."""
        self.edit, self.columns, self.total, self.rows, self.chosen = edit, columns, place.past + place.new, None, None
        self.read = place.new
        if edit is None:
            return
        rows = place.of("last" if edit.steps == "prefill" else "each_new_token")
        if edit.rows == "all" and place.prompt is not None:
            of_prompt = min(place.prompt.length - place.past, place.new)
            self.rows = slice(0, of_prompt if edit.steps == "prefill" else place.new) if of_prompt > 0 else rows  # type: ignore[assignment]
            return
        if isinstance(rows, Tensor):
            self.rows, self.chosen = slice(0, place.new), rows
        else:
            self.rows = rows


_RUNNING: WeakKeyDictionary[nn.Module, tuple[Pass, int]] = WeakKeyDictionary()
"""The decoder's attention modules that are being rewritten, with their layer's number."""


@contextmanager
def rewriting(decoder: PreTrainedModel, running: Pass, base: str | None = None) -> Iterator[None]:
    """The text decoder with its logits rewritten as `running` says; base: the attention function that does all other rows."""
    modules: list[nn.Module] = [block.attention() for block in describe_layers(decoder).heads]
    if modules[0] in _RUNNING:
        raise EditError("this model's attention is rewritten already: leave that `attached` before entering another")
    _RUNNING.update({module: (running, number) for number, module in enumerate(modules)})
    try:
        with attention(decoder, NAME + (base or base_of(decoder))):
            yield
    finally:
        for module in modules:
            del _RUNNING[module]


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The base function's output [B, S, H, D], with the chosen heads' chosen rows computed again from changed logits."""
    capped = {} if softcap is None else {"softcap": softcap}
    out = BASES[base](module, query, key, value, attention_mask, scaling=scaling, **capped, **kwargs)[0]
    if module not in _RUNNING:  # a layer of cross-attention
        return out, None
    running, layer = _RUNNING[module]
    running.ran.add(layer)
    S, edit = query.shape[2], running.edit
    rows, chosen = (among_last(part, running.read or S, S) for part in (running.rows, running.chosen))
    if not isinstance(rows, slice) or edit is None or running.columns is None:
        return out, None
    weight, shift = (part[..., layer, :].reshape(-1, query.shape[1], 1, 1).to(query.device) for part in (edit.weight, edit.shift))
    changes = (weight != 1) | (shift != 0)
    if not changes.any():
        return out, None
    _, H, S, D = query.shape
    K = key.shape[2]
    spare = max(K - running.total, 0)
    if spare and _seen(attention_mask, rows, S, running.total):
        raise EditError(
            f"{spare} of {K} places of the cache are behind the {running.total} tokens read so far and not masked, which hides the image "
            "tokens' places: call generate with the whole prompt and an empty cache"
        )
    logits = query[:, :, rows] @ key.repeat_interleave(H // key.shape[1], 1).mT
    logits = logits.float() * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    sinks = sink_logits(module, kwargs)
    if sinks is not None and base == "sdpa":
        raise EditError(f"layer {layer} has attention sinks, which 'sdpa' leaves out: load the model with attn_implementation='eager'")
    kept, values = out[:, rows].transpose(1, 2), value.repeat_interleave(H // value.shape[1], 1)
    if layer not in running.same:
        unchanged = softmax(masked(logits, attention_mask, rows, S, spare), sinks).to(value.dtype) @ values
        require_same(module, layer, unchanged, kept, attention_mask, rows)
        running.same.add(layer)
    columns = F.pad(running.columns, (0, running.total + spare - running.columns.shape[1]))[:, None, None, -K:].to(query.device)
    changed = torch.where(columns, logits * weight + shift, logits)
    again = softmax(masked(changed, attention_mask, rows, S, spare), sinks).to(value.dtype) @ values
    if isinstance(chosen, Tensor):
        changes = changes & chosen[:, None, :, None].to(query.device)
    changed = torch.where(changes, again, kept).transpose(1, 2)
    return torch.cat([out[:, : rows.start], changed, out[:, rows.start + changed.shape[1] :]], 1), None


def _seen(mask: Tensor | None, rows: slice, S: int, total: int) -> bool:
    """Whether a row sees places of a cache behind its `total` tokens; without a mask, S rows see each other and what is before."""
    if mask is None:
        return total != S
    behind = mask[:, :, rows, total:]
    return bool((behind if behind.dtype == torch.bool else behind > torch.finfo(behind.dtype).min / 2).any())


for _name in BASES:
    AttentionInterface.register(NAME + _name, partial(_attend, _name))
    if _name != PACKED:
        AttentionMaskInterface.register(NAME + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


Decide = Callable[[Tensor], LogitEdit]
"""From the logits of the unedited model's next token [B, V] to what happens to a prompt."""


@contextmanager
def attach_logits(model: nn.Module, edit: LogitEdit | None, decide: Decide | None = None) -> Iterator[None]:
    """A plain transformers model with its attention logits rewritten, for forward and generate.

    decide: in place of an edit; the prompt is then read once unedited before each reading. The prompt's last token is found for
    each row of a batch, see `PromptEnd`. Raises EditError where it, or the prompt's image tokens, cannot be known.
    """
    model = getattr(model, "_orig_mod", model)
    parts = describe(model, type(model).__name__)  # type: ignore[arg-type]
    decoder = parts.module
    image_token_id: int = model.config.image_token_id  # type: ignore[assignment, union-attr]
    if edit is not None:
        edit.check(len(parts.heads), parts.heads[0].n_heads)
    require_ready(model)
    running, n_layers = Pass(), len(parts.heads)
    decided: WeakKeyDictionary[Prompt, LogitEdit] = WeakKeyDictionary()

    def before(module: nn.Module, given: dict[str, Any]) -> None:
        place = end.place
        running.ran.clear()
        running.rows = None
        if place.prompt is None or place.prompt.ids is None:
            raise EditError("inputs_embeds and caches do not say which tokens are images: give input_ids of the whole prompt")
        prompt, ids = place.prompt, place.prompt.ids
        if decide is not None and prompt not in decided and place.ends_here:
            with end.aside():
                decided[prompt] = decide(_next_logits(module, given, place, prompt))
        now = edit if decide is None else decided.get(prompt)
        in_pieces = place.began or (decide is not None and 0 < place.past < prompt.length)
        if now is not None and now.rows == "all" and in_pieces:
            raise EditError(
                'rows="all" changes the prompt\'s keys and values, part of which are read already: give each prompt whole and from an '
                "empty cache"
            )
        columns: Tensor = torch.eq(ids, image_token_id) if now is None else now.choose(ids, image_token_id)
        B = len(_tokens(given))
        if B % len(columns):
            raise EditError(f"a batch of {B} behind the cache of {len(columns)} prompts: give one row for each prompt")
        running.at(now, columns.repeat_interleave(B // len(columns), 0), place)

    def after() -> None:
        if len(running.ran) < n_layers:
            raise EditError(
                f"the attention of {n_layers - len(running.ran)} of {n_layers} layers did not go through transformers' attention functions "
                "in this pass, so its logits were not rewritten: attach to the model as transformers loads it"
            )

    with prompt_end(model) as end, rewriting(decoder, running), end.watch(before, after):
        yield


def _tokens(given: dict[str, Any]) -> Tensor:
    return given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]


@torch.no_grad()
def _next_logits(module: nn.Module, given: dict[str, Any], place: Place, prompt: Prompt) -> Tensor:
    """Logits of the next token [B, V], by the same pass without an edit."""
    alone = place.past + place.new == prompt.length and not prompt.ragged
    cache = copy.deepcopy(cache_of(given))  # its places are those of the mask, also where it is empty
    plain = given | {"use_cache": cache is not None, "logits_to_keep": 1 if alone else 0}
    out = module(**with_cache(plain, cache))
    if not hasattr(out, "logits"):
        raise EditError(f"a {type(module).__name__} gives no logits to decide by: call the whole model")
    logits = out.logits.float()
    if alone:
        return logits[:, -1]
    ends = (prompt.ends - place.past).repeat_interleave(len(logits) // len(prompt.ends))
    return logits[torch.arange(len(logits), device=logits.device), ends.to(logits.device)]
