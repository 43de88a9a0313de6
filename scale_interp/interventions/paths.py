"""The two ways to run N edits on Q questions: packed behind prompts that are read once, or one whole forward pass an edit."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.question import Question
from ..errors import MemoryWarning, ModelError
from ..models.vlm import VLM
from ..progress import track
from .choices import Scoring
from .edit import Variants
from .packed import run_packed
from .prefix import Prefix, Prompts, working_bytes
from .reference import run_reference


def packed(
    vlm: VLM, questions: Sequence[Question], edit: Variants | None, prompts: Prompts | None, what: str, scoring: Scoring = "auto"
) -> tuple[Tensor, Tensor]:
    """Edited scores [Q, N, C], and beside each the clean score of the same packed call."""
    prompts = prompts or Prompts(vlm, questions, keep=False, scoring=scoring)
    edited, clean = zip(*(packed_batch(vlm, prefix, edit) for prefix in prompts.track(what)), strict=True)
    return join(edited), join(clean)


def packed_batch(vlm: VLM, prefix: Prefix, edit: Variants | None) -> tuple[Tensor, Tensor]:
    """All variants on one batch of prompts, in chunks that fit the memory: edited and clean scores [B, N, C].

    Where memory runs out all the same, the chunk is halved, for later calls too. Raises ModelError when a single
    variant does not fit.
    """
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
    """How many variants one packed call takes within its working memory."""
    B, R = prefix.choices.tokens.shape
    return max(1, working_bytes(vlm) // (B * R * row_bytes(vlm, prefix.seen.shape[1] + R)))


def row_bytes(vlm: VLM, tokens: int) -> int:
    """Bytes that one row needs while a layer runs: its attention scores over the prompt, or its widest activations."""
    config = vlm.hf_model.config.get_text_config()
    wide = 4 * max(getattr(config, "intermediate_size", 0) or 0, vlm.d_model)
    return 4 * max(vlm.n_heads * tokens * 5 // 4, wide)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's, or the machine's, way to say that its memory is full."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "OutOfMemoryError" in said or "can't allocate memory" in said


def _halve(vlm: VLM, prefix: Prefix, n: int, reason: str) -> int:
    gc.collect()
    if vlm.device.type == "cuda":
        torch.cuda.empty_cache()
    if n == 1:
        B, P = prefix.seen.shape
        raise ModelError(
            f"{vlm.name}: no memory for one edit on {B} question(s) of {P + 1} tokens: give fewer questions at once ({reason})"
        )
    vlm.memory = working_bytes(vlm) // 2
    warnings.warn(f"{vlm.name}: no memory for {n} edits at once; going on with {n // 2} ({reason})", MemoryWarning, stacklevel=5)
    return n // 2


def reference(
    vlm: VLM, questions: Sequence[Question], edit: Variants | None, prompts: object, what: str, scoring: Scoring = "auto"
) -> tuple[Tensor, Tensor]:
    """Edited scores [Q, N, C] and clean scores, each from a whole forward pass."""
    variants = torch.arange(edit.n_variants if edit else 1)
    edited: list[Tensor] = []
    clean: list[Tensor] = []
    for row, question in track(enumerate(questions), what, len(questions)):
        plain = run_reference(vlm, question, row, None, variants, scoring)
        scores = plain if edit is None else run_reference(vlm, question, row, edit, variants, scoring)
        edited.append(scores[None])
        clean.append(plain.expand_as(scores)[None])
    return join(edited), join(clean)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Batches [b, N, C] as one [Q, N, C], -inf where a batch has fewer choices."""
    C = max(p.shape[-1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, C - p.shape[-1]), value=float("-inf")) for p in parts])


def check_finite(vlm: VLM, questions: Sequence[Question], scores: Tensor) -> None:
    """Raise ModelError for scores that are not finite, naming the question, the edit and the weight to blame."""
    bad = torch.isnan(scores) | (scores == float("inf"))
    for q, question in enumerate(questions):
        bad[q, :, : len(question.choices)] |= scores[q, :, : len(question.choices)] == float("-inf")
    if bad.any():
        q, n, _ = (int(i) for i in bad.nonzero()[0])
        raise ModelError(f"question {questions[q].id}, edit {n}: the logits are not finite; {vlm.blame()}")
