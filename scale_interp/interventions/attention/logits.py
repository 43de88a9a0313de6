"""Attention logits rewritten on chosen rows and columns of the text decoder, by an attention function and no change to model code.

logits'[h, row, column] = weight[h] * logits[h, row, column] + shift[h]        after q.k / sqrt(d), before mask and softmax

Where a model caps its logits (Gemma 2), the capped ones are rewritten: a cap afterwards would take a large weight out again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...errors import EditError
from ..rows import NAME as PACKED
from ..rows import attention, packed_attention

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
    """The running forward pass: rows None where nothing changes; columns [B, T] of the prompt; total: tokens seen so far."""

    edit: LogitEdit | None = None
    columns: Tensor | None = None
    rows: slice | None = None
    total: int = 0

    def begin(self, edit: LogitEdit | None, columns: Tensor, new: int, length: int | None = None) -> None:
        """A pass that reads the prompt of `length` tokens (default: all `new` ones), and maybe tokens after it."""
        self.edit, self.columns, self.total = edit, columns, new
        length = new if length is None else length
        if edit is None:
            self.rows = None
        else:
            self.rows = slice(length - 1 if edit.rows == "last" else 0, length if edit.steps == "prefill" else None)

    def go_on(self) -> None:
        """A pass over the next token behind the prompt."""
        self.total += 1
        self.rows = slice(0, None) if self.edit is not None and self.edit.steps == "each_new_token" else None


_RUNNING: WeakKeyDictionary[nn.Module, tuple[Pass, int]] = WeakKeyDictionary()
"""The decoder's attention modules that are being rewritten, with their layer's number."""


@contextmanager
def rewriting(decoder: PreTrainedModel, running: Pass, base: str | None = None) -> Iterator[None]:
    """The text decoder with its logits rewritten as `running` says; base: the attention function that does all other rows."""
    modules: list[nn.Module] = [layer.self_attn for layer in decoder.layers]  # type: ignore[union-attr]
    if modules[0] in _RUNNING:
        raise EditError("this model's attention is rewritten already: leave that `attached` before entering another")
    _RUNNING.update({module: (running, number) for number, module in enumerate(modules)})
    try:
        with attention(decoder, NAME + (base or _base(decoder))):
            yield
    finally:
        for module in modules:
            del _RUNNING[module]


def _base(decoder: PreTrainedModel) -> str:
    """The decoder's own function where masks can be given to it, else torch's, or plain attention for logits with a cap."""
    own = str(decoder.config._attn_implementation)
    return own if own in ("sdpa", "eager") else "sdpa" if decoder._supports_sdpa else "eager"


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


BASES: dict[str, Callable[..., Any]] = {"sdpa": sdpa_attention_forward, "eager": _eager, PACKED: packed_attention}


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
    """The base function's output [B, S, H, D], with the chosen heads' chosen rows computed anew."""
    capped = {} if softcap is None else {"softcap": softcap}
    out = BASES[base](module, query, key, value, attention_mask, scaling=scaling, **capped, **kwargs)[0]
    running, layer = _RUNNING[module]
    rows, edit = running.rows, running.edit
    if rows is None or edit is None or running.columns is None:
        return out, None
    weight, shift = (part[..., layer, :].reshape(-1, query.shape[1], 1, 1).to(query.device) for part in (edit.weight, edit.shift))
    changes = (weight != 1) | (shift != 0)
    if not changes.any():
        return out, None
    _, H, S, D = query.shape
    K = key.shape[2]
    if running.total < K:
        raise EditError(f"a cache of {K} places for {running.total} tokens hides which are images: generate with a dynamic cache")
    logits = query[:, :, rows] @ key.repeat_interleave(H // key.shape[1], 1).mT
    logits = logits.float() * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    columns = F.pad(running.columns, (0, running.total - running.columns.shape[1]))[:, None, None, -K:].to(query.device)
    logits = torch.where(columns, logits * weight + shift, logits)
    if attention_mask is None:
        causal = torch.ones(S, K, dtype=torch.bool, device=query.device).tril(K - S)[rows]
        logits = logits.masked_fill(~causal, torch.finfo(logits.dtype).min)
    else:
        mask = attention_mask[:, :, rows, -K:]
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min) if mask.dtype == torch.bool else logits + mask
    anew = logits.softmax(-1).to(value.dtype) @ value.repeat_interleave(H // value.shape[1], 1)
    kept = out[:, rows].transpose(1, 2)
    changed = torch.where(changes, anew, kept).transpose(1, 2)
    return torch.cat([out[:, : rows.start], changed, out[:, rows.start + changed.shape[1] :]], 1), None


for _name in BASES:
    AttentionInterface.register(NAME + _name, partial(_attend, _name))
    if _name != PACKED:
        AttentionMaskInterface.register(NAME + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


Decide = Callable[[Tensor], LogitEdit]
"""From the logits of the unedited model's next token [B, V] to what happens to a prompt."""


@contextmanager
def attach_logits(model: nn.Module, edit: LogitEdit | None, decide: Decide | None = None) -> Iterator[None]:
    """A plain transformers model with its attention logits rewritten, for forward and generate.

    decide: in place of an edit; the prompt is then read once unedited before each reading. A pass without a cache behind it
    reads a prompt; prompts of one batch must be left-padded, as for generate.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    image_token_id: int = model.config.image_token_id  # type: ignore[assignment, union-attr]
    if edit is not None:
        edit.check(len(decoder.layers), model.config.get_text_config().num_attention_heads)  # type: ignore[operator, union-attr]
    running = Pass()
    uncached: int | None = None
    measuring = False

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal uncached, measuring
        if measuring:
            return
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        if ids is None:
            raise EditError("inputs_embeds do not say which tokens are images: give input_ids")
        if cache is not None and cache.get_seq_length() > 0:
            if ids.shape[1] > 1:
                raise EditError(
                    f"{ids.shape[1]} tokens at once behind a cache may be prompt or answer: generate token by token, each prompt "
                    "whole (no prefill_chunk_size) and from an empty cache"
                )
            running.go_on()
            return
        if cache is None and uncached is not None and ids.shape[1] == uncached + 1:
            raise EditError("generating without a cache hides where the prompt ends: call generate with use_cache=True")
        uncached = ids.shape[1] if cache is None else None
        now = edit
        if decide is not None:
            running.rows, measuring = None, True
            try:
                plain = kwargs | {"past_key_values": None, "use_cache": False, "logits_to_keep": 1}
                with torch.no_grad():
                    now = decide(module(*args, **plain).logits[:, -1].float())
            finally:
                measuring = False
        columns = ids == image_token_id if now is None else now.choose(ids, image_token_id)
        running.begin(now, columns, ids.shape[1])

    with rewriting(decoder, running):
        hook = model.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
