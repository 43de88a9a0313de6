"""The two ways to run N edits on Q questions: packed after prompts that are read once, or one full forward pass per edit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..core.progress import track
from ..core.there import there
from ..data.question import Question
from ..errors import MemoryWarning, ModelError
from ..execution.batches import BatchResult, SingleQuestions, map_batches
from ..execution.memory import in_ranges, release, working_bytes
from ..vlm.decoder import setting, stream_of
from ..vlm.vlm import VLM
from .choices import Scoring
from .edit import Variants
from .packed import run_packed
from .prefix import Prefix, PrefixStore
from .reference import run_reference


def packed(vlm: VLM, prompts: PrefixStore, edit: Variants | None, what: str) -> tuple[Tensor, Tensor]:
    """Edited scores [Q, N, C], and for each the clean score of the same packed call."""
    found = [*map_batches(vlm, prompts, partial(packed_work, edit=edit), what)]
    return _joined(vlm, found)


@torch.no_grad()
def packed_work(vlm: VLM, prefix: Prefix, edit: Variants | None) -> BatchResult:
    """Edited and clean scores [B, N, C] of one batch of prompts, on the packed path."""
    edited, clean = packed_batch(vlm, prefix, edit)
    check_finite(vlm, prefix.questions, edited, edit, prefix.rows.start or 0)
    return {"edited": edited, "clean": clean}


def with_graph(vlm: VLM, prompts: PrefixStore, edit: Variants | None, what: str) -> tuple[Tensor, Tensor]:
    """The same for edits that require gradients: in this process, with everything in memory."""

    def run(prefix: Prefix) -> tuple[Tensor, Tensor]:
        with vlm.alone():
            return packed_batch(vlm, prefix, edit)

    edited, clean = zip(*(run(prefix) for prefix in track(prompts, what, len(prompts))), strict=True)
    return join(edited), join(clean)


def packed_batch(vlm: VLM, prefix: Prefix, edit: Variants | None) -> tuple[Tensor, Tensor]:
    """Run all variants on one batch of prompts, in chunks that fit in memory.

    If memory runs out nevertheless, the chunk is halved, for later calls as well (`vlm.measured`), and of one variant the questions are.

    Args:
        vlm: The model.
        prefix: B prompts that were read.
        edit: The edit, or None for an unedited run.

    Returns:
        Edited and clean scores, each [B, N, C].

    Raises:
        ModelError: There is not enough memory for a single variant of one question.
    """
    found = in_ranges(vlm, prefix.questions, lambda start, stop: _in_chunks(vlm, prefix.part(start, stop), edit))
    return found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))  # type: ignore[return-value]


def _in_chunks(vlm: VLM, prefix: Prefix, edit: Variants | None) -> tuple[Tensor, Tensor]:
    if edit is None:
        unedited = run_packed(vlm, prefix, None)[0][:, None]
        return unedited, unedited
    by_start = edit.starts(vlm.n_layers).argsort(stable=True)
    edited: list[Tensor] = []
    clean: list[Tensor] = []
    done, at_once = 0, variants_at_once(vlm, prefix)
    while done < len(by_start):
        chunk = by_start[done : done + at_once]
        try:
            clean_row, scores = run_packed(vlm, prefix, edit, chunk)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            scores = None
        if scores is None:
            at_once = _halve(vlm, prefix, len(chunk), reason)
            continue
        edited.append(scores)
        clean.append(clean_row[:, None].expand_as(scores))
        done += len(chunk)
    back = by_start.argsort()
    return torch.cat(edited, 1)[:, back], torch.cat(clean, 1)[:, back]


def variants_at_once(vlm: VLM, prefix: Prefix) -> int:
    """How many variants one packed call runs within its working memory, or within less if memory ran out before."""
    usual = working_bytes(vlm)
    return max(1, min(usual, vlm.measured.chunk_bytes.get(vlm.memory, usual)) // _variant_bytes(vlm, prefix))


def _variant_bytes(vlm: VLM, prefix: Prefix) -> int:
    B, R = prefix.choices.tokens.shape
    return B * R * (row_bytes(vlm, prefix.seen.shape[1] + R) + prefix.state_bytes)


def row_bytes(vlm: VLM, tokens: int) -> int:
    """The bytes that one row needs while a layer runs: its attention scores over the prompt, or its widest activations."""
    config = vlm.hf_model.config.get_text_config()
    found = setting(config, "intermediate_size")
    wide = 4 * max(*(found if isinstance(found, list) else [found or 0]), vlm.d_model)
    return 4 * max(vlm.n_heads * tokens * 5 // 4, wide)


def _halve(vlm: VLM, prefix: Prefix, n: int, reason: str) -> int:
    release(vlm.device)
    if n == 1:
        B, P = prefix.seen.shape
        if B > 1:  # its questions are halved
            raise torch.OutOfMemoryError(reason)
        raise ModelError(f"{vlm.name}: no memory for one edit on one question of {P + 1} tokens: give a shorter prompt ({reason})")
    vlm.measured.chunk_bytes[vlm.memory] = (n // 2) * _variant_bytes(vlm, prefix)
    warnings.warn(f"{vlm.name}: no memory for {n} edits at once; continuing with {n // 2} ({reason})", MemoryWarning, stacklevel=5)
    return n // 2


def reference(
    vlm: VLM, questions: Sequence[Question], edit: Variants | None, what: str, scoring: Scoring = "auto"
) -> tuple[Tensor, Tensor]:
    """Edited scores and clean scores [Q, N, C], each from a full forward pass."""
    found = [*map_batches(vlm, SingleQuestions(questions), partial(reference_work, edit=edit, scoring=scoring), what)]
    return _joined(vlm, found)


@torch.no_grad()
def reference_work(vlm: VLM, batch: tuple[int, Question], edit: Variants | None, scoring: Scoring) -> BatchResult:
    """Edited and clean scores [1, N, C] of one question, on the reference path."""
    row, question = batch
    variants = torch.arange(edit.n_variants if edit else 1)
    plain = run_reference(vlm, question, row, None, variants, scoring)
    scores = plain if edit is None else run_reference(vlm, question, row, edit, variants, scoring)
    check_finite(vlm, [question], scores[None], edit, row)
    return {"edited": scores[None], "clean": plain.expand_as(scores)[None]}


def _joined(vlm: VLM, found: Sequence[BatchResult]) -> tuple[Tensor, Tensor]:
    edited, clean = (join([part[name] for part in found]).to(vlm.device) for name in ("edited", "clean"))
    return edited, clean


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate batches [b, N, C] to [Q, N, C], with -inf where a batch has fewer choices."""
    C = max(p.shape[-1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, C - p.shape[-1]), value=float("-inf")) for p in parts])


