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
from ..interventions.prompt_end import among_last, prompt_end
from ..vlm.decoder import Decoder, HeadLayer, mlp_rows, with_mlp_rows
from ..vlm.families import describe
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
    parts: Decoder = describe(model, type(model).__name__)  # type: ignore[arg-type]
    edit.check(1, len(parts.heads), parts.heads[0].n_heads, max(block.head_dim for block in parts.heads))
    with prompt_end(model) as end:
        acted, rows, hooks = _Acted(model), _Rows(), []
        for number, block in enumerate(parts.heads):
            part = edit.part(number, torch.zeros(1, dtype=torch.long), torch.zeros(1), slice(None))
            if part is not None and (part.scale is not None or part.shift is not None):
                ran = acted.expect(f"{parts.layers_name}.{block.number}.{block.attention_name}.{block.output_name}")
                hooks.append(block.output().register_forward_pre_hook(_heads(rows, part.scale, part.shift, block, ran)))
            if part is not None and part.mlp_scale is not None:
                ran = acted.expect(f"{parts.layers_name}.{block.number}.{block.mlp_name}")
                hooks.append(block.mlp().register_forward_hook(_mlp(rows, part.mlp_scale, ran)))

        def before(module: nn.Module, given: dict[str, Any]) -> None:
            acted.ran.clear()
            rows.chosen, rows.new = end.place.of(edit.scope), end.place.new
            tokens = given.get("input_ids")
            rows.batch = len(given["inputs_embeds"] if tokens is None else tokens)

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
    new: int = 0
    """The tokens that the running pass reads."""
    batch: int = 1
    """The prompts of the running pass."""

    def apply(self, whole: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor | None:
        """`whole` [B, S, ...] with the chosen rows changed; None where there are none."""
        rows = among_last(self.chosen, self.new, whole.shape[1])
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


def _heads(rows: _Rows, scale: Tensor | None, shift: Tensor | None, block: HeadLayer, ran: Callable[[], None]) -> Callable:
    shift = None if shift is None else shift[..., : block.head_dim]

    def change(z: Tensor) -> Tensor:
        return affine(block.split(z), scale, shift).flatten(-2)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        ran()
        edited = rows.apply(args[0], change)
        return None if edited is None else (edited, *args[1:])

    return hook


def _mlp(rows: _Rows, factor: Tensor, ran: Callable[[], None]) -> Callable:
    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        ran()
        edited = rows.apply(mlp_rows(out, rows.batch), lambda part: (part * factor.to(part.device)).to(part.dtype))
        return None if edited is None else with_mlp_rows(out, edited)

    return hook
