"""The engine: N edits on Q questions, by the packed path or the reference path."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from ..core.arguments import Raises, checked
from ..data.items import require
from ..data.question import Question
from ..errors import EditError, PathWarning
from ..vlm.vlm import VLM
from .check import Report, check
from .choices import Scoring
from .edit import Edit, Variants
from .paths import check_finite, packed, reference, with_graph
from .prefix import PrefixStore

Path = Annotated[Literal["auto", "packed", "reference"], Raises(EditError)]


@checked
def run_edits(
    vlm: VLM,
    questions: Question | Sequence[Question],
    edits: Any = None,
    path: Path = "auto",
    *,
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    grad: bool = False,
    what: str = "edits",
) -> Tensor:
    """Run N edits of the last token on Q questions: scores of the choices [Q, N, C].

    edits: an Edit, a list of them, a HeadSweep, a ScAle, or None for one unedited run. scoring: "auto" is logits where
    all choices of a question are one token, else log-likelihoods; "first" the logit of a choice's first token; "whole"
    its log-likelihood; "mean" that by its number of tokens. -inf where a question has fewer choices than C.
    path: "packed" reads each prompt once and re-runs its last token; "reference" runs every edit in full; "auto" is
    packed if the two agree on the first question, else reference with a PathWarning. prompts: prefixes to reuse.
    grad: keep the graph, for edits that require gradients (packed path).

    Raises EditError for an edit that does not fit, ModelError for logits that are not finite, DataError for choices
    that the scoring cannot tell apart.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> import torch
    >>> gains = si.Edit(scale=torch.ones(3, vlm.n_layers, vlm.n_heads))
    >>> run_edits(vlm, qs, gains).shape[:2]
    torch.Size([4, 3])
    """
    return run_with_clean(vlm, questions, edits, path, prompts=prompts, scoring=scoring, grad=grad, what=what)[0]


def run_with_clean(
    vlm: VLM,
    questions: Question | Sequence[Question],
    edits: Any = None,
    path: Path = "auto",
    *,
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    grad: bool = False,
    what: str = "edits",
) -> tuple[Tensor, Tensor]:
    """run_edits, and beside each variant the clean scores of the same call [Q, N, C], so that rounding cancels."""
    questions = require(questions)
    if prompts is not None:
        prompts.require(questions, scoring)
    edit = None if edits is None else as_variants(edits)
    if edit is not None:
        edit.check(len(questions), vlm.n_layers, vlm.n_heads, vlm.head_dim)
    if choose_path(vlm, questions, path) == "reference":
        return reference(vlm, questions, edit, what, scoring)
    prompts = prompts or PrefixStore(vlm, questions, keep=False, scoring=scoring)
    if not grad:
        return packed(vlm, prompts, edit, what)
    edited, clean = with_graph(vlm, prompts, edit, what)
    check_finite(vlm, questions, edited, edit)
    return edited, clean


def as_variants(edits: Any) -> Variants:
    """An edit, something with `.edit()` such as a ScAle, or a list of these, as one set of variants."""
    if isinstance(edits, list | tuple):
        return Edit.stack([e.edit() if hasattr(e, "edit") else _an_edit(e) for e in edits])
    edits = edits.edit() if hasattr(edits, "edit") else edits
    if not all(hasattr(edits, name) for name in ("n_variants", "starts", "at", "check")):
        raise EditError(f"expected an Edit, found a {type(edits).__name__}: give an Edit, a list of them, a HeadSweep or a ScAle")
    return edits


def _an_edit(edit: Any) -> Edit:
    if not isinstance(edit, Edit):
        raise EditError(f"expected a list of Edits, found a {type(edit).__name__} in it: build one with si.Edit(scale=...)")
    return edit


def choose_path(vlm: VLM, questions: Sequence[Question], path: Path = "auto") -> Literal["packed", "reference"]:
    """The path to take; "auto" is what `report_of` found, with a warning where that was measured now and is not packed."""
    if path not in ("auto", "packed", "reference"):
        raise EditError(f"path {path!r}: choose 'auto', 'packed' or 'reference'")
    return path if path != "auto" else report_of(vlm, questions[0]).path


def report_of(vlm: VLM, question: Question) -> Report:
    """The check of this model as it is now: measured on the first question that it is asked, and again once it has changed.

    The result is kept in `vlm.report`. PathWarning where it was measured now, and the packed path cannot be taken.
    """
    report = vlm.report
    if report is None:
        report = vlm.report = check(vlm, question)
        if report.path != "packed":
            warnings.warn(f"{vlm.name}: {report.why}", PathWarning, stacklevel=4)
    return report


def require_packed(vlm: VLM, questions: Sequence[Question], path: Path, what: str) -> None:
    """Raise EditError where this model's edits run by the reference path, which carries no gradients."""
    if choose_path(vlm, questions, path) != "packed":
        why = report_of(vlm, questions[0]).why if path == "auto" else "path='reference' was asked for"
        raise EditError(f"{what} needs gradients, which only the packed path has, but {vlm.name} runs by the reference path: {why}")
