"""Head outputs and MLP outputs of the last token, or of a token group, in whole forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import Count, OwnCheck, checked
from ..core.notebook import NotebookView
from ..data.items import require
from ..data.question import Question
from ..data.wording import short
from ..errors import DataError
from ..execution.batches import BatchResult, Rows, SingleQuestions, Work, map_batches
from ..execution.memory import in_halves
from ..vlm.decoder import mlp_rows
from ..vlm.token_groups import At, positions_at
from ..vlm.vlm import VLM
from .choices import read_choices
from .edit import Component
from .paths import join


@dataclass(frozen=True)
class Activations(NotebookView):
    """What heads and MLPs compute at the last token of each prompt.

    Attributes:
        z: Head outputs before W_O, [Q, L, H, D].
        mlp: MLP outputs, [Q, L, d_model].
        logits: Logits of the choices' first tokens, [Q, C]; -inf where a question has fewer choices.

    >>> import scale_interp as si
    >>> found = si.capture(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> found.z.shape, len(found.logits)
    (torch.Size([4, 6, 8, 16]), 4)
    """

    z: Float[Tensor, "questions layers heads head_dim"]
    mlp: Float[Tensor, "questions layers width"]
    logits: Float[Tensor, "questions choices"]

    def __repr__(self) -> str:
        return f"<Activations z {list(self.z.shape)}, mlp {list(self.mlp.shape)}, logits {list(self.logits.shape)}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        axes = {"z": "questions, layers, heads, numbers per head", "mlp": "questions, layers, numbers", "logits": "questions, choices"}
        return ({"part": name, "shape": str(list(getattr(self, name).shape)), "axes": axes_of} for name, axes_of in axes.items())


@overload
def capture(
    vlm: VLM, questions: Question | Sequence[Question], batch_size: int = 16, *, at: At = "last", each: Literal[False] = False
) -> Activations: ...
@overload
def capture(
    vlm: VLM, questions: Question | Sequence[Question], batch_size: int = 16, *, at: At = "last", each: Literal[True]
) -> list[Activations]: ...
@checked
def capture(
    vlm: VLM,
    questions: Question | Sequence[Question],
    batch_size: Count = 16,
    *,
    at: Annotated[At, OwnCheck()] = "last",
    each: bool = False,
) -> Activations | list[Activations]:
    """Read head outputs and MLP outputs in full, unedited forward passes.

    Questions whose prompts have the same length share a batch, so padding does not affect the numbers.

    Args:
        vlm: The model.
        questions: One question or several.
        batch_size: The largest number of questions per forward pass.
        at: Which tokens: "last", another group of `vlm.token_groups`, a list of groups, or token numbers.
        each: Whether every token is returned rather than the mean over the group's tokens.

    Returns:
        The activations, one row per question; with each=True a list with one Activations per question, one row per token, whose logits
        are the question's.

    Raises:
        DataError: A question does not fit the model or has no such tokens, or there are no questions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> si.capture(vlm, qs).z.shape
    torch.Size([4, 6, 8, 16])
    >>> si.capture(vlm, qs, at="image").mlp.shape, len(si.capture(vlm, qs[0], at="image", each=True)[0].z)
    (torch.Size([4, 6, 128]), 49)
    """
    questions = require(questions)
    if each:
        single = map_batches(vlm, SingleQuestions(questions), partial(each_token_work, at=at), "reading activations")
        return [Activations(part["z"], part["mlp"], part["logits"].expand(len(part["z"]), -1)) for part in single]
    batches = Rows.of_equal_length(vlm, questions, batch_size)
    work: Work = capture_work if at == "last" else partial(capture_at_work, at=at)
    found = [*map_batches(vlm, batches, work, "reading activations")]
    z, mlp, logits = (batches.restore([part[name] for part in found]) for name in ("z", "mlp", "logits"))
    C = max(map(len, logits))
    padded = [torch.nn.functional.pad(row, (0, C - len(row)), value=float("-inf")) for row in logits]
    return Activations(torch.stack(z), torch.stack(mlp), torch.stack(padded))


def capture_work(vlm: VLM, questions: Sequence[Question]) -> BatchResult:
    """Activations of one batch of prompts with the same length: z [B, L, H, D], mlp [B, L, d_model], logits [B, C]."""
    return _joined(in_halves(vlm, questions, partial(_last_token, vlm)))


def _joined(parts: Sequence[BatchResult]) -> BatchResult:
    """Parts of a batch as one, with -inf where a part has fewer choices."""
    return {name: (join if name == "logits" else torch.cat)([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def _last_token(vlm: VLM, questions: Sequence[Question]) -> BatchResult:
    inputs = vlm.encode(questions)
    heads, mlps = [], []
    with vlm.nn.trace(**inputs, use_cache=False):
        for block in vlm.head_layers:
            layer = vlm.layers[block.number]
            heads.append(block.split(block.output(layer).input[:, -1].clone().cpu(), vlm.head_dim))
            if block.mlp_name is not None:
                mlps.append(mlp_rows(block.mlp(layer).output, len(questions))[:, -1].clone().cpu())
        logits = vlm.nn.output.logits[:, -1].clone().save()
    z = torch.stack(heads, 1)
    scores = _choice_logits(vlm, questions, inputs["input_ids"][:, -1], logits)
    mlp = torch.stack(mlps, 1) if mlps else z.new_full((*z.shape[:2], vlm.d_model), float("nan"))
    return {"z": z, "mlp": mlp, "logits": scores}


def capture_at_work(vlm: VLM, questions: Sequence[Question], at: At) -> BatchResult:
    """The same with the mean over the tokens that `at` names."""
    return _joined(in_halves(vlm, questions, lambda part: _mean_at(vlm, part, at)))


@torch.no_grad()
def _mean_at(vlm: VLM, questions: Sequence[Question], at: At) -> BatchResult:
    places = [positions_at(vlm, q, at) for q in questions]
    for question, place in zip(questions, places, strict=True):
        if not place:
            raise DataError(f"question {question.id}: at={short(at)} names no token; name one at least")
    values, logits = token_values(vlm, questions, ("head", "mlp"))
    z, mlp = (torch.stack([part[:, q, place].mean(1) for q, place in enumerate(places)]) for part in (values["head"], values["mlp"]))
    return {"z": z.unflatten(-1, (vlm.n_heads, vlm.head_dim)), "mlp": mlp, "logits": logits}


@torch.no_grad()
def each_token_work(vlm: VLM, batch: tuple[int, Question], at: At) -> BatchResult:
    """One question's tokens: z [P, L, H, D], mlp [P, L, d_model], logits [1, C]."""
    place = positions_at(vlm, batch[1], at)
    values, logits = token_values(vlm, [batch[1]], ("head", "mlp"))
    z, mlp = (values[name][:, 0, place].transpose(0, 1) for name in ("head", "mlp"))
    return {"z": z.unflatten(-1, (vlm.n_heads, vlm.head_dim)), "mlp": mlp, "logits": logits}


def token_values(vlm: VLM, questions: Sequence[Question], components: Sequence[Component]) -> tuple[dict[str, Tensor], Tensor]:
    """What components compute at every token of prompts of one length.

    Returns:
        Component -> values [L, B, T, F], and the logits of the choices' first tokens [B, C].
    """
    vlm.require_no_traced_edits()
    inputs = vlm.encode(questions)
    found: dict[str, list[Tensor]] = {name: [] for name in components}
    hooks = []

    def keep(name: str, value: Any) -> None:
        found[name].append((value[0] if isinstance(value, tuple) else value).clone())

    for block in vlm.head_layers:
        if "resid" in found:
            first = lambda _, args, kwargs: keep("resid", args or kwargs["hidden_states"])  # noqa: E731
            hooks.append(block.module.register_forward_pre_hook(first, with_kwargs=True))
        if "head" in found:
            heads = lambda _, args, block=block: keep("head", block.split(args[0], vlm.head_dim).flatten(-2))  # noqa: E731
            hooks.append(block.output().register_forward_pre_hook(heads))
        if "attn" in found:
            hooks.append(block.output().register_forward_hook(lambda _, __, out: keep("attn", out)))
        if "mlp" in found:
            hooks.append(block.mlp().register_forward_hook(lambda _, __, out: keep("mlp", mlp_rows(out, len(questions)))))
    try:
        with vlm.alone():
            logits = vlm.hf_model(**inputs, use_cache=False).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()
    stacked = {name: torch.stack([part.to(logits.device) for part in parts]) for name, parts in found.items()}
    return stacked, _choice_logits(vlm, questions, inputs["input_ids"][:, -1], logits)


def _choice_logits(vlm: VLM, questions: Sequence[Question], last: Tensor, logits: Tensor) -> Tensor:
    choices = read_choices(vlm, questions, last)
    first = choices.token[..., 0].to(logits.device)
    return logits.gather(1, first).float().masked_fill(~choices.used[..., 0].to(logits.device), float("-inf"))
