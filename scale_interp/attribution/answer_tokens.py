"""Heads' outputs while the model answers: at the prompt's last token, the answer's last, or the mean over both and those between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.arguments import Count, Raises, checked
from ..data.items import require
from ..data.question import Question
from ..errors import DataError
from ..execution.batches import BatchResult, Rows, map_batches
from ..interventions.capture import capture
from ..vlm.decoder import HeadLayer
from ..vlm.generation import neutral
from ..vlm.vlm import VLM

Positions = Annotated[Literal["first", "last", "all"], Raises(DataError)]


@checked
def answer_activations(
    vlm: VLM, questions: Sequence[Question], positions: Positions = "all", *, max_new_tokens: Count = 8, batch_size: Count = 16
) -> Float[Tensor, "questions layers heads dim"]:
    """Read z, the heads' outputs before W_O, averaged over the tokens of the model's own greedy answer (CogQA pipeline, arXiv 2512.10978).

    The answer is the model's own and is never forced, so z does not contain the right one. Tokens after the end token do not count.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        positions: "first", the prompt's last token, from which the answer's first token is read; "last", the answer's last token;
            or "all", the mean over these and the tokens between, one per forward pass.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions per forward pass.

    Returns:
        z [Q, L, H, D].

    Raises:
        DataError: for unknown positions.

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
    """One batch's z at the given positions."""
    z, in_answer = _answer(vlm, questions, max_new_tokens)
    if positions == "last":
        return {"z": z[torch.arange(len(questions)), in_answer.sum(1) - 1]}
    return {"z": (z * in_answer[..., None, None, None]).sum(1) / in_answer.sum(1)[:, None, None, None]}


def _answer(vlm: VLM, questions: Sequence[Question], max_new_tokens: int) -> tuple[Tensor, Tensor]:
    """z [B, T, L, H, D] at the last position of each forward pass, and which passes belong to the answer [B, T]."""
    inputs = vlm.encode(questions)
    with neutral(vlm.hf_model), _recording(vlm) as passes:
        ids = vlm.hf_model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    T = len(passes[0])
    z = torch.stack([torch.stack(layer, 1) for layer in passes], 2).float()
    ends = vlm.hf_model.generation_config.eos_token_id
    ends = vlm.tokenizer.eos_token_id if ends is None else ends
    new = ids[:, inputs["input_ids"].shape[1] :][:, : T - 1]
    ended = torch.isin(new.cpu(), torch.tensor(ends)).cumsum(1) > 0
    return z, torch.cat([torch.ones(len(questions), 1, dtype=torch.bool), ~ended], 1)


@contextmanager
def _recording(vlm: VLM) -> Iterator[list[list[Tensor]]]:
    """The heads [B, H, D] at the last position of each forward pass, one list per layer."""
    passes: list[list[Tensor]] = [[] for _ in vlm.head_layers]

    def keep(block: HeadLayer, into: list[Tensor]) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            into.append(block.split(args[0][:, -1].clone().cpu(), vlm.head_dim))

        return hook

    hooks = [b.output().register_forward_pre_hook(keep(b, into)) for b, into in zip(vlm.head_layers, passes, strict=True)]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that come after it
            yield passes
    finally:
        for hook in hooks:
            hook.remove()
