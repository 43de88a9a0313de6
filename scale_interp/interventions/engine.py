"""The engine: N edits on Q questions, by the packed path or the reference path."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.items import require
from ..data.question import Question
from ..errors import EditError, ModelError, PathWarning
from ..models.vlm import VLM
from ..progress import track
from .edit import Edit, Variants
from .packed import run_packed
from .prefix import Prefix, Prompts
from .reference import run_reference

Path = Literal["auto", "packed", "reference"]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of packed and reference logits that rounding explains, relative to the largest logit or 1."""
CHUNK_BYTES = 256 * 2**20
"""Working memory of one packed call; more variants than fit are run in several calls."""


def run_edits(
    vlm: VLM,
    questions: Question | Sequence[Question],
    edits: Any = None,
    path: Path = "auto",
    *,
    prompts: Prompts | None = None,
    grad: bool = False,
    what: str = "edits",
) -> Tensor:
    """Run N edits of the last token on Q questions: scores of the choices [Q, N, C].

    edits: an Edit, a list of them, a HeadSweep, a ScAle, or None for one unedited run. Scores are logits where all
    choices of a question are one token, else log-likelihoods; -inf where a question has fewer choices than C.
    path: "packed" reads each prompt once and re-runs its last token; "reference" runs every edit in full; "auto" is
    packed if the two agree on the first question, else reference with a PathWarning. prompts: prefixes to reuse.
    grad: keep the graph, for edits that require gradients (packed path).

    Raises EditError for an edit that does not fit, ModelError for logits that are not finite.
    """
    return run_with_clean(vlm, questions, edits, path, prompts=prompts, grad=grad, what=what)[0]


def run_with_clean(
    vlm: VLM,
    questions: Question | Sequence[Question],
    edits: Any = None,
    path: Path = "auto",
    *,
    prompts: Prompts | None = None,
    grad: bool = False,
    what: str = "edits",
) -> tuple[Tensor, Tensor]:
    """run_edits, and beside each variant the clean scores of the same call [Q, N, C], so that rounding cancels."""
    questions = require(questions)
    edit = None if edits is None else as_variants(edits)
    if edit is not None:
        edit.check(len(questions), vlm.n_layers, vlm.n_heads, vlm.head_dim)
    run = _packed if choose_path(vlm, questions, path) == "packed" else _reference
    with nullcontext() if grad else torch.no_grad():
        edited, clean = run(vlm, questions, edit, prompts, what)
    _check_finite(vlm, questions, edited)
    return edited, clean


def as_variants(edits: Any) -> Variants:
    """An edit, something with `.edit()` such as a ScAle, or a list of these, as one set of variants."""
    if isinstance(edits, list | tuple):
        return Edit.stack([e.edit() if hasattr(e, "edit") else e for e in edits])
    edits = edits.edit() if hasattr(edits, "edit") else edits
    if not all(hasattr(edits, name) for name in ("n_variants", "starts", "at", "check")):
        raise EditError(f"expected an Edit, found a {type(edits).__name__}")
    return edits


def choose_path(vlm: VLM, questions: Sequence[Question], path: Path = "auto") -> Literal["packed", "reference"]:
    """The path to take; "auto" compares the two on the first question that this model sees."""
    if path not in ("auto", "packed", "reference"):
        raise EditError(f"path {path!r}: choose 'auto', 'packed' or 'reference'")
    if path != "auto":
        return path
    if vlm.agreement is None:
        vlm.agreement = _agreement(vlm, questions[0])
        if vlm.agreement > 1:
            warnings.warn(
                f"{vlm.name}: packed and reference logits differ by {vlm.agreement:.1f} times what {vlm.dtype} rounding explains; "
                "every edit now runs a whole forward pass (same meaning, slower)",
                PathWarning,
                stacklevel=3,
            )
    return "packed" if vlm.agreement <= 1 else "reference"


@torch.no_grad()
def _agreement(vlm: VLM, question: Question) -> float:
    """Largest difference of the two paths on a random edit of every head and MLP, in units of the tolerance."""
    draw = torch.Generator().manual_seed(0)
    scale = 0.5 + torch.rand(1, vlm.n_layers, vlm.n_heads, generator=draw)
    edit = Edit(scale=scale, mlp_scale=0.5 + torch.rand(1, vlm.n_layers, generator=draw))
    packed, _ = _packed(vlm, [question], edit, None, "")
    reference, _ = _reference(vlm, [question], edit, None, "")
    _check_finite(vlm, [question], reference)
    allowed = TOLERANCE.get(vlm.dtype, 1e-1) * max(1.0, float(reference.abs().max()))
    return float((packed - reference).abs().max()) / allowed


def _packed(vlm: VLM, questions: Sequence[Question], edit: Variants | None, prompts: Prompts | None, what: str) -> tuple[Tensor, Tensor]:
    prompts = prompts or Prompts(vlm, questions)
    edited, clean = zip(*(packed_batch(vlm, prefix, edit) for prefix in prompts.track(what)), strict=True)
    return _join(edited), _join(clean)


def packed_batch(vlm: VLM, prefix: Prefix, edit: Variants | None) -> tuple[Tensor, Tensor]:
    """All variants on one batch of prompts, in chunks that fit the memory: edited and clean scores [B, N, C]."""
    if edit is None:
        unedited = run_packed(vlm, prefix, None)[0][:, None]
        return unedited, unedited
    by_start = edit.starts(vlm.n_layers).argsort(stable=True)
    edited: list[Tensor] = []
    clean: list[Tensor] = []
    for chunk in by_start.split(variants_at_once(vlm, prefix)):
        clean_row, scores = run_packed(vlm, prefix, edit, chunk)
        edited.append(scores)
        clean.append(clean_row[:, None].expand_as(scores))
    back = by_start.argsort()
    return torch.cat(edited, 1)[:, back], torch.cat(clean, 1)[:, back]


def variants_at_once(vlm: VLM, prefix: Prefix) -> int:
    """How many variants one packed call takes within CHUNK_BYTES."""
    B, R = prefix.choices.tokens.shape
    config = vlm.hf_model.config.get_text_config()
    scores = 3 * vlm.n_heads * (prefix.seen.shape[1] + R)
    wide = 4 * max(getattr(config, "intermediate_size", 0) or 0, vlm.d_model)
    return max(1, CHUNK_BYTES // (4 * B * R * (scores + wide)))


def _reference(vlm: VLM, questions: Sequence[Question], edit: Variants | None, prompts: object, what: str) -> tuple[Tensor, Tensor]:
    variants = torch.arange(edit.n_variants if edit else 1)
    edited: list[Tensor] = []
    clean: list[Tensor] = []
    for row, question in track(enumerate(questions), what, len(questions)):
        plain = run_reference(vlm, question, row, None, variants)
        scores = plain if edit is None else run_reference(vlm, question, row, edit, variants)
        edited.append(scores[None])
        clean.append(plain.expand_as(scores)[None])
    return _join(edited), _join(clean)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Batches [b, N, C] as one [Q, N, C], -inf where a batch has fewer choices."""
    C = max(p.shape[-1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, C - p.shape[-1]), value=float("-inf")) for p in parts])


def _check_finite(vlm: VLM, questions: Sequence[Question], scores: Tensor) -> None:
    bad = torch.isnan(scores) | (scores == float("inf"))
    for q, question in enumerate(questions):
        bad[q, :, : len(question.choices)] |= scores[q, :, : len(question.choices)] == float("-inf")
    if bad.any():
        q, n, _ = (int(i) for i in bad.nonzero()[0])
        raise ModelError(f"question {questions[q].id}, edit {n}: the logits are not finite; {vlm.blame()}")
