"""An edit on a plain transformers model, through forward hooks: no engine, no cache of ours, works with generate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.question import Question
from ..errors import EditError, ModelError, RunWarning
from ..interventions.edit import Edit, affine, positioned
from ..interventions.prompt_end import Place, among_last, prompt_end
from ..vlm.decoder import Decoder, HeadLayer, mlp_rows, with_mlp_rows
from ..vlm.families import describe
from ..vlm.mode import require_ready
from ..vlm.token_groups import positions_at
from ..vlm.vlm import VLM

Known = Mapping[tuple[int, ...], Sequence[int]]
"""The edited tokens of prompts, by their token ids."""


def known_prompts(vlm: VLM | nn.Module, at: str, questions: Sequence[Question]) -> Known | None:
    """The edited tokens of these questions' prompts, for an edit at a token group; None for the last token, which any prompt shows.

    Raises:
        EditError: There are no questions, or only the transformers model.
    """
    if at == "last":
        return None
    if not isinstance(vlm, VLM) or not questions:
        raise EditError(
            f"this edit acts at the token group {at!r}, which the token ids of a pass do not name: give attached(vlm, questions) the VLM "
            "and the questions that will be asked, or run it with edit=..."
        )
    return {tuple(vlm.encode(q)["input_ids"][0].tolist()): positions_at(vlm, q, at) for q in questions}


@contextmanager
def attach(model: nn.Module, edit: Edit, known: Known | None = None) -> Iterator[None]:
    """Run the model with one edit in place; hooks are removed at the end.

    The prompt's last token is found for each row of a batch, see `PromptEnd`; tokens after it are edited only in scope
    "each_new_token". Raises EditError where it cannot be known, and where a layer of the edit did not run.
    """
    if positioned(edit) and known is None:
        raise EditError("an edit at other tokens than the last one is attached by ScAle.attached or Steering.attached, with the questions")
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
            if part is not None and part.mlp_scale is not None and block.edits_mlp(part.mlp_scale):
                ran = acted.expect(f"{parts.layers_name}.{block.number}.{block.mlp_name}")
                hooks.append(block.mlp().register_forward_hook(_mlp(rows, part.mlp_scale, ran)))

        def before(module: nn.Module, given: dict[str, Any]) -> None:
            acted.ran.clear()
            rows.chosen = end.place.of(edit.scope) if known is None else _known_columns(model, end.place, known)
            rows.new = end.place.new
            tokens = given.get("input_ids")
            rows.batch = len(given["inputs_embeds"] if tokens is None else tokens)
            if known is not None and isinstance(rows.chosen, Tensor):
                rows.chosen = rows.chosen.repeat_interleave(rows.batch // len(rows.chosen), 0)  # beams of one prompt are adjacent

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


def _known_columns(model: Any, place: Place, known: Known) -> Tensor | None:
    """The edited columns of the running pass [B, new], found by the prompts' token ids; None where it reads no prompt."""
    prompt = place.prompt
    if prompt is None or prompt.ids is None:
        raise EditError("the token ids of this prompt are not known, so its token group is not: generate from input_ids, in one piece")
    if place.past >= prompt.length:
        return None
    pad = model.generation_config.pad_token_id if model.config.get_text_config().pad_token_id is None else None
    pad = model.config.get_text_config().pad_token_id if pad is None else pad
    chosen = torch.zeros(len(prompt.ids), place.new, dtype=torch.bool)
    for b, (ids, end) in enumerate(zip(prompt.ids.tolist(), prompt.ends.tolist(), strict=True)):
        whole = ids[: end + 1]
        start = next((i for i in range(len(whole)) if tuple(whole[i:]) in known and all(t == pad for t in whole[:i])), None)
        if start is None:
            raise EditError(
                "a prompt is read that is none of the questions given to attached(vlm, questions), so its token group is not known: give "
                "its question too"
            )
        for position in known[tuple(whole[start:])]:
            if place.past <= start + position < place.past + place.new:
                chosen[b, start + position - place.past] = True
    return chosen


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
