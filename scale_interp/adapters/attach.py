"""An edit on a plain transformers model, through forward hooks: no engine, no cache of ours, works with generate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditError, ModelError, RunWarning
from ..interventions.edit import Edit, affine
from ..interventions.prompt_end import prompt_end
from ..vlm.mode import require_ready


@contextmanager
def attach(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Run the model with one edit in place; hooks are removed at the end.

    The prompt's last token is found for each row of a batch, see `PromptEnd`; tokens after it are edited only in scope
    "each_new_token". Raises EditError where it cannot be known, and where a layer of the edit did not run.
    """
    if edit.n_variants != 1:
        raise EditError(f"only one edit can be attached, not {edit.n_variants}: pick one with edit[i]")
    require_model(model)
    model = getattr(model, "_orig_mod", model)
    require_ready(model)
    decoder = model.get_decoder()  # type: ignore[operator]
    H = model.config.get_text_config().num_attention_heads  # type: ignore[operator, union-attr]
    edit.check(1, len(decoder.layers), H, decoder.layers[0].self_attn.o_proj.in_features // H)
    with prompt_end(model) as end:
        acted, rows, hooks = _Acted(model), _Rows(), []
        for number, layer in enumerate(decoder.layers):
            part = edit.part(number, torch.zeros(1, dtype=torch.long), torch.zeros(1), slice(None))
            if part is not None and (part.scale is not None or part.shift is not None):
                ran = acted.expect(f"layers.{number}.self_attn.o_proj")
                hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(_heads(rows, part.scale, part.shift, H, ran)))
            if part is not None and part.mlp_scale is not None:
                hooks.append(layer.mlp.register_forward_hook(_mlp(rows, part.mlp_scale, acted.expect(f"layers.{number}.mlp"))))

        def before(module: nn.Module, given: dict[str, Any]) -> None:
            acted.ran.clear()
            rows.chosen = end.place.of(edit.scope)

        asked = end.asked
        try:
            with end.watch(before, acted.check):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        if end.asked == asked:
            warnings.warn(
                f"no forward pass of this {type(model).__name__} ran while an edit was attached to it: what ran in its place, if anything "
                "(an exported, traced or copied model), was not edited",
                RunWarning,
                stacklevel=3,
            )


def require_model(model: Any) -> None:
    """Raise ModelError for anything that is no transformers model with a text decoder."""
    if not isinstance(model, nn.Module) or not hasattr(model, "get_decoder"):
        raise ModelError(f"cannot attach to a {type(model).__name__}: give a VLM, as si.load returns it, or its transformers model")


class _Rows:
    """Which columns of the running pass are edited: a slice, booleans [B, S], or None."""

    chosen: slice | Tensor | None = None

    def apply(self, whole: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor | None:
        """`whole` [B, S, ...] with the chosen rows changed; None where there are none."""
        rows = self.chosen
        if rows is None:
            return None
        if isinstance(rows, Tensor):
            return torch.where(rows.to(whole.device)[..., None], change(whole), whole)
        edited = change(whole[:, rows])
        return torch.cat([whole[:, : rows.start], edited, whole[:, rows.start + edited.shape[1] :]], 1)


class _Acted:
    """The edited modules, each of which every pass must run."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.expected: list[str] = []
        self.ran: set[str] = set()

    def expect(self, name: str) -> Callable[[], None]:
        """What the module of this name calls when it runs."""
        self.expected.append(name)
        return lambda: self.ran.add(name)

    def check(self) -> None:
        """Raise EditError where a module did not run in the pass that has ended."""
        missing = [name for name in self.expected if name not in self.ran]
        if missing:
            raise EditError(
                f"{missing[0]} is one of {len(missing)} of {len(self.expected)} edited modules that did not run in this pass, so the edit "
                f"did not act there: {_reason(self.model)}"
            )


def _reason(model: nn.Module) -> str:
    scripted = next((name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        return f"{scripted} was traced or scripted by torch.jit: attach to the model as transformers loads it"
    return "they were skipped, or an exported graph or fused kernel computes them: attach to the model as transformers loads it"


def _heads(rows: _Rows, scale: Tensor | None, shift: Tensor | None, n_heads: int, ran: Callable[[], None]) -> Callable:
    def change(z: Tensor) -> Tensor:
        return affine(z.unflatten(-1, (n_heads, -1)), scale, shift).flatten(-2)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        ran()
        edited = rows.apply(args[0], change)
        return None if edited is None else (edited, *args[1:])

    return hook


def _mlp(rows: _Rows, factor: Tensor, ran: Callable[[], None]) -> Callable:
    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        ran()
        first, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        edited = rows.apply(first, lambda part: (part * factor.to(part.device)).to(part.dtype))
        return edited if edited is None or rest is None else (edited, *rest)

    return hook
