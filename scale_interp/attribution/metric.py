"""What a run is judged by: one number per question, computed from its choice scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import Raises
from ..core.there import there
from ..data.contrast import Contrast
from ..data.question import Question
from ..errors import DataError

Metric = Annotated[Literal["logit_diff", "correct_prob", "accuracy"], Raises(DataError)]
Measured = Float[Tensor, "questions *variants"]


def measure(name: Metric, scores: Float[Tensor, "questions *variants choices"], questions: Sequence[Question]) -> Measured:
    """The metric of every question and variant.

    Args:
        name: "logit_diff", the right choice's score minus the largest other (logits); "correct_prob", the right choice's share of the
            softmax over the choices; or "accuracy", 1.0 where the right choice has the largest score.
        scores: choice scores [Q, ..., C].
        questions: the Q questions.

    Returns:
        [Q, ...].

    Raises:
        DataError: for an unknown metric.
    """
    answers = there(torch.tensor([q.answer for q in questions]), scores.device)
    index = answers.view(-1, *[1] * (scores.ndim - 1)).expand(*scores.shape[:-1], 1)
    right = scores.gather(-1, index).squeeze(-1)
    if name == "correct_prob":
        return (right - scores.logsumexp(-1)).exp()
    other = scores.scatter(-1, index, float("-inf")).amax(-1)
    if name == "logit_diff":
        return right - other
    if name == "accuracy":
        return (right > other).float()
    raise DataError(f"metric {name!r}: choose 'logit_diff', 'correct_prob' or 'accuracy'")


def contrast_diff(scores: Float[Tensor, "questions *variants choices"], pairs: Sequence[Contrast]) -> Measured:
    """The clean answer's score minus the corrupt answer's, in logits (Heimersheim & Nanda 2024): scores [Q, ..., C] give [Q, ...]."""
    shape = (-1, *[1] * (scores.ndim - 1))
    clean = there(torch.tensor([p.clean.answer for p in pairs]), scores.device).view(shape)
    corrupt = there(torch.tensor([p.corrupt.answer for p in pairs]), scores.device).view(shape)
    full = (*scores.shape[:-1], 1)
    return (scores.gather(-1, clean.expand(full)) - scores.gather(-1, corrupt.expand(full))).squeeze(-1)
