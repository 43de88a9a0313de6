"""Where the prompt ends in the forward pass that runs: one answer for every edit that is attached to a model.

Places are counted in columns of the whole sequence, from its first padding token on; what is behind a cache counts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..errors import EditError
from ..vlm.cache import CACHE, cache_of
from ..vlm.lock import changed

MARK = "_scale_interp_prompt"
"""Where a cache keeps the prompt that was read into it; copies of the cache keep it too."""
USE_CACHE = "generating without a cache hides where the prompt ends: call generate with use_cache=True"

Before = Callable[[nn.Module, dict[str, Any]], None]
After = Callable[[], None]


@dataclass(eq=False, frozen=True)
class Prompt:
    """B prompts of one length: ends [B], the column of each prompt's last token; ids [B, length], where they are known.

    ragged: whether some are padded on the right, so that they end in different columns.
    """

    length: int
    ends: Tensor
    ids: Tensor | None
    ragged: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompt:
        return self


@dataclass(frozen=True)
class Place:
    """The running pass: `new` tokens behind `past` others. prompt: None where the cache was filled before an edit was attached."""

    past: int
    new: int
    prompt: Prompt | None
    began: int = 0
    """How many tokens of the prompt no pass under the edit has read."""

    def of(self, scope: str) -> slice | Tensor | None:
        """The edited columns of this pass: a slice of all rows alike, booleans [B, new], or None for none.

        Raises EditError where that cannot be known.
        """
        if self.prompt is None:
            if scope == "each_new_token":
                return slice(0, None)
            raise EditError(
                "the cache was filled before the edit was attached, so this token may be the prompt's last or a new one: "
                "call generate with the whole prompt, or read the prompt while the edit is attached"
            )
        first = self.prompt.length - 1 - self.past
        if not self.prompt.ragged or first < 0:
            start = max(first, 0)
            if start >= self.new or (scope == "last" and first < 0):
                return None
            return slice(start, start + 1 if scope == "last" else None)
        columns = torch.arange(self.past, self.past + self.new, device=self.prompt.ends.device)
        ends = self.prompt.ends[:, None]
        at = columns == ends
        return at if scope == "last" else at | (columns >= self.prompt.length)

    @property
    def ends_here(self) -> bool:
        """Whether this pass reads the last column of the prompt."""
        return self.prompt is not None and self.past < self.prompt.length <= self.past + self.new


def among_last(rows: slice | Tensor | None, new: int, read: int) -> slice | Tensor | None:
    """Rows of a pass over `new` tokens, counted in a layer that reads only the last of them, as Gemma 4's last layers do in `generate`."""
    dropped = new - read
    if rows is None or dropped <= 0:
        return rows
    if isinstance(rows, Tensor):
        return rows[:, dropped:]
    stop = None if rows.stop is None else rows.stop - dropped
    return None if stop is not None and stop <= 0 else slice(max(rows.start - dropped, 0), stop)


