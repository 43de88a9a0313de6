"""An edit on a plain transformers model, through forward hooks: no engine, no cache of ours, works with generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditError, ModelError
from ..interventions.edit import Edit, affine


@contextmanager
def attach(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Run the model with one edit in place; hooks are removed at the end.

    The prompt's last token is position -1 of a pass without a cache behind it; tokens of later passes are new tokens,
    edited only in scope "each_new_token". Prompts of one batch must be left-padded, as for generate.
    """
    if edit.n_variants != 1:
        raise EditError(f"only one edit can be attached, not {edit.n_variants}: pick one with edit[i]")
    require_model(model)
    decoder = model.get_decoder()  # type: ignore[operator]
    H = model.config.get_text_config().num_attention_heads  # type: ignore[operator, union-attr]
    edit.check(1, len(decoder.layers), H, decoder.layers[0].self_attn.o_proj.in_features // H)
    region = _Region(edit.scope)
    hooks = [decoder.register_forward_pre_hook(region.locate, with_kwargs=True)]
    for number, layer in enumerate(decoder.layers):
        part = edit.at(number, torch.zeros(1, dtype=torch.long), torch.zeros(1), slice(None))
        if part is not None and (part.scale is not None or part.shift is not None):
            hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(_heads(region, part.scale, part.shift, H)))
        if part is not None and part.mlp_scale is not None:
            hooks.append(layer.mlp.register_forward_hook(_mlp(region, part.mlp_scale)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_model(model: Any) -> None:
    """Raise ModelError for anything that is no transformers model with a text decoder."""
    if not isinstance(model, nn.Module) or not hasattr(model, "get_decoder"):
        raise ModelError(f"cannot attach to a {type(model).__name__}: give a VLM, as si.load returns it, or its transformers model")


class _Region:
    """Which positions of the running forward pass are edited: `start` counts from the end, None for none."""

    def __init__(self, scope: str):
        self.scope = scope
        self.start: int | None = -1
        self.uncached_length: int | None = None

    def locate(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        given = [*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")]
        length = next(x for x in given if x is not None).shape[1]
        if cache is not None and cache.get_seq_length() > 0:
            self.start = None if self.scope == "last" else -length
            return
        if cache is None and self.uncached_length is not None and length == self.uncached_length + 1:
            raise EditError("generating without a cache hides where the prompt ends: call generate with use_cache=True")
        self.uncached_length = length if cache is None else None
        self.start = -1


def _heads(region: _Region, scale: Tensor | None, shift: Tensor | None, n_heads: int) -> Callable:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if region.start is None:
            return None
        z = args[0]
        edited = affine(z[:, region.start :].unflatten(-1, (n_heads, -1)), scale, shift).flatten(-2)
        return (torch.cat([z[:, : region.start], edited], 1), *args[1:])

    return hook


def _mlp(region: _Region, factor: Tensor) -> Callable:
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        if region.start is None:
            return None
        edited = (out[:, region.start :] * factor.to(out.device)).to(out.dtype)
        return torch.cat([out[:, : region.start], edited], 1)

    return hook
