"""Heads' outputs while the model answers: at the prompt's last token, at the answer's last, or over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ..core.arguments import Count, Raises, checked
from ..data.items import require
from ..data.question import Question
from ..errors import DataError
from ..execution.batches import BatchResult, Rows, map_batches
from ..interventions.capture import capture
from ..vlm.generation import neutral
from ..vlm.vlm import VLM

Positions = Annotated[Literal["first", "last", "all"], Raises(DataError)]


@checked
def answer_activations(
    vlm: VLM, questions: Sequence[Question], positions: Positions = "all", *, max_new_tokens: Count = 8, batch_size: Count = 16
) -> Tensor:
    """z [Q, L, H, D] before W_O, averaged over the tokens of the model's own greedy answer.

    "first": the prompt's last token, from which the answer's first word is read; "last": the answer's last token; "all":
    the mean over both and the tokens between, one for each forward pass up to the end token (CogQA pipeline,
    arXiv 2512.10978). Tokens after the end do not count. The answer is the model's and never taught, so that z does not
    hold the right one.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=2)
    >>> answer_activations(vlm, qs, "all").shape
    torch.Size([2, 6, 8, 16])
    """
    questions = require(questions)
    if positions == "first":
        return capture(vlm, questions, batch_size).z
    batches = Rows.of_equal_length(vlm, questions, batch_size)
    found = map_batches(vlm, batches, partial(answer_work, positions=positions, max_new_tokens=max_new_tokens), "reading answers")
    return torch.stack(batches.restore([part["z"] for part in found]))


@torch.no_grad()
def answer_work(vlm: VLM, questions: Sequence[Question], positions: Positions, max_new_tokens: int) -> BatchResult:
    z, told = _answer(vlm, questions, max_new_tokens)
    if positions == "last":
        return {"z": z[torch.arange(len(questions)), told.sum(1) - 1]}
    return {"z": (z * told[..., None, None, None]).sum(1) / told.sum(1)[:, None, None, None]}


def _answer(vlm: VLM, questions: Sequence[Question], max_new_tokens: int) -> tuple[Tensor, Tensor]:
    """z [B, T, L, H, D] at the last position of each forward pass, and which passes belong to the answer [B, T]."""
    inputs = vlm.encode(questions)
    with neutral(vlm.hf_model), _recording(vlm) as passes:
        ids = vlm.hf_model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    T = len(passes[0])
    z = torch.stack([torch.stack(layer, 1) for layer in passes], 2).float().unflatten(-1, (vlm.n_heads, vlm.head_dim))
    ends = vlm.hf_model.generation_config.eos_token_id
    ends = vlm.tokenizer.eos_token_id if ends is None else ends
    new = ids[:, inputs["input_ids"].shape[1] :][:, : T - 1]
    over = torch.isin(new.cpu(), torch.tensor(ends)).cumsum(1) > 0
    return z, torch.cat([torch.ones(len(questions), 1, dtype=torch.bool), ~over], 1)


@contextmanager
def _recording(vlm: VLM) -> Iterator[list[list[Tensor]]]:
    """The input of every o_proj at the last position of each pass, a list a layer."""
    passes: list[list[Tensor]] = [[] for _ in vlm.decoder.layers]

    def keep(into: list[Tensor]) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            into.append(args[0][:, -1].clone().cpu())

        return hook

    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(keep(into)) for layer, into in zip(vlm.decoder.layers, passes, strict=True)]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that come after it
            yield passes
    finally:
        for hook in hooks:
            hook.remove()