class PromptEnd:
    """Watches the passes of a model and says for the running one where its prompt ends.

    In `generate` the prompt is what generate was given, whatever pieces it is read in. Elsewhere it is what a pass without a
    cache behind it reads, to the last column of its attention mask.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        decoder = model.get_decoder()  # type: ignore[operator]
        self.chain = [m for m in model.modules() if m is decoder or any(inner is decoder for inner in m.modules())]
        self.place = Place(0, 0, None)
        self.asked = 0
        """How often a pass was asked for, whether it ran or was refused."""
        self._watchers: list[tuple[Before, After]] = []
        self._told: Prompt | None = None
        self._began: int | None = None
        self._depth = 0
        self._aside = False
        self._whole: Tensor | None = None
        self._hooks: list[Any] = []

    def install(self) -> None:
        for module in self.chain:
            self._hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._after, with_kwargs=True, always_call=True))
        for name, stand_in in (("generate", self._generate), ("generate_batch", _refuse), ("init_continuous_batching", _refuse)):
            if (original := getattr(self.model, name, None)) is not None:
                self._hooks.append(_Shadow(self.model, name, functools.wraps(original)(functools.partial(stand_in, original))))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def watch(self, before: Before, after: After) -> Iterator[None]:
        """Call `before` with each pass' module and its arguments by name once its place is known, and `after` behind it."""
        self._watchers.append((before, after))
        try:
            yield
        finally:
            self._watchers.remove((before, after))

    @contextmanager
    def told(self, prompt: Prompt) -> Iterator[None]:
        """Passes over this prompt and what follows it."""
        before, self._told, self._began = (self._told, self._began), prompt, None
        try:
            yield
        finally:
            self._told, self._began = before
            self._depth = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Passes within a pass, which are not the model's own."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        if self._told is not None:
            return original(*args, **kwargs)
        with self.told(prompt_of_generate(self.model, args, kwargs)):
            return original(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module is self.chain[0] and not self._aside:
            self._depth = 0
        self._depth += 1
        if self._depth > 1 or self._aside:
            return
        self.asked += 1
        given = by_name(module, args, kwargs)
        self.place = self._locate(given)
        for before, _ in self._watchers:
            before(module, given)

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        self._depth -= 1
        if self._depth or self._aside or out is None:
            return
        for _, after in self._watchers:
            after()
        cache = cache_of(kwargs) or getattr(out, CACHE, None)
        if cache is None and isinstance(out, tuple):
            cache = next((part for part in out if isinstance(part, Cache)), None)
        if cache is not None and self.place.prompt is not None:
            setattr(cache, MARK, (self.place.prompt, self.place.past + self.place.new, self.place.began))

    def _locate(self, given: dict[str, Any]) -> Place:
        ids, cache = given.get("input_ids"), cache_of(given)
        tokens = ids if ids is not None else given.get("inputs_embeds")
        if tokens is None:
            raise EditError("a pass without input_ids and inputs_embeds hides where the prompt ends: give one of them by name")
        past, new = 0 if cache is None else int(cache.get_seq_length()), tokens.shape[1]
        if any(name.startswith(("cu_seq_lens", "cu_seqlens")) for name, value in given.items() if value is not None):
            raise EditError("several prompts packed into one row hide where each ends: give one prompt for each row of a batch")
        if self._told is not None:
            self._began = past if self._began is None else self._began
            return Place(past, new, self._told, min(self._began, self._told.length))
        if past == 0:
            return Place(0, new, self._read(given, tokens, ids, cache))
        prompt, read, began = getattr(cache, MARK, (None, 0, 0))
        if prompt is not None and past < prompt.length and past == read:
            return Place(past, new, prompt, began)
        if past < getattr(prompt, "length", 0) or past > read:  # cropped into the prompt, or read on while nothing was attached
            prompt = None
        if new > 1:
            raise EditError(
                f"{new} tokens at once behind a cache may be prompt or answer: call generate with the whole prompt, which says where it "
                "ends, or give each prompt whole and from an empty cache, and then token by token"
            )
        return Place(past, new, prompt, began)

    def _read(self, given: dict[str, Any], tokens: Tensor, ids: Tensor | None, cache: Any) -> Prompt:
        """The prompt that a pass from an empty cache reads."""
        mask, whole = given.get("attention_mask"), self._whole
        if cache is None and whole is not None and tokens.ndim == whole.ndim and len(tokens) == len(whole):
            n = whole.shape[1]
            if tokens.shape[1] > n and bool((tokens[:, :n] == whole).all()):
                raise EditError(USE_CACHE)
        self._whole = tokens.detach() if cache is None else None
        if (packed := given.get("position_ids")) is not None and mask is None:
            rows = packed[0] if packed.ndim == 3 else packed
            if bool((rows[..., 1:] < rows[..., :-1]).any()):
                raise EditError("positions that start again hide where each prompt ends: give one prompt for each row of a batch")
        if mask is None:
            require_no_padding(self.model, ids)
        return _prompt(mask, tokens, ids)


def _refuse(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise EditError("continuous batching packs many prompts into one row, where an edit cannot find their ends: use generate")


class _Shadow:
    """A method of a module, replaced on this one object until `remove`."""

    def __init__(self, model: nn.Module, name: str, method: Callable[..., Any]):
        self.model, self.name, self.before = model, name, vars(model).get(name)
        vars(model)[name] = method

    def remove(self) -> None:
        del vars(self.model)[self.name]
        if self.before is not None:
            vars(self.model)[self.name] = self.before


_WATCHED: WeakKeyDictionary[nn.Module, tuple[PromptEnd, int]] = WeakKeyDictionary()
"""The models that an edit is attached to, and how many edits."""


@contextmanager
def prompt_end(model: nn.Module) -> Iterator[PromptEnd]:
    """The model's one watcher, while at least one edit is attached.

    Compiled parts of a model run uncompiled meanwhile: compiled code does not see hooks that come after it. Other threads' runs of the
    model are refused until the end.
    """
    with changed(model.get_decoder()):  # type: ignore[operator]
        yield from _prompt_end(model)


def _prompt_end(model: nn.Module) -> Iterator[PromptEnd]:
    end, users = _WATCHED.get(model, (None, 0))
    if end is None:
        end = PromptEnd(model)
        end.install()
    _WATCHED[model] = end, users + 1
    try:
        with torch.compiler.set_stance("force_eager"):
            yield end
    finally:
        users = _WATCHED[model][1] - 1
        if users:
            _WATCHED[model] = end, users
        else:
            del _WATCHED[model]
            end.remove()


def whole_prompt(model: nn.Module, inputs: Mapping[str, Any], length: int) -> AbstractContextManager[None]:
    """Passes over prompts of this many tokens and answers behind them, for whatever is attached to the model."""
    end = _WATCHED.get(model, (None, 0))[0]
    if end is None:
        return nullcontext()
    return end.told(_prompt(inputs["attention_mask"][:, :length], inputs["input_ids"][:, :length], inputs["input_ids"][:, :length]))


def require_none_attached(model: nn.Module) -> None:
    """Raise EditError where an edit is attached: a prompt that is read without its last token would be edited in the wrong place."""
    if model in _WATCHED:
        raise EditError(
            "an edit is attached to this model, and prompts that are read up to their last token would be edited in the wrong place: "
            "leave `attached` and give the edit as edit=..., or use path='reference'"
        )


def by_name(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass by their names."""
    if not args:
        return kwargs
    names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    return dict(zip(names, args, strict=False)) | kwargs


def prompt_of_generate(model: Any, args: tuple, kwargs: dict[str, Any]) -> Prompt:
    """The prompt that a call of `generate` was given, or EditError where the call hides its end."""
    given = dict(zip(("inputs", "generation_config"), args, strict=False)) | kwargs
    configs = (given.get("generation_config"), model.generation_config)

    def setting(name: str) -> Any:
        return next((v for v in (given.get(name), *(getattr(c, name, None) for c in configs)) if v is not None), None)

    if setting("use_cache") is False:
        raise EditError(USE_CACHE)
    if setting("token_healing"):
        raise EditError("token_healing takes tokens from the prompt's end: call generate without it")
    if setting("guidance_scale") not in (None, 1):
        raise EditError("guidance_scale runs a second prompt beside this one, which would not be edited: call generate without it")
    if setting("cache_implementation") == "paged":
        raise EditError("a paged cache packs many prompts into one row, where an edit cannot find their ends: use a dynamic cache")
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    ids = given.get("inputs") if ids is None else ids
    tokens = embeds if embeds is not None else ids
    if tokens is None:
        raise EditError("generate without input_ids and inputs_embeds hides where the prompt ends: give one of them")
    mask = given.get("attention_mask")
    if mask is None:
        require_no_padding(model, ids)
    ids = ids if ids is not None and ids.ndim == 2 and ids.shape[1] == tokens.shape[1] else None
    prompt = _prompt(mask, tokens, ids)
    if prompt.ragged:
        row = int((prompt.ends != prompt.length - 1).nonzero()[0])
        raise EditError(
            f"prompt {row} of the batch is padded on the right, and generate would go on behind its padding: pad on the left "
            "(processor(..., padding_side='left'), as vlm.encode does)"
        )
    return prompt


def _prompt(mask: Any, tokens: Tensor, ids: Tensor | None) -> Prompt:
    B, length = tokens.shape[:2]
    if mask is None:
        return Prompt(length, torch.full((B,), length - 1, device=tokens.device), ids, ragged=False)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise EditError("only an attention mask [B, T] says where each prompt ends: give that one")
    real = mask != 0
    if not bool(real.any(1).all()):
        raise EditError(f"the attention mask of prompt {int((~real.any(1)).nonzero()[0])} holds no token: give one that shows its tokens")
    total = mask.shape[1]
    ends = total - 1 - real.flip(1).int().argmax(1)
    ids = ids if ids is not None and ids.shape[1] == total else None
    return Prompt(total, ends.to(tokens.device), ids, ragged=bool((ends != total - 1).any()))


def require_no_padding(model: Any, ids: Tensor | None) -> None:
    """Raise EditError for prompts that end in padding tokens and come without a mask."""
    configs = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    pad = next((found for c in configs if (found := getattr(c, "pad_token_id", None)) is not None), None)
    if ids is None or pad is None or ids.ndim != 2:
        return
    padded = ids[:, -1] == pad
    if bool(padded.any()):
        raise EditError(f"prompt {int(padded.nonzero()[0])} of the batch ends in padding, and there is no mask: give its attention_mask")