def check_finite(vlm: VLM, questions: Sequence[Question], scores: Tensor, edit: Variants | None = None, row: int = 0) -> None:
    """Check that scores are finite.

    Args:
        vlm: The model.
        questions: The questions of the scores.
        scores: [Q, N, C].
        edit: The edit that was run.
        row: The number of the first of these questions among all questions of the edit.

    Raises:
        ModelError: A score is not finite. The message names the question, the edit, the layer and the weight or dtype at fault.
    """
    choices = torch.tensor([len(question.choices) for question in questions])
    given = (torch.arange(scores.shape[-1]) < choices[:, None])[:, None]
    given = there(given, scores.device)
    bad = ~(scores < float("inf")) | (given & (scores == float("-inf")))
    if bad.any():
        q, n, _ = (int(i) for i in bad.nonzero()[0])
        where = first_not_finite(vlm, questions[q], row + q, edit, n)
        heads = getattr(edit, "heads", None)
        which = f"edit {n}" + (f" (head {heads[n]})" if heads else "")
        raise ModelError(f"question {questions[q].id}, {which}: the logits are not finite, first {where}; {vlm.blame()}")


@torch.no_grad()
def first_not_finite(vlm: VLM, question: Question, row: int, edit: Variants | None, variant: int) -> str:
    """Where a full forward pass first contains numbers that are not finite, in words."""
    found: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: found.append(i) if not _finite(out) else None)
        for i, layer in enumerate(vlm.all_layers)
    ]
    try:
        run_reference(vlm, question, row, edit, torch.tensor([variant]))
    finally:
        for hook in hooks:
            hook.remove()
    return f"after layer {min(found)}" if found else "after the last layer, or only in this batch"


def _finite(output: Any) -> bool:
    return bool(torch.isfinite(stream_of(output)).all())
