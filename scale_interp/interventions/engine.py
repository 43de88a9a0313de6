"""The engine: run N edits on Q questions, on the packed path or the reference path."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor

from ..core.arguments import Raises, checked
from ..data.items import require
from ..data.question import Question
from ..errors import EditError, PathWarning
from ..vlm.mode import require_ready
from ..vlm.vlm import VLM
from .check import Report, check
from .choices import Scoring
from .edit import Edit, Variants, positioned
from .paths import check_finite, packed, reference, with_graph
from .positions import run_at
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
) -> Float[Tensor, "questions variants choices"]:
    """Run N edits of the last token, or of the tokens that `Edit(at=...)` names, on Q questions, and score the choices.

    Args:
        vlm: The model.
        questions: One question or several.
        edits: An Edit, a list of them, a HeadSweep, a ScAle, or None for one unedited run.
        path: "packed" reads each prompt once and reruns its last token, or what follows the first edited one. "reference" runs every
            edit in full. "auto" is packed if the two agree on the first question, otherwise reference, with a PathWarning.
        prompts: A PrefixStore of the same questions, whose prompts are not read again.
        scoring: "auto" gives logits if all choices of a question are one token, otherwise log-likelihoods. "first" gives the logit of a
            choice's first token, "whole" its log-likelihood, and "mean" its log-likelihood per token.
        grad: Whether to keep the graph, for edits that require gradients (packed path only).
        what: The progress bar's text.

    Returns:
        Scores [Q, N, C]; -inf where a question has fewer than C choices.

    Raises:
        EditError: An edit does not fit the model or the questions.
        ModelError: Logits are not finite.
        DataError: The scoring does not distinguish the choices of a question.

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
) -> tuple[Float[Tensor, "questions variants choices"], Float[Tensor, "questions variants choices"]]:
    """Run `run_edits`, and return with each score the clean score of the same call, so that rounding cancels.

    Returns:
        Edited scores and clean scores, each [Q, N, C].
    """
    questions = require(questions)
    if prompts is not None:
        prompts.require(vlm, questions, scoring)
    edit = None if edits is None else as_variants(edits)
    if edit is not None:
        edit.check(len(questions), vlm.n_layers, vlm.n_heads, vlm.head_dim)
    if grad:
        require_ready(vlm, "grad=True")
    if edit is not None and positioned(edit):
        require_ready(vlm)
        return run_at(vlm, questions, edit, path, scoring, grad, what)  # type: ignore[arg-type]
    if choose_path(vlm, questions, path) == "reference":
        return reference(vlm, questions, edit, what, scoring)
    prompts = prompts or PrefixStore(vlm, questions, keep=False, scoring=scoring)
    if not grad:
        return packed(vlm, prompts, edit, what)
    edited, clean = with_graph(vlm, prompts, edit, what)
    check_finite(vlm, questions, edited, edit)
    return edited, clean


def as_variants(edits: Any) -> Variants:
    """An edit, an object with `.edit()` such as a ScAle, or a list of these, as one set of variants. Raises EditError for others."""
    if isinstance(edits, list | tuple):
        return Edit.stack([e.edit() if hasattr(e, "edit") else _an_edit(e) for e in edits])
    edits = edits.edit() if hasattr(edits, "edit") else edits
    if not all(hasattr(edits, name) for name in ("n_variants", "starts", "part", "check")):
        raise EditError(f"expected an Edit, found a {type(edits).__name__}: give an Edit, a list of them, a HeadSweep or a ScAle")
    return edits


def _an_edit(edit: Any) -> Edit:
    if not isinstance(edit, Edit):
        raise EditError(f"expected a list of Edits, found a {type(edit).__name__} in it: build one with si.Edit(scale=...)")
    return edit


def choose_path(vlm: VLM, questions: Sequence[Question], path: Path = "auto") -> Literal["packed", "reference"]:
    """The path to take; for "auto", the one in the model's report.

    Args:
        vlm: The model.
        questions: The questions; the first is used if the model has to be checked.
        path: "auto", "packed" or "reference".

    Returns:
        "packed" or "reference".

    Raises:
        EditError: The path is unknown.
        ModelError: The model is in training mode.
    """
    require_ready(vlm)
    if path not in ("auto", "packed", "reference"):
        raise EditError(f"path {path!r}: choose 'auto', 'packed' or 'reference'")
    return path if path != "auto" else report_of(vlm, questions[0]).path


def report_of(vlm: VLM, question: Question) -> Report:
    """The check of the model in its current state, measured on this question unless `vlm.report` already has it.

    A PathWarning says so if it was measured now and the packed path cannot be used.

    Args:
        vlm: The model.
        question: The question.

    Returns:
        The report, which is kept in `vlm.report`.
    """
    report = vlm.report
    if report is None:
        report = vlm.report = check(vlm, question)
        if report.path != "packed":
            warnings.warn(f"{vlm.name}: {report.why}", PathWarning, stacklevel=4)
    return report


def require_packed(vlm: VLM, questions: Sequence[Question], path: Path, what: str) -> None:
    """Check that this model's edits run on the packed path, as the reference path has no gradients.

    Raises:
        EditError: They run on the reference path.
    """
    require_ready(vlm, what)
    if choose_path(vlm, questions, path) != "packed":
        why = report_of(vlm, questions[0]).why if path == "auto" else "path='reference' was requested"
        raise EditError(
            f"{what} needs gradients, which only the packed path has, but {vlm.name} runs on the reference path ({why}): "
            "use path='packed' where a prompt that stays unedited is acceptable, or a method without gradients"
        )
