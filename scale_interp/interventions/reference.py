"""The reference path: one full forward pass per edit, nothing cached, one question at a time.

It is deliberately simple and slow: everything fast is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.question import Question
from ..vlm.decoder import mlp_rows, with_mlp_rows
from ..vlm.vlm import VLM
from .choices import Scoring, as_likelihoods, choice_sequences
from .edit import LayerEdit, Variants, affine
from .knockout.cut import cut_whole
from .knockout.edit import AttentionEdit
from .prefix import with_answer
from .prompt_end import whole_prompt


def run_reference(
    vlm: VLM, question: Question, row: int, edit: Variants | None, variants: Int[Tensor, " variants"], scoring: Scoring = "auto"
) -> Float[Tensor, "runs choices"]:
    """Choice scores of one question under each of the given variants.

    Args:
        vlm: The model.
        question: The question.
        row: Its number among the caller's questions.
        edit: The edit, or None for one clean run.
        variants: The numbers of the variants, [n].
        scoring: How choices are scored.

    Returns:
        [n, C]; [1, C] for a clean run.
    """
    if edit is None:
        return _scores(vlm, question, None, "last", scoring)[None]
    starts = edit.starts(vlm.n_layers)
    out = []
    for variant in variants:
        parts = {}
        for layer in range(vlm.n_layers):
            part = edit.part(layer, variant[None], starts[variant][None], slice(row, row + 1))
            if part is not None:
                parts[layer] = part
        with cut_whole(vlm, question, edit, int(variant)) if isinstance(edit, AttentionEdit) else nullcontext():
            out.append(_scores(vlm, question, parts, edit.scope, scoring))
    return torch.stack(out)


def _scores(vlm: VLM, question: Question, parts: dict[int, LayerEdit] | None, scope: str, scoring: Scoring) -> Tensor:
    return scores_of(vlm, question, scoring, lambda inputs, T: forward(vlm, inputs, parts or {}, T, scope))


def scores_of(vlm: VLM, question: Question, scoring: Scoring, run: Callable[[dict[str, Tensor], int], Tensor]) -> Float[Tensor, " choices"]:
    """Choice scores of one question, from logits [1, T + k, V] that run(inputs, T) gives for the prompt of T tokens and k of an answer."""
    sequences = choice_sequences(vlm, question, scoring)
    prompt = dict(vlm.encode(question))
    T = prompt["input_ids"].shape[1]
    if not as_likelihoods(sequences, scoring):
        logits = run(prompt, T)[0, -1].float()
        return logits[torch.tensor([ids[0] for ids in sequences], device=logits.device)]
    scores = []
    for ids in sequences:
        inputs = with_answer(vlm, prompt, torch.tensor([ids[:-1]], dtype=torch.long, device=vlm.device))
        logits = run(inputs, T)[0, T - 1 :].float().log_softmax(-1)
        likelihood = logits[torch.arange(len(ids)), torch.tensor(ids, device=logits.device)].sum()
        scores.append(likelihood / len(ids) if scoring == "mean" else likelihood)
    return torch.stack(scores)


def forward(vlm: VLM, inputs: dict[str, Tensor], parts: dict[int, LayerEdit], T: int, scope: str) -> Float[Tensor, "1 tokens vocabulary"]:
    """Logits [1, T + k, V] of a full forward pass, with the edit at the prompt's last token and, by scope, after it."""
    end, found = T if scope == "last" else None, []
    # Behind hooks of others on the whole model, whose work a trace's own output would leave out.
    hook = vlm.hf_model.register_forward_hook(lambda module, args, out: found.append(out.logits))
    try:
        _traced(vlm, inputs, parts, T, end)
    finally:
        hook.remove()
    return found[-1]


def _traced(vlm: VLM, inputs: dict[str, Tensor], parts: dict[int, LayerEdit], T: int, end: int | None) -> None:
    with vlm.alone(), whole_prompt(vlm.hf_model, inputs, T), vlm.nn.trace(**inputs, use_cache=False):
        for number, block in enumerate(vlm.head_layers):
            part, layer = parts.get(number), vlm.layers[block.number]
            if part is not None and (part.scale is not None or part.shift is not None):
                output = block.output(layer)
                z = output.input
                shift = None if part.shift is None else part.shift[..., : block.head_dim]
                edited = affine(block.split(z[:, T - 1 : end]), part.scale, shift).flatten(2)
                output.input = _splice(z, edited, T)
            if part is not None and part.mlp_scale is not None and block.edits_mlp(part.mlp_scale):
                mlp = block.mlp(layer)
                out = mlp_rows(mlp.output, 1)
                edited = out[:, T - 1 : end] * part.mlp_scale.to(out.device)
                mlp.output = with_mlp_rows(mlp.output, _splice(out, edited.to(out.dtype), T))


def _splice(whole: torch.Tensor, edited: Tensor, T: int) -> Tensor:
    return torch.cat([whole[:, : T - 1], edited, whole[:, T - 1 + edited.shape[1] :]], 1)
